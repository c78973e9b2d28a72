"""Pictures of every kind that a person may hand over."""

import numpy as np
import pytest
import torch
from PIL import Image

import mmhcnet
from mmhcnet.inference.model import load_model
from mmhcnet.inference.pictures import model_input, read_picture


@pytest.fixture
def gradient():
    """Grey levels 0 to 255 from left to right, (64, 96)."""
    return np.tile(np.linspace(0, 255, 96).round().astype(np.uint8), (64, 1))


def saved(folder, picture, name='a.png', **options):
    picture.save(folder / name, **options)
    return np.asarray(read_picture(str(folder / name), 64))


def test_modes_of_one_picture_look_alike(tmp_path, gradient):
    grey = Image.fromarray(gradient)
    expected = np.stack([gradient] * 3, axis=2)
    sixteen = Image.fromarray(gradient.astype(np.uint16) * 257)
    for picture in (
        grey,
        grey.convert('RGB'),
        grey.convert('RGBA'),
        grey.convert('LA'),
        grey.convert('P'),
        sixteen,
    ):
        assert np.array_equal(saved(tmp_path, picture), expected), picture.mode
    assert np.array_equal(saved(tmp_path, grey.convert('CMYK'), 'a.tif'), expected)


def test_transparent_parts_are_white(tmp_path, gradient):
    picture = Image.fromarray(gradient).convert('RGBA')
    picture.putalpha(Image.fromarray(np.where(gradient < 128, 0, 255).astype(np.uint8)))
    expected = np.where(gradient < 128, 255, gradient)
    assert np.array_equal(saved(tmp_path, picture)[..., 0], expected)
    palette = Image.fromarray(gradient // 64, mode='P')
    palette.putpalette([0, 0, 0, 80, 80, 80, 160, 160, 160, 240, 240, 240])
    expected = np.where(gradient < 64, 255, gradient // 64 * 80)
    assert np.array_equal(saved(tmp_path, palette, transparency=0)[..., 0], expected)


def test_rotated_by_its_exif_tag(tmp_path, gradient):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    turned = saved(tmp_path, Image.fromarray(gradient), exif=exif)
    assert turned.shape == (96, 64, 3)
    assert (turned[0] < 5).all() and (turned[-1] > 250).all()


def test_shorter_side_is_resized(tmp_path):
    Image.new('RGB', (300, 150)).save(tmp_path / 'a.png')
    assert read_picture(str(tmp_path / 'a.png'), 224).size == (448, 224)


def test_what_is_no_picture(tmp_path):
    Image.new('RGB', (1, 1)).save(tmp_path / 'dot.png')
    Image.fromarray(np.zeros((40, 40), np.float32)).save(tmp_path / 'float.tif')
    (tmp_path / 'text.png').write_text('not a picture')
    whole = tmp_path / 'whole.jpg'
    Image.effect_noise((64, 64), 90).save(whole)
    (tmp_path / 'cut.jpg').write_bytes(whole.read_bytes()[:900])
    for name, error, message in (
        ('none.png', FileNotFoundError, 'no image file'),
        ('dot.png', ValueError, 'has 1x1 pixels: name one with at least 32'),
        ('float.tif', ValueError, 'holds floating-point numbers'),
        ('text.png', ValueError, 'is not an image that Pillow can read'),
        ('cut.jpg', ValueError, 'or is cut off'),
    ):
        with pytest.raises(error, match=message):
            read_picture(str(tmp_path / name), 64)


def test_input_is_what_the_pipeline_would_give():
    _, model = load_model(mmhcnet.config('classification/hcnet_t_in1k.py'), 'none')
    picture = Image.fromarray(np.random.RandomState(0).randint(0, 256, (64, 96, 3), np.uint8))
    rgb = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float()
    mean = torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)
    std = torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1)
    torch.testing.assert_close(model_input(model, picture)[0], (rgb - mean) / std)
