"""Images as their own pipeline loads them."""

import os
from collections.abc import Iterator

from mmhcnet.training.sample_rules import is_cut

from .findings import ERROR, Finding
from .sources import Loaded, Source


def file_fault(path: str) -> str | None:
    """What is wrong with an image file that could not be loaded, or None if it is intact."""
    if not os.path.isfile(path):
        return 'is not there'
    size = os.path.getsize(path)
    if not size:
        return 'is empty (0 bytes)'
    return f'is truncated ({size} bytes)' if is_cut(path) else None


def unreadable(loaded: Loaded, source: Source) -> Finding | None:
    """A finding where a sample does not load, or loads although its file is cut short."""
    files = [
        loaded.info[key]
        for key in ('img_path', 'seg_map_path')
        if isinstance(loaded.info.get(key), str)
    ]
    local = list(filter(source.is_local, files))
    if loaded.error is None:
        # OpenCV may fill what is missing of the image, and Pillow refuses label maps itself.
        local = local[:1]
    for file in local:
        fault = file_fault(file)
        if fault:
            return Finding(
                'unreadable images', file, fault, 'copy or download it again, or remove it'
            )
    if loaded.error is None:
        return None
    what = ' '.join(str(loaded.error).split())[:200] or type(loaded.error).__name__
    file = files[0] if files else 'a sample'
    if local and 'img' not in loaded.results:
        return Finding(
            'unreadable images',
            file,
            f'is not an image ({os.path.getsize(local[0])} bytes) that its loading step '
            f'reads: {what}',
            'convert or remove it, or set another loading step',
        )
    return Finding(
        'samples that do not load',
        file,
        f'{type(loaded.error).__name__}: {what}',
        'fix its annotations, or the loading steps of the pipeline',
    )


def orientation(path: str) -> int:
    """The EXIF orientation of a photo, 1 (upright) where there is none."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.getexif().get(0x0112, 1)
    except (OSError, Image.DecompressionBombError):
        return 1


def wrong_size(loaded: Loaded, file: str) -> Iterator[Finding]:
    """Whether an image has the size that its annotation file states.

    Args:
        loaded (Loaded): ``info`` with ``height`` and ``width``.
        file (str): The annotation file.
    """
    height, width = loaded.results['img'].shape[:2]
    stated = loaded.info.get('height'), loaded.info.get('width')
    if None in stated or stated == (height, width):
        return
    path = loaded.info['img_path']
    cure = 'correct width and height there'
    if stated == (width, height):
        turned = orientation(path)
        if turned > 4:
            cure = (
                f'the photo is stored lying (EXIF orientation {turned}) and training sees it '
                'upright: make width, height, boxes and masks those of the upright picture, or '
                "load with color_type='color_ignore_orientation'"
            )
    yield Finding(
        'wrong image sizes',
        path,
        f'is {width}x{height}, and {file} says {stated[1]}x{stated[0]}',
        cure,
    )


def wrong_channels(loaded: Loaded, source: Source) -> Iterator[Finding]:
    """Whether an image has the channels that the backbone takes."""
    backbone = source.cfg.get('model', {}).get('backbone') or {}
    image = loaded.results['img']
    channels = image.shape[2] if image.ndim == 3 else 1
    wanted = backbone.get('in_channels', 3)
    if channels != wanted:
        yield Finding(
            'wrong number of channels',
            str(loaded.info.get('img_path')),
            f'is loaded with {channels} channels, and model.backbone.in_channels is {wanted}',
            f'set model.backbone.in_channels={channels} with as many numbers in mean and std of '
            f"the preprocessor, or color_type of LoadImageFromFile: 'color' gives 3 channels, "
            f"'grayscale' 1, 'unchanged' those of the file",
            ERROR,
        )
