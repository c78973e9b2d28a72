"""The page about a photo comes from one command."""

from PIL import Image

from ..pages import read_page
from .conftest import CONFIGS

HCNET, VHEAT = CONFIGS['classification'], 'configs/classification/vheat_digits.py'


def test_report(tool, tmp_path):
    photo = tmp_path / 'photo.jpg'
    Image.effect_noise((96, 80), 120).convert('RGB').save(photo)
    # One command: two kinds of heat, receptive fields, Grad-CAM where its package is installed.
    done = tool(
        'visualization/report.py',
        photo,
        '--model',
        HCNET,
        'none',
        '--model',
        VHEAT,
        'none',
        '--size',
        64,
        '--out',
        tmp_path / 'out',
    )
    assert str(tmp_path / 'out' / 'index.html') in done.stdout
    page = read_page(tmp_path / 'out' / 'index.html')
    pictures = set(page.pictures)
    assert {'the photo', 'receptive fields'} <= pictures
    for name in ('hcnet_digits (untrained)', 'vheat_digits (untrained)'):
        assert {
            f'temperature maps of {name}',
            f'conduction rates of {name}',
            f'a channel of {name} diffusing',
        } <= pictures
    with Image.open(tmp_path / 'out' / '0' / 'diffusion.gif') as animation:
        assert animation.n_frames == 2  # one layer in stage 1, before and after
    assert '% of the pixels above 0.0455' in page.text
    assert ('Grad-CAM' in pictures) != ('pip install --no-deps grad-cam' in page.text)


def test_mistakes_end_with_one_line(tool):
    done = tool('visualization/vis_heat.py', 'none.jpg', HCNET, 'none', fails=True)
    assert 'Traceback' not in done.stderr
    assert done.stderr.strip().splitlines()[-1] == "Error: no image file 'none.jpg'"
