import pytest
from PIL import Image


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / 'photo.jpg'
    Image.effect_noise((96, 80), 120).convert('RGB').save(path)
    return path
