"""What models find in pictures, next to the truth, with a mark for right and wrong."""

import colorsys
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from .labels import FONT, FONT_SIZE, Label, draw_label, draw_labels, label_size

TILE, GAP = 256, 6
# Of a tile's pixels: a smaller piece gets no label.
SPECK = 0.008
# The colour of what was not found.
MISSED = (200, 200, 200)
# Of a box with the truth, as in the AP50 of COCO.
OVERLAP = 0.5


class Instance(NamedTuple):
    """An object: class, box (x1, y1, x2, y2 in pixels), mask (H, W) bool, score of a prediction."""

    label: int
    box: tuple[float, float, float, float]
    mask: np.ndarray
    score: float | None = None


def colours(count: int) -> list[tuple[int, int, int]]:
    """One bright colour per class."""
    hues = (colorsys.hsv_to_rgb(i / count, 0.75, 1) for i in range(count))
    return [(round(255 * r), round(255 * g), round(255 * b)) for r, g, b in hues]


def _tile(image: Image.Image) -> Image.Image:
    return image.convert('RGB').resize((TILE, TILE), Image.Resampling.BICUBIC)


def _large(mask: np.ndarray) -> np.ndarray:
    """A mask (H, W) at the size of a tile."""
    tile = Image.fromarray(mask.astype(np.uint8)).resize((TILE, TILE), Image.Resampling.NEAREST)
    return np.asarray(tile).astype(bool)


def _paint(tile: Image.Image, mask: np.ndarray, colour, share: float) -> None:
    tile.paste(colour, mask=Image.fromarray((255 * share * mask).astype(np.uint8)))


def pair(truth: Image.Image, found: Image.Image) -> Image.Image:
    """Truth and prediction side by side, each below its name."""
    top = FONT_SIZE + 2 * GAP
    canvas = Image.new('RGB', (2 * TILE + GAP, TILE + top), 'white')
    for left, name, tile in ((0, 'truth', truth), (TILE + GAP, 'prediction', found)):
        ImageDraw.Draw(canvas).text((left, top // 2), name, fill='black', font=FONT, anchor='lm')
        canvas.paste(tile, (left, top))
    return canvas


def classified(
    image: Image.Image, truth: int, label: int, score: float, names: list[str]
) -> Image.Image:
    """A picture above what it is and what it was taken for."""
    rows = [
        Label(f'truth {names[truth]}', (255, 255, 255)),
        Label(f'found {names[label]}  {100 * score:.0f} %', (255, 255, 255), label == truth),
    ]
    height = label_size(rows[0])[1]
    canvas = Image.new('RGB', (TILE, TILE + len(rows) * height), 'black')
    canvas.paste(_tile(image), (0, 0))
    for i, row in enumerate(rows):
        draw_label(canvas, (4, TILE + i * height), row)
    return canvas


def match(truth: list[Instance], found: list[Instance]) -> list[int | None]:
    """For each prediction the index of the object that it finds, or None for a wrong one.

    The best prediction of an object counts: of its class, with an overlap of boxes (IoU) of 0.5 or
    more; the one with the highest score first, as in COCO's evaluation.
    """
    free = set(range(len(truth)))
    matches: list[int | None] = [None] * len(found)
    for i in sorted(range(len(found)), key=lambda i: -(found[i].score or 0)):
        overlaps = {
            j: box_iou(found[i].box, truth[j].box) for j in free if truth[j].label == found[i].label
        }
        best = max(overlaps, key=lambda j: overlaps[j], default=None)
        if best is not None and overlaps[best] >= OVERLAP:
            matches[i] = best
            free.remove(best)
    return matches


def box_iou(a, b) -> float:
    """Intersection over union of two boxes (x1, y1, x2, y2)."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0, width) * max(0, height)
    return shared / (sum((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)) - shared)


def detected(
    image: Image.Image, truth: list[Instance], found: list[Instance], names: list[str]
) -> Image.Image:
    """Objects and predictions side by side: a tick for a right one, a cross for a wrong one and for
    an object that was missed, whose box is grey."""
    matches = match(truth, found)
    missed = [truth[i] for i in range(len(truth)) if i not in matches]
    colour = colours(len(names))
    return pair(
        _draw_instances(
            image, [(t, Label(names[t.label], colour[t.label])) for t in truth], painted=truth
        ),
        _draw_instances(
            image,
            [
                (f, Label(f'{names[f.label]} {f.score:.2f}', colour[f.label], m is not None))
                for f, m in zip(found, matches)
            ]
            + [(t, Label(f'missed {names[t.label]}', MISSED, False)) for t in missed],
            painted=found,
        ),
    )


def _draw_instances(image, labelled: list[tuple[Instance, Label]], painted) -> Image.Image:
    tile = _tile(image)
    scale_x, scale_y = TILE / image.width, TILE / image.height
    masks = [_large(instance.mask) for instance, _ in labelled]
    taken = np.zeros((TILE, TILE), bool)
    for (instance, label), mask in zip(labelled, masks):
        if any(instance is other for other in painted):
            _paint(tile, mask, label.colour, 0.45)
        taken |= mask
    for instance, label in labelled:
        x1, y1, x2, y2 = instance.box
        box = (scale_x * x1, scale_y * y1, scale_x * x2, scale_y * y2)
        ImageDraw.Draw(tile).rectangle(box, outline=label.colour, width=2)
    draw_labels(tile, [label for _, label in labelled], masks, taken)
    return tile


def pieces(labels: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Connected pieces of the classes of a label map, without specks: label, mask (H, W) bool.

    Label 0 is the background, which is no piece.
    """
    from scipy import ndimage

    found = []
    for label in np.unique(labels[labels > 0]):
        numbered, count = ndimage.label(labels == label)  # pyright: ignore[reportGeneralTypeIssues]
        for i in range(1, count + 1):
            mask = numbered == i
            if mask.mean() >= SPECK:
                found.append((int(label), mask))
    return found


def segmented(
    image: Image.Image, truth: np.ndarray, found: np.ndarray, names: list[str]
) -> Image.Image:
    """Label maps over a picture side by side: a tick where most pixels of a piece are right, a
    cross where they are not, and at a piece of the truth of which most pixels were missed.

    Args:
        image (PIL.Image.Image): The picture.
        truth (ndarray): (H, W) integers, 0 the background.
        found (ndarray): The prediction, likewise.
        names (list[str]): Of the classes, the background's first.
    """
    colour = [MISSED, *colours(len(names) - 1)]
    objects, predicted = pieces(truth), pieces(found)
    missed = [(label, mask) for label, mask in objects if not _mostly(found, mask, label)]
    return pair(
        _draw_map(
            image,
            truth,
            [(mask, Label(names[label], colour[label])) for label, mask in objects],
            colour,
        ),
        _draw_map(
            image,
            found,
            [
                (mask, Label(names[label], colour[label], _mostly(truth, mask, label)))
                for label, mask in predicted
            ]
            + [(mask, Label(f'missed {names[label]}', MISSED, False)) for label, mask in missed],
            colour,
        ),
    )


def _mostly(labels: np.ndarray, mask: np.ndarray, label: int) -> bool:
    return bool((labels[mask] == label).mean() > 0.5)


def _draw_map(image, labels: np.ndarray, marks: list[tuple[np.ndarray, Label]], colour):
    tile = _tile(image)
    for label in np.unique(labels[labels > 0]):
        _paint(tile, _large(labels == label), colour[label], 0.75)
    masks = [_large(mask) for mask, _ in marks]
    taken = np.any([_large(labels > 0), *masks], axis=0)
    draw_labels(tile, [label for _, label in marks], masks, taken)
    return tile


def sheet(pictures: list[Image.Image], columns: int) -> Image.Image:
    """Pictures of one size in rows."""
    width, height = pictures[0].size
    rows = -(-len(pictures) // columns)
    canvas = Image.new('RGB', (columns * (width + GAP) + GAP, rows * (height + GAP) + GAP), 'white')
    for i, picture in enumerate(pictures):
        at = (GAP + i % columns * (width + GAP), GAP + i // columns * (height + GAP))
        canvas.paste(picture, at)
    return canvas
