"""The page about a photo comes from one command."""

from PIL import Image

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
    page = (tmp_path / 'out' / 'index.html').read_text(encoding='utf-8')
    pictures = {part.split('"')[0] for part in page.split('src="')[1:]}
    assert {
        'photo.png',
        'erf.png',
        '0/maps.png',
        '0/rates.png',
        '0/diffusion.gif',
        '1/maps.png',
        '1/rates.png',
        '1/diffusion.gif',
    } <= pictures
    for name in pictures:
        with Image.open(tmp_path / 'out' / name) as picture:
            picture.load()
    with Image.open(tmp_path / 'out' / '0' / 'diffusion.gif') as animation:
        assert animation.n_frames == 2  # one layer in stage 1, before and after
    assert '% of the pixels above 0.0455' in page
    assert ('cam.png' in pictures) != ('pip install --no-deps grad-cam' in page)


def test_mistakes_end_with_one_line(tool):
    done = tool('visualization/vis_heat.py', 'none.jpg', HCNET, 'none', fails=True)
    assert 'Traceback' not in done.stderr
    assert done.stderr.strip().splitlines()[-1] == "Error: no image file 'none.jpg'"
