import matplotlib
import numpy as np
from PIL import Image

from mmhcnet.visualization.figures import draw_row


def test_nothing_of_matplotlib_stays_changed(tmp_path):
    before = dict(matplotlib.rcParams), matplotlib.get_backend()
    photo = Image.new('RGB', (40, 30))
    draw_row(
        {'first': np.eye(30), 'second': np.eye(30)},
        tmp_path / 'row.png',
        'label',
        photo=photo,
        cmap='inferno',
    )
    draw_row({'one': np.eye(4)}, tmp_path / 'one.png', 'label')
    assert (dict(matplotlib.rcParams), matplotlib.get_backend()) == before
    row, one = (Image.open(tmp_path / name).size for name in ('row.png', 'one.png'))
    # The photo and two maps, two in a row: no wider than can be read on a phone.
    assert 1.5 * one[0] < row[0] < 2.5 * one[0] and row[1] > 1.5 * one[1]
