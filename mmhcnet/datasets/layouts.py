"""What a folder of a user's own data holds: COCO's JSON, label maps as in ADE20K, class folders."""

import colorsys
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmhcnet.errors import UserError

IMAGES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.ppm', '.webp')
# How people call the two halves; what comes first is preferred.
NAMES = dict(train=('train', 'training'), val=('val', 'valid', 'validation', 'test'))
NO_LABEL = 255


class Part(NamedTuple):
    """Training or validation data, as paths relative to the folder.

    Attributes:
        images (str): Folder of the images, or of the class folders.
        labels (str): Annotation file or folder of label maps; empty for class folders.
        image_suffix (str): Suffix of the images, of label maps only.
        label_suffix (str): Suffix of the label maps.
    """

    images: str
    labels: str = ''
    image_suffix: str = ''
    label_suffix: str = ''


class Layout(NamedTuple):
    """What was found in a folder.

    Attributes:
        classes (list[str]): Names, in the order in which the data numbers them.
        train (Part): What to train with.
        val (Part): What to validate with.
        named (bool): Whether the names are the data's own.
        masks (bool): Whether annotations of boxes have outlines or masks too.
    """

    classes: list[str]
    train: Part
    val: Part
    named: bool = True
    masks: bool = True


def palette(number: int) -> list[tuple[int, int, int]]:
    """As many colours that differ as there are classes, RGB from 0 to 255."""
    colours = (
        colorsys.hsv_to_rgb(i * 0.618034 % 1, 0.85 - 0.35 * (i % 2), 0.95 - 0.3 * (i // 2 % 2))
        for i in range(number)
    )
    return [(round(255 * r), round(255 * g), round(255 * b)) for r, g, b in colours]


def _half_of(path: str) -> str | None:
    """Which half a path is of, by the words in it."""
    words = path.lower().replace('\\', '/')
    for half, names in reversed(NAMES.items()):
        if any(name in words for name in names):
            return half
    return None


def _both(found: dict[str, Part], root: str, wanted: str) -> tuple[Part, Part]:
    for half in NAMES:
        if half not in found:
            raise UserError(f"'{root}' has no {wanted.format(half=half)}")
    return found['train'], found['val']


def coco_layout(root: str) -> Layout:
    """Annotation files in COCO's format, one with "train" and one with "val" in its path.

    Raises:
        UserError: One of them or its images are missing, or their categories differ.
    """
    found: dict[str, Part] = {}
    classes: dict[str, list[str]] = {}
    masks = True
    for path in sorted(Path(root).rglob('*.json')):
        name = str(path.relative_to(root))
        half = _half_of(name)
        if half is None or half in found:
            continue
        try:
            content = json.loads(path.read_bytes())
            names = [category['name'] for category in content['categories']]
            first = content['images'][0]['file_name']
            content['annotations'][0]['bbox']
        except (ValueError, KeyError, TypeError, IndexError):
            # Of another kind: captions, keypoints, settings of a program.
            continue
        found[half] = Part(_folder_of(Path(root), path, first), name)
        classes[half] = names
        masks &= any(one.get('segmentation') for one in content['annotations'])
    train, val = _both(
        found,
        root,
        "JSON in COCO's format for instances with \"{half}\" in its "
        'path, next to folders of its images',
    )
    if classes['train'] != classes['val']:
        raise UserError(
            f"the categories of '{train.labels}' and '{val.labels}' in '{root}' "
            f"differ: {classes['train'][:10]} and {classes['val'][:10]}; write the "
            'same in the same order'
        )
    return Layout(classes['train'], train, val, masks=masks)


def _folder_of(root: Path, file: Path, image: str) -> str:
    """The folder below which an annotation file's images lie."""
    folders = [file.parent, *(path for path in sorted(root.rglob('*')) if path.is_dir()), root]
    half = _half_of(str(file.relative_to(root)))
    # Several folders may have an image of the name.
    folders.sort(key=lambda path: _half_of(str(path.relative_to(root))) != half)
    for folder in folders:
        if (folder / image).is_file():
            return str(folder.relative_to(root))
    raise UserError(f"'{image}', which '{file}' names, is in no folder below '{root}'")


def label_map_layout(
    root: str, names: list[str] | None = None, progress: Callable[[list], Iterable] = iter
) -> Layout:
    """``images/`` and ``annotations/`` with a folder for training and one for validation each.

    Ids are counted in all label maps; 255 is no label. Names come from ``names``, or from a file
    ``classes.txt`` with one per line.

    Raises:
        UserError: Folders are missing, or the ids are not those of classes.
    """
    found: dict[str, Part] = {}
    for half, folders in NAMES.items():
        for folder in folders:
            images, labels = (Path(root) / kind / folder for kind in ('images', 'annotations'))
            if half not in found and images.is_dir() and labels.is_dir():
                found[half] = Part(
                    f'images/{folder}',
                    f'annotations/{folder}',
                    _suffix_of(images),
                    _suffix_of(labels),
                )
    train, val = _both(
        found, root, 'folders images/{half} and annotations/{half} (or training and validation)'
    )
    ids = _ids(
        [
            path
            for part in (train, val)
            for path in sorted((Path(root) / part.labels).rglob(f'*{part.label_suffix}'))
        ],
        progress,
    )
    if not ids:
        raise UserError(f"the label maps in '{root}' hold no label: every pixel is {NO_LABEL}")
    if ids == {0} or max(ids) > 254:
        raise UserError(
            f"the label maps in '{root}' hold the ids {sorted(ids)[:10]} and "
            f'{NO_LABEL}, which is no label: number the classes 0, 1, 2, ...; in a '
            f'mask of black and white write 1 instead of {NO_LABEL}'
        )
    listed = Path(root) / 'classes.txt'
    if names is None and listed.is_file():
        names = [line.strip() for line in listed.read_text().splitlines() if line.strip()]
    classes = names or [f'class{i}' for i in range(max(ids) + 1)]
    if len(classes) <= max(ids):
        raise UserError(
            f"the label maps in '{root}' hold the id {max(ids)}, and {len(classes)} "
            'names of classes are given, which are numbered from 0'
        )
    return Layout(classes, train, val, named=names is not None)


def _suffix_of(folder: Path) -> str:
    suffixes = [path.suffix for path in sorted(folder.rglob('*')) if path.suffix.lower() in IMAGES]
    if not suffixes:
        raise UserError(f"'{folder}' has no images: {', '.join(IMAGES)}")
    return max(set(suffixes), key=suffixes.count)


def _ids(paths: list[Path], progress: Callable[[list], Iterable]) -> set:
    from PIL import Image

    ids: set = set()
    for path in progress(paths):
        with Image.open(path) as image:
            labels = np.asarray(image)
        if labels.ndim != 2:
            raise UserError(
                f"'{path}' is a picture of colours: write one channel with the number "
                'of the class of each pixel'
            )
        ids.update(map(int, np.unique(labels)))
    return ids - {NO_LABEL}


def folder_layout(root: str) -> Layout:
    """``train/`` and ``val/`` with a folder per class each.

    Raises:
        UserError: One of them is missing, or their class folders differ.
    """
    found: dict[str, Part] = {}
    classes: dict[str, list[str]] = {}
    for half, names in NAMES.items():
        for name in names:
            folder = Path(root) / name
            inside = _folders(folder) if folder.is_dir() else []
            if half not in found and inside:
                found[half], classes[half] = Part(name), inside
    train, val = _both(found, root, 'folder {half} with a folder per class')
    if classes['train'] != classes['val']:
        differ = sorted(set(classes['train']) ^ set(classes['val']))
        raise UserError(
            f"the class folders of '{train.images}' and '{val.images}' in '{root}' "
            f'differ in {differ[:10]}: mmpretrain numbers them in alphabetical order, '
            'so both need the same'
        )
    if len(classes['train']) < 2:
        raise UserError(
            f"'{root}/{train.images}' has a single class folder: with one class there "
            'is nothing to learn'
        )
    return Layout(classes['train'], train, val)


def _folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
