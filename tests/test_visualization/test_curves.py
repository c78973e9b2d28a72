import json
import os

import pytest
from PIL import Image

from mmhcnet.visualization.curves import draw_curves, read_curve


def write(folder, lines, at):
    path = folder / 'vis_data' / 'scalars.json'
    path.parent.mkdir(parents=True)
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    os.utime(path, (at, at))


def test_the_newest_training_is_read(tmp_path):
    new = [dict(loss=2.0, step=50), dict(mIoU=40.0, step=50), dict(loss=1.5, step=100)]
    write(tmp_path / 'b', new, at=2000)
    write(tmp_path / 'c', [dict(loss=9.0, step=1)], at=1000)
    assert read_curve(tmp_path) == ([50, 100], [2.0, 1.5])
    assert read_curve(tmp_path, 'mIoU') == ([50], [40.0])


def test_no_training(tmp_path):
    with pytest.raises(FileNotFoundError, match='name the --work-dir of a training'):
        read_curve(tmp_path)


def test_picture(tmp_path):
    one = ([1, 2, 3], [3.0, 2.0, 1.0])
    draw_curves({'HcNet': one}, tmp_path / 'one.png', 'title', 'loss')
    draw_curves({'HcNet': one, 'vHeat': one}, tmp_path / 'two.png', 'title', 'loss')
    a, b = (Image.open(tmp_path / name).convert('RGB') for name in ('one.png', 'two.png'))
    assert a.tobytes() != b.tobytes()
    # For a phone: no wider than its text can be read at.
    assert max(a.width, b.width) <= 700
