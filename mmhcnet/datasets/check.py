"""Look for what is missing or broken in the data of a config, without training on it.

A data set is built lazily, only to learn where it looks and which classes it has; its files are
then read here, so that each fault is named with the file and with what mends it.
"""
import json
import os
from collections import Counter, defaultdict
from pathlib import Path
from typing import Callable, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from PIL import Image

# Files that are opened per data set unless all are asked for.
SAMPLE = 200
# Boxes of COCO itself leave the image by fractions of a pixel.
BOX_TOLERANCE = 1.
Progress = Callable[[Sequence], Iterable]


class Finding(NamedTuple):
    """One fault.

    Attributes:
        kind (str): What faults of this sort are called, for counting them.
        where (str): A file or folder, or a key of the config.
        problem (str): What is wrong.
        cure (str): What mends it.
        fatal (bool): False where training leaves the thing out and goes on.
    """
    kind: str
    where: str
    problem: str
    cure: str
    fatal: bool = True

    def __str__(self) -> str:
        return f"{'ERROR' if self.fatal else 'note '} {self.where}: {self.problem}: {self.cure}"


def sample_of(paths: Sequence, full: bool) -> Sequence:
    """All, or at most ``SAMPLE`` evenly spaced ones."""
    return paths if full else paths[::-(-len(paths) // SAMPLE) or 1]


def _open_error(path: str) -> Optional[Finding]:
    """Reads a whole image."""
    try:
        with Image.open(path) as image:
            image.load()
    except OSError as error:
        size = os.path.getsize(path)
        problem = 'is empty' if not size else (
            'is truncated' if 'truncated' in str(error) else 'is not an image')
        return Finding('unreadable images', path, f'{problem} ({size} bytes)',
                       'copy or download it again, or remove it')
    return None


def check_images(paths: Sequence[str], full: bool, progress: Progress) -> Iterator[Finding]:
    """Opens images."""
    for path in progress(sample_of(paths, full)):
        found = _open_error(path)
        if found:
            yield found


def _files(folder: str) -> List[str]:
    """Paths of all files below a folder, relative to it, sorted."""
    return sorted(os.path.relpath(os.path.join(root, name), folder)
                  for root, _, names in os.walk(folder, followlinks=True) for name in names)


# Classification: a folder per class, or a list of files with labels

def check_classification(dataset, num_classes: Optional[int], full: bool,
                         progress: Progress) -> Iterator[Finding]:
    """Class folders or the annotation file of a data set of mmpretrain, and its images.

    Args:
        dataset: A ``CustomDataset``, lazily initialised.
        num_classes (int, optional): Classes of the model's head.
        full (bool): Open all images instead of a sample.
        progress (Callable): Wraps a sequence that is walked through.
    """
    if dataset.ann_file:
        yield from _check_list(dataset, num_classes, full, progress)
        return
    root = dataset.img_prefix
    if not os.path.isdir(root):
        yield Finding('missing folders', root, 'is not there',
                      'copy or link the class folders there, or correct data_root')
        return
    paths, loose = [], []
    folders: Dict[str, int] = {}
    for name in progress(sorted(os.listdir(root))):
        folder = os.path.join(root, name)
        if not os.path.isdir(folder):
            loose.append(folder)
            continue
        files = _files(folder)
        images = [os.path.join(folder, file) for file in files if dataset.is_valid_file(file)]
        folders[name] = len(images)
        paths += images
        if not images:
            yield Finding('empty class folders', folder,
                          f'no image in it, {len(files)} other files',
                          'unpack or copy the images of this class into it, or remove the folder')
        elif len(images) < len(files):
            other = next(file for file in files if not dataset.is_valid_file(file))
            yield Finding('files that are no images', os.path.join(folder, other),
                          f'one of {len(files) - len(images)} files in this folder that training '
                          'does not read', 'remove them, or convert them to images', fatal=False)
    images = [path for path in loose if dataset.is_valid_file(path)]
    if images:
        yield Finding('images without a class', images[0],
                      f'one of {len(images)} images that are in no class folder',
                      'move each into the folder of its class, or set ann_file to a list of '
                      'lines "path label"', fatal=not folders)
    expected = num_classes if dataset.CLASSES is None else len(dataset.CLASSES)
    if expected is not None and len(folders) != expected:
        yield Finding('wrong number of classes', root,
                      f'{len(folders)} class folders, and the config has {expected} classes',
                      "complete the folders, or set model.head.num_classes and the data set's "
                      'metainfo.classes (or ann_file)')
    yield from check_images(paths, full, progress)


def _check_list(dataset, num_classes: Optional[int], full: bool,
                progress: Progress) -> Iterator[Finding]:
    paths = []
    expected = num_classes if dataset.CLASSES is None else len(dataset.CLASSES)
    for number, line in enumerate(Path(dataset.ann_file).read_text().splitlines(), 1):
        name, _, label = line.strip().rpartition(' ')
        where = f'{dataset.ann_file}:{number}'
        if not name or not label.isdigit():
            yield Finding('unreadable lines', where, f'{line!r} is not "path label"',
                          'write the path of the image, a space and the number of its class')
            continue
        if expected is not None and int(label) >= expected:
            yield Finding('labels out of range', where,
                          f'label {label}, and the config has {expected} classes',
                          'correct it (classes count from 0), or set model.head.num_classes')
        path = os.path.join(dataset.img_prefix, name)
        if os.path.isfile(path):
            paths.append(path)
        else:
            yield Finding('missing images', path, f'is not there, and {where} names it',
                          'copy it there, or remove the line')
    yield from check_images(paths, full, progress)


# Detection: COCO's JSON

# What mmdet reads of each entry.
_COCO_KEYS = dict(images=('id', 'file_name', 'width', 'height'),
                  annotations=('id', 'image_id', 'category_id', 'bbox', 'area'),
                  categories=('id', 'name'))


def _incomplete(file: str, content: dict) -> Iterator[Finding]:
    """Takes entries that lack a key out of ``content``, and names them."""
    for name, keys in _COCO_KEYS.items():
        complete = []
        for number, entry in enumerate(content[name]):
            lacking = [key for key in keys if key not in entry]
            if lacking:
                yield Finding('incomplete entries', f'{file}: {name}[{number}]',
                              f'has no {" and no ".join(lacking)}', 'add it, or remove the entry')
            else:
                complete.append(entry)
        content[name] = complete


def _box_finding(where: str, box, width: float, height: float) -> Optional[Finding]:
    legal = isinstance(box, list) and len(box) == 4 and all(
        isinstance(v, (int, float)) and np.isfinite(v) for v in box)
    if not legal:
        return Finding('malformed boxes', where, f'bbox is {box}',
                       'write [x, y, width, height] in pixels')
    x, y, w, h = box
    if w < 1 or h < 1:
        return Finding('boxes below a pixel', where, f'bbox {box} has no area',
                       'training leaves it out; remove or correct it', fatal=False)
    if (min(x, y) < -BOX_TOLERANCE or x + w > width + BOX_TOLERANCE
            or y + h > height + BOX_TOLERANCE):
        return Finding('boxes outside their image', where,
                       f'bbox {box} leaves the image of {width}x{height}',
                       'write [x, y, width, height] in pixels, not two corners and not fractions '
                       'of the image')
    return None


def _has_mask(annotation: dict) -> bool:
    mask = annotation.get('segmentation')
    if isinstance(mask, dict):
        return bool(mask.get('counts'))
    return bool(mask) and all(isinstance(part, list) and len(part) >= 6 for part in mask)


def check_coco(dataset, with_mask: bool, full: bool, progress: Progress) -> Iterator[Finding]:
    """The annotation file of a data set of mmdet in COCO's format, and its images.

    Args:
        dataset: A ``CocoDataset``, lazily initialised.
        with_mask (bool): The pipeline loads masks.
        full (bool): Open all images instead of a sample.
        progress (Callable): Wraps a sequence that is walked through.
    """
    file = dataset.ann_file
    try:
        content = json.loads(Path(file).read_text())
    except (ValueError, OSError) as error:
        yield Finding('unreadable annotations', file, f'is not JSON ({error})',
                      'copy or export it again')
        return
    absent = [key for key in _COCO_KEYS
              if not isinstance(content, dict) or not isinstance(content.get(key), list)]
    if absent:
        yield Finding('unreadable annotations', file, f'has no list {" and no list ".join(absent)}',
                      "write it in COCO's format for instances")
        return

    yield from _incomplete(file, content)
    yield from _check_categories(file, content['categories'], dataset.metainfo['classes'])
    images = {image['id']: image for image in content['images']}
    categories = {category['id'] for category in content['categories']}
    for key, entries in (('images', content['images']), ('annotations', content['annotations'])):
        twice = [i for i, n in Counter(entry['id'] for entry in entries).items() if n > 1]
        if twice:
            yield Finding('repeated ids', file, f'{len(twice)} ids of {key} occur more than once, '
                          f'the first: {twice[0]}', 'number them anew')
    for annotation in content['annotations']:
        where = f"{file}: annotation {annotation['id']}"
        image = images.get(annotation['image_id'])
        if image is None:
            yield Finding('annotations without an image', where,
                          f"names image {annotation['image_id']}, which is not in the file",
                          'add the image or remove the annotation')
            continue
        if annotation['category_id'] not in categories:
            yield Finding('unknown categories', where,
                          f"names category {annotation['category_id']}, which is not in the file",
                          'add the category or correct the number')
        found = _box_finding(where, annotation.get('bbox'), image['width'], image['height'])
        if found:
            yield found
        if with_mask and not _has_mask(annotation):
            yield Finding('annotations without a mask', where, 'has no segmentation',
                          'add polygons or run-length masks, or train a model of boxes only '
                          '(with_mask=False, no mask head)')
    yield from _check_coco_images(dataset, list(images.values()), full, progress)


def _check_categories(file: str, categories: List[dict],
                      classes: Sequence[str]) -> Iterator[Finding]:
    names = [category['name'] for category in categories]
    missing = [name for name in classes if name not in names]
    unused = [name for name in names if name not in classes]
    if missing:
        yield Finding('categories do not match', file,
                      f"no category {', '.join(map(repr, missing[:5]))}"
                      f"{', ...' if len(missing) > 5 else ''}, which the config's classes have",
                      'set metainfo=dict(classes=(...)) of the data set to the names in the file: '
                      f'{names[:10]}')
    if unused:
        yield Finding('categories do not match', file,
                      f'{len(unused)} categories, as {unused[0]!r}, are not among the classes of '
                      'the config', "training leaves their boxes out; add them to the data set's "
                      "metainfo.classes and the heads' num_classes to learn them", fatal=False)


def _check_coco_images(dataset, images: List[dict], full: bool,
                       progress: Progress) -> Iterator[Finding]:
    root = dataset.data_prefix['img']
    paths = {}
    for image in images:
        path = os.path.join(root, image['file_name'])
        if os.path.isfile(path):
            paths[path] = image['width'], image['height']
        else:
            yield Finding('missing images', path,
                          f'is not there, and {dataset.ann_file} names it',
                          'copy it there, or correct data_prefix.img')
    for path in progress(sample_of(list(paths), full)):
        found = _open_error(path)
        if found:
            yield found
            continue
        with Image.open(path) as image:
            size = image.size
        if size != paths[path]:
            yield Finding('wrong image sizes', path,
                          f'is {size[0]}x{size[1]}, and {dataset.ann_file} says '
                          f'{paths[path][0]}x{paths[path][1]}', 'correct width and height there')


# Segmentation: pairs of an image and a label map

def check_segmentation(dataset, full: bool, progress: Progress) -> Iterator[Finding]:
    """Images and label maps of a data set of mmseg.

    Args:
        dataset: A ``BaseSegDataset``, lazily initialised.
        full (bool): Open all pairs instead of a sample.
        progress (Callable): Wraps a sequence that is walked through.
    """
    folders = dataset.data_prefix['img_path'], dataset.data_prefix['seg_map_path']
    suffixes = dataset.img_suffix, dataset.seg_map_suffix
    if dataset.ann_file:
        names = [line.strip() for line in Path(dataset.ann_file).read_text().splitlines()]
        stems = [[name for name in names if os.path.isfile(os.path.join(folder, name + suffix))]
                 for folder, suffix in zip(folders, suffixes)]
        for name in set(names) - set(stems[0]):
            yield Finding('missing images', os.path.join(folders[0], name + suffixes[0]),
                          f'is not there, and {dataset.ann_file} names it',
                          'copy it there, or remove the line')
    else:
        stems = [[file[:-len(suffix)] for file in _files(folder) if file.endswith(suffix)]
                 for folder, suffix in zip(folders, suffixes)]
    for folder, suffix, found, key in zip(folders, suffixes, stems, ('img', 'seg_map')):
        if not found:
            yield Finding('no files', folder, f'no file *{suffix} in it',
                          f'copy the files there, or set {key}_suffix of the data set to theirs')
    if not all(stems):
        return
    images, maps = map(set, stems)
    for name in sorted(images - maps):
        yield Finding('images without a label map', os.path.join(folders[0], name + suffixes[0]),
                      f'no {os.path.join(folders[1], name + suffixes[1])}',
                      'add the label map or remove the image')
    for name in sorted(maps - images):
        yield Finding('label maps without an image', os.path.join(folders[1], name + suffixes[1]),
                      f'no {os.path.join(folders[0], name + suffixes[0])}',
                      'training leaves it out; add the image or remove the label map', fatal=False)
    pairs = [tuple(os.path.join(folder, name + suffix)
                   for folder, suffix in zip(folders, suffixes))
             for name in sorted(images & maps)]
    for image, labels in progress(sample_of(pairs, full)):
        yield from _check_pair(image, labels, dataset)


def _check_pair(image: str, labels: str, dataset) -> Iterator[Finding]:
    broken = [found for found in map(_open_error, (image, labels)) if found]
    if broken:
        yield from broken
        return
    with Image.open(image) as opened:
        size = opened.size
    with Image.open(labels) as opened:
        ids = np.asarray(opened)
    if ids.ndim != 2:
        yield Finding('label maps with colours', labels, f'has {ids.shape[-1]} channels',
                      'write one channel with the number of the class of each pixel')
        return
    if ids.shape[::-1] != size:
        yield Finding('sizes differ', labels,
                      f'is {ids.shape[1]}x{ids.shape[0]}, and its image {size[0]}x{size[1]}',
                      'resize one of them (label maps without interpolation)')
    # A subset of the classes is taken from label maps of all.
    classes = (type(dataset).METAINFO if dataset.label_map else dataset.metainfo)['classes']
    last = len(classes) - 1 + dataset.reduce_zero_label
    wrong = [int(i) for i in np.unique(ids) if i > last and i != dataset.ignore_index]
    if wrong:
        other = ', 0 for all others' if dataset.reduce_zero_label else ''
        yield Finding('labels out of range', labels,
                      f'holds {", ".join(map(str, wrong[:5]))}, and {len(classes)} classes are '
                      f'{int(dataset.reduce_zero_label)} to {last}{other} and '
                      f'{dataset.ignore_index} for no label',
                      'number the labels anew, or set metainfo.classes and reduce_zero_label of '
                      'the data set')


def heads(model: dict, key: str = 'model') -> Iterator[Tuple[str, int]]:
    """Config keys and values of ``num_classes`` in a model's config."""
    for name, value in model.items():
        if name == 'num_classes':
            yield f'{key}.num_classes', value
        elif isinstance(value, dict):
            yield from heads(value, f'{key}.{name}')
        elif isinstance(value, (list, tuple)):
            for i, part in enumerate(value):
                if isinstance(part, dict):
                    yield from heads(part, f'{key}.{name}.{i}')


def check_heads(model: dict, classes: int) -> Iterator[Finding]:
    """Whether the heads of a detector or segmentor have as many classes as its data."""
    for key, number in heads(model):
        # A region proposal network tells objects from background only.
        if number != classes and '.rpn_head.' not in key:
            yield Finding('wrong number of classes', key,
                          f'is {number}, and the data set has {classes} classes',
                          f'set it to {classes}, or metainfo.classes of the data set')


def grouped(findings: Iterable[Finding]) -> Dict[str, List[Finding]]:
    """Findings by kind, in the order in which they came."""
    groups = defaultdict(list)
    for finding in findings:
        groups[finding.kind].append(finding)
    return groups
