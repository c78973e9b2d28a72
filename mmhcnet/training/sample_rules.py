"""Samples that load without an error and are wrong all the same.

Older versions of OpenCV fill a JPEG file that is cut short and only warn; mmseg takes a label map
of any size and with any ids; mmdet leaves boxes without area out and says nothing.
"""

import bisect
import io
import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmhcnet.errors import UserError

JPEG, PNG = b'\xff\xd8', b'\x89PNG\r\n\x1a\n'
START_OF_SCAN, END_OF_IMAGE = b'\xff\xda', b'\xff\xd9'
# Training leaves a box out that has no side of a pixel, or of which none lies in the image.
LEAST_SIDE = 1
# A coordinate that is further from its image than so many of its sides was never meant. pycocotools
# ends the process on some of them, without an error that anybody could catch.
FARTHEST = 100
# Pixels of a run-length mask over those of its image, and where these are not known. It takes a
# byte for each, whatever the length of its file.
LARGEST_MASK, MASK_PIXELS = 16, 2**28


class BadSample(ValueError):
    """A sample that must not be trained on."""


class BadAnnotations(UserError):
    """Annotations that must not be read any further."""


def is_cut(file: str | bytes) -> bool:
    """Whether a JPEG or PNG file ends before its image does.

    What follows the image does not matter: phones put films there. A file without an end marker is
    decoded to know.

    Args:
        file (str or bytes): A local path or the content of a file; one of another format counts as
            complete, because OpenCV refuses it itself when it is cut short.
    """
    content = _content(file)
    return not _has_end(content) and not _decodes(content)


def _content(file: str | bytes) -> bytes:
    return file if isinstance(file, bytes) else Path(file).read_bytes()


def _has_end(content: bytes) -> bool:
    """Whether the end marker of a JPEG or PNG file is where its own structure leads."""
    if content.startswith(PNG):
        at = len(PNG)
        while at + 12 <= len(content):
            # Length of the data, name, data, checksum.
            length, name = int.from_bytes(content[at : at + 4], 'big'), content[at + 4 : at + 8]
            at += 12 + length
            if name == b'IEND':
                return at <= len(content)
        return False
    if content.startswith(JPEG):
        at = len(JPEG)
        # A segment may hold a thumbnail with an end marker; in the pixels there is none.
        while content[at : at + 2] != START_OF_SCAN:
            if at + 4 > len(content) or content[at] != 0xFF:
                return False
            at += 2 + int.from_bytes(content[at + 2 : at + 4], 'big')
        return content.rfind(END_OF_IMAGE, at) >= 0
    return True


def _decodes(content: bytes) -> bool:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
    except Image.DecompressionBombError:
        # Pillow's limit for images from strangers says nothing of the file.
        return True
    except (OSError, SyntaxError):
        return False
    return True


def png_size(file: str | bytes) -> tuple[int, int] | None:
    """Height and width that a PNG file states, or None for a file of another format.

    Args:
        file (str or bytes): A local path or the content of a file.
    """
    head = _content(file)[:24]
    if not head.startswith(PNG):
        return None
    return int.from_bytes(head[20:24], 'big'), int.from_bytes(head[16:20], 'big')


def _wraps(dataset: Any) -> bool:
    # Others keep a name or a table under this attribute.
    inner = getattr(dataset, 'dataset', None)
    return hasattr(inner, '__getitem__') and not isinstance(inner, (str, list, tuple, dict))


def source_of(dataset: Any, index: int) -> tuple[Any, int]:
    """The data set inside wrappers that a sample comes from, and the sample's index there.

    Args:
        dataset (Dataset): May be a RepeatDataset, ConcatDataset, ClassBalancedDataset,
            KFoldDataset, MultiImageMixDataset or torch Subset, in any nesting.
        index (int): Of the sample in ``dataset``.
    """
    while True:
        if hasattr(dataset, 'cumulative_sizes'):
            part = bisect.bisect_right(dataset.cumulative_sizes, index)
            index -= dataset.cumulative_sizes[part - 1] if part else 0
            dataset = dataset.datasets[part]
        elif _wraps(dataset):
            chosen = getattr(dataset, 'repeat_indices', getattr(dataset, 'indices', None))
            dataset = dataset.dataset
            index = index % len(dataset) if chosen is None else chosen[index]
        else:
            return dataset, index


def sources(dataset: Any) -> Iterator[Any]:
    """All data sets inside wrappers, as in :func:`source_of`."""
    if hasattr(dataset, 'cumulative_sizes'):
        for part in dataset.datasets:
            yield from sources(part)
    elif _wraps(dataset):
        yield from sources(dataset.dataset)
    else:
        yield dataset


def ids_without_class(labels: Any, classes: int, ignore_index: int) -> Any:
    """Which pixels of a label map hold an id that no class has and that is not ignored.

    Args:
        labels (Tensor or np.ndarray): Ids as the loss sees them, after ``reduce_zero_label``.
        classes (int): How many classes there are.
        ignore_index (int): The id of pixels without a label.
    """
    return ((labels < 0) | (labels >= classes)) & (labels != ignore_index)


def check_sample(
    sample: Any, dataset: Any, seen: dict[str, tuple[int, int] | None] | None = None
) -> None:
    """Look at what a pipeline of OpenMMLab has packed; anything else passes.

    Args:
        sample (dict): ``inputs`` (C, H, W) and ``data_samples``.
        dataset (Dataset): Where it comes from, without wrappers; knows the classes.
        seen (dict, optional): :func:`png_size` of the files of the sample whose content has passed
            :func:`is_cut` while it was read. Any other file of it is opened here.

    Raises:
        BadSample: The image file is cut short, or the label map has another size than the image or
            ids that no class has.
    """
    packed = sample.get('data_samples') if isinstance(sample, dict) else None
    path = getattr(packed, 'img_path', None)
    seen = seen or {}
    if isinstance(path, str) and path not in seen and os.path.isfile(path) and is_cut(path):
        raise BadSample('the image file is cut short')
    labels = getattr(packed, 'gt_sem_seg', None)
    if labels is not None:
        _check_label_map(packed, labels.data, dataset, seen)


def _check_label_map(packed: Any, labels: Any, dataset: Any, seen: dict) -> None:
    path, size = getattr(packed, 'seg_map_path', None), getattr(packed, 'ori_shape', None)
    if isinstance(path, str) and size is not None and (path in seen or os.path.isfile(path)):
        stated = seen[path] if path in seen else png_size(path)
        if stated not in (None, tuple(size[:2])):
            raise BadSample(
                f'the label map {path} is {stated[1]}x{stated[0]} and the image {size[1]}x{size[0]}'
            )
    classes = (getattr(dataset, 'metainfo', None) or {}).get('classes')
    if classes:
        wrong = ids_without_class(labels, len(classes), getattr(dataset, 'ignore_index', 255))
        if wrong.any():
            raise BadSample(
                f'the label map {path} has the id {int(labels[wrong].max())}, and '
                f'there are {len(classes)} classes'
            )


def is_left_out(box: Sequence[float], width: float, height: float) -> bool:
    """Whether mmdet's data set passes over a box.

    Args:
        box (Sequence[float]): x, y, width and height in pixels.
        width (float): Of the image.
        height (float): Of the image.
    """
    x, y, w, h = box
    inside = min(x + w, width) > max(x, 0) and min(y + h, height) > max(y, 0)
    return w < LEAST_SIDE or h < LEAST_SIDE or not inside


def boxes_left_out(ann_file: str | dict) -> Iterator[str]:
    """The annotations of a COCO file that mmdet's data set passes over because of their box.

    Args:
        ann_file (str or dict): A JSON file or its content; nothing is found in one of another
            layout.
    """
    content = ann_file if isinstance(ann_file, dict) else json.loads(Path(ann_file).read_bytes())
    if not isinstance(content, dict) or not {'images', 'annotations'} <= set(content):
        return
    images = {image['id']: image for image in content['images']}
    for annotation in content['annotations']:
        image, box = images.get(annotation.get('image_id')), annotation.get('bbox') or ()
        # What is malformed, mmdet names itself.
        if image is None or len(box) != 4:
            continue
        if is_left_out(box, image['width'], image['height']):
            yield (
                f"annotation {annotation['id']} of {image['file_name']}: bbox {box} in an image "
                f"of {image['width']}x{image['height']}"
            )


def absurd_coordinates(annotation: dict, image: dict) -> str | None:
    """What of an annotation of COCO's form no image can have, or None.

    Args:
        annotation (dict): With ``bbox`` and ``segmentation``, as far as it has them.
        image (dict): With ``width`` and ``height``.
    """
    sides = [
        side
        for side in (image.get('width'), image.get('height'))
        if isinstance(side, (int, float)) and math.isfinite(side)
    ]
    limit = FARTHEST * max([1, *sides])
    polygons = annotation.get('segmentation')
    if isinstance(polygons, dict):
        return _absurd_mask(polygons.get('size'), sides)
    for name, values in (
        ('bbox', [annotation.get('bbox')]),
        ('segmentation', polygons if isinstance(polygons, list) else []),
    ):
        for numbers in values:
            # What is malformed, mmdet names itself.
            if (
                not isinstance(numbers, (list, tuple))
                or not numbers
                or not all(type(number) in (int, float) for number in numbers)
            ):
                continue
            # What is not a number passes comparisons, and makes the sum none.
            if not (
                -limit <= min(numbers) and max(numbers) <= limit and math.isfinite(sum(numbers))
            ):
                worst = max(numbers, key=lambda n: abs(n) if n == n else math.inf)
                return f'{name} has the coordinate {worst}'
    return None


def _absurd_mask(size: Any, sides: list[float]) -> str | None:
    """Whether a run-length mask is larger than any of an image with these sides."""
    # What is malformed, pycocotools names itself.
    if (
        not isinstance(size, (list, tuple))
        or len(size) != 2
        or not all(type(number) in (int, float) for number in size)
    ):
        return None
    most = LARGEST_MASK * max(1, math.prod(sides)) if len(sides) == 2 else MASK_PIXELS
    # What is not a number passes comparisons.
    if math.prod(size) <= most:
        return None
    return f'segmentation is a mask of {size[1]}x{size[0]} pixels'


def absurd_annotations(content: Any) -> Iterator[str]:
    """The annotations of a COCO file with :func:`absurd_coordinates`.

    Args:
        content (dict): Content of the file; nothing is found in one of another layout.
    """
    if not isinstance(content, dict) or not {'images', 'annotations'} <= set(content):
        return
    images = {image['id']: image for image in content['images']}
    for annotation in content['annotations']:
        image = images.get(annotation.get('image_id'), {})
        found = absurd_coordinates(annotation, image)
        if found:
            yield (
                f"annotation {annotation.get('id')} of {image.get('file_name', 'no image')}: "
                f'{found}'
            )


def refuse_absurd_annotations(content: Any, file: str) -> None:
    """End a run before pycocotools does.

    Raises:
        BadAnnotations: The file has :func:`absurd_annotations`.
    """
    found = list(absurd_annotations(content))
    if found:
        raise BadAnnotations(
            f'{len(found)} annotations of {file} have coordinates or sizes that no image has: '
            f'{"; ".join(found[:5])}{"; ..." * (len(found) > 5)}. Correct or remove them'
        )
