"""Labels on a picture: each near what it names, off the objects and off one another."""

import math
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

FONT_SIZE = 20
FONT = ImageFont.load_default(FONT_SIZE)
RIGHT, WRONG = (90, 220, 110), (255, 80, 80)
# Of the text to the edge of its label, and of the positions that are tried.
PADDING, STEP = 3, 3
# A label farther from its object than this is joined to it by a line.
NEAR = 8


class Label(NamedTuple):
    """A text in a colour; ``right`` adds a tick (True) or a cross (False), None neither."""

    text: str
    colour: tuple[int, int, int]
    right: bool | None = None


def label_size(label: Label) -> tuple[int, int]:
    """Width and height in pixels."""
    left, _, right, _ = FONT.getbbox(label.text)
    mark = 0 if label.right is None else FONT_SIZE
    return math.ceil(right - left) + mark + 2 * PADDING, FONT_SIZE + 2 * PADDING


def draw_label(canvas: Image.Image, xy: tuple[int, int], label: Label) -> None:
    """Draws a label with its upper left corner at ``xy`` (pixels)."""
    draw, (x, y), (width, height) = ImageDraw.Draw(canvas), xy, label_size(label)
    draw.rectangle((x, y, x + width - 1, y + height - 1), fill='black')
    draw.text((x + PADDING, y + height // 2), label.text, fill=label.colour, font=FONT, anchor='lm')
    if label.right is None:
        return
    # Drawn, because hardly a font has both signs.
    side = FONT_SIZE - 8
    left, top = x + width - PADDING - side - 1, y + (height - side) // 2
    at = [(left + a * side, top + b * side) for a, b in _TICK]
    if label.right:
        draw.line(at, fill=RIGHT, width=3)
    else:
        draw.line((left, top, left + side, top + side), fill=WRONG, width=3)
        draw.line((left, top + side, left + side, top), fill=WRONG, width=3)


_TICK = ((0, 0.55), (0.35, 0.95), (1, 0.05))


def place_labels(
    sizes: list[tuple[int, int]], objects: list[np.ndarray], taken: np.ndarray
) -> list[tuple[int, int]]:
    """Finds a place for each label, in order: where it covers nothing, as near as that can be.

    Where there is no such place it covers other labels as little as possible, and then objects.

    Args:
        sizes (list[tuple]): Width and height of each label in pixels.
        objects (list[ndarray]): (H, W) bool, the object that each label names.
        taken (ndarray): (H, W) bool, what no label should cover.

    Returns:
        list[tuple]: Upper left corners, x and y; every label is inside the picture.

    Raises:
        ValueError: A label is larger than the picture.
    """
    height, width = taken.shape
    cost_of_objects, labels = _sums(taken), np.zeros_like(taken)
    places = []
    for (w, h), mask in zip(sizes, objects):
        if w > width or h > height:
            raise ValueError(f'a label of {w}x{h} pixels is larger than its picture')
        x, y = np.meshgrid(
            np.append(np.arange(0, width - w, STEP), width - w),
            np.append(np.arange(0, height - h, STEP), height - h),
        )
        cost = (
            1e6 * _inside(_sums(labels), x, y, w, h)
            + 1e3 * _inside(cost_of_objects, x, y, w, h)
            + _distance(mask, x, y, w, h)
        )
        best = cost.argmin()
        place = int(x.flat[best]), int(y.flat[best])
        labels[place[1] : place[1] + h, place[0] : place[0] + w] = True
        places.append(place)
    return places


def _sums(mask: np.ndarray) -> np.ndarray:
    """(H + 1, W + 1): pixels above and left of each corner."""
    return np.pad(mask.cumsum(0, dtype=np.int64).cumsum(1), ((1, 0), (1, 0)))


def _inside(sums: np.ndarray, x, y, w: int, h: int) -> np.ndarray:
    """Pixels of a mask in rectangles with their upper left corners at x and y."""
    return sums[y + h, x + w] - sums[y, x + w] - sums[y + h, x] + sums[y, x]


def _distance(mask: np.ndarray, x, y, w: int, h: int) -> np.ndarray:
    """From rectangles to the nearest pixel of a mask."""
    rows, columns = np.nonzero(mask)
    # Every fifth pixel or so: a stroke is wider.
    keep = slice(None, None, max(1, len(rows) // 300))
    dx = np.maximum(0, np.maximum(x[..., None] - columns[keep], columns[keep] - x[..., None] - w))
    dy = np.maximum(0, np.maximum(y[..., None] - rows[keep], rows[keep] - y[..., None] - h))
    return np.hypot(dx, dy).min(axis=-1) if len(rows) else np.zeros(x.shape)


def draw_labels(
    canvas: Image.Image, labels: list[Label], objects: list[np.ndarray], taken: np.ndarray
) -> None:
    """Places and draws labels; one that had to go far is joined to its object by a line."""
    sizes = [label_size(label) for label in labels]
    places = place_labels(sizes, objects, taken)
    for label, (x, y), (w, h), mask in zip(labels, places, sizes, objects):
        rows, columns = np.nonzero(mask)
        far = np.hypot(columns - (x + w / 2), rows - (y + h / 2))
        nearest = far.argmin()
        if _distance(mask, np.array([[x]]), np.array([[y]]), w, h)[0, 0] > NEAR:
            ImageDraw.Draw(canvas).line(
                (x + w / 2, y + h / 2, columns[nearest], rows[nearest]), fill=label.colour, width=2
            )
    for label, place in zip(labels, places):
        draw_label(canvas, place, label)
