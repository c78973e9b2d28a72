"""A picture as a model takes it."""

import os

import torch
from torch import Tensor, nn

from .model import input_channels


def read_picture(path: str, size: int):
    """A picture as a person sees it: upright, 8 bit per colour, transparent parts white.

    Args:
        path (str): Any file that Pillow reads: grey, RGB, RGBA, palette, CMYK, 16-bit grey.
        size (int): The shorter side is resized to so many pixels.

    Returns:
        PIL.Image.Image: Mode RGB.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not a picture; one of floating-point numbers; or smaller than 32 pixels.
    """
    import numpy as np
    from PIL import Image, ImageOps, UnidentifiedImageError

    if not os.path.isfile(path):
        raise FileNotFoundError(f"no image file '{path}'")
    try:
        picture = ImageOps.exif_transpose(Image.open(path))
        picture.load()
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(
            f"'{path}' is not an image that Pillow can read, or is cut off: {error}"
        ) from error
    if min(picture.size) < 32:
        raise ValueError(
            f"'{path}' has {picture.width}x{picture.height} pixels: name one with at "
            'least 32 in both directions'
        )
    if picture.mode == 'F':
        raise ValueError(
            f"'{path}' holds floating-point numbers, of which black and white are not "
            'known: save it with 8 or 16 bit per colour'
        )
    if picture.mode.startswith('I'):  # 16-bit grey
        grey = np.asarray(picture, dtype=np.int64).clip(0, 65535) // 257
        picture = Image.fromarray(grey.astype(np.uint8))
    if picture.mode in ('LA', 'PA', 'RGBA', 'RGBa', 'La') or 'transparency' in picture.info:
        picture = picture.convert('RGBA')
        picture = Image.alpha_composite(Image.new('RGBA', picture.size, 'white'), picture)
    picture = picture.convert('RGB')
    scale = size / min(picture.size)
    return picture.resize(
        (round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC
    )


def model_input(model: nn.Module, picture) -> Tensor:
    """A picture as the model takes it, normalised as its config says.

    Args:
        model (nn.Module): With a backbone for colours or for grey.
        picture (PIL.Image.Image): The picture, RGB.

    Returns:
        Tensor: (1, 3, H, W), or (1, 1, H, W) for a backbone of grey images.

    Raises:
        ValueError: The backbone takes another number of channels, which a picture does not have.
    """
    import numpy as np

    channels = input_channels(model.backbone)
    if channels not in (1, 3):
        raise ValueError(
            f'the model takes {channels} channels, and a picture has 3 or, grey, 1: '
            'this tool draws models of pictures only'
        )
    # As the loading transforms of OpenMMLab give it: BGR, from 0 to 255.
    pixels = (
        np.asarray(picture)[..., ::-1]
        if channels == 3
        else np.asarray(picture.convert('L'))[..., None]
    )
    image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    return model.data_preprocessor(dict(inputs=[image], data_samples=None))['inputs']
