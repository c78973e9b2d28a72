import numpy as np
import pytest
from PIL import Image

from mmhcnet.visualization import predictions
from mmhcnet.visualization.labels import RIGHT, WRONG
from mmhcnet.visualization.predictions import GAP, TILE, Instance, box_iou, match, pieces

NAMES = list('0123456789')


def instance(label, box, score=None, size=128):
    mask = np.zeros((size, size), bool)
    x1, y1, x2, y2 = map(int, box)
    mask[y1:y2, x1:x2] = True
    return Instance(label, box, mask, score)


def marks(picture):
    """Whether there are ticks and crosses in it."""
    colours = {colour for _, colour in picture.getcolors(1 << 24)}
    return RIGHT in colours, WRONG in colours


def halves(picture):
    return picture.crop((0, 0, TILE, picture.height)), picture.crop(
        (TILE + GAP, 0, picture.width, picture.height)
    )


def test_iou_of_boxes_is_that_of_coco():
    coco = pytest.importorskip('pycocotools.mask')
    rng = np.random.default_rng(0)
    corners = rng.random((2, 20, 2)) * 60
    boxes = np.concatenate([corners.min(axis=0), corners.max(axis=0) + 1], axis=1)
    as_coco = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    wanted = coco.iou(as_coco, as_coco, [0] * len(boxes))
    found = [[box_iou(a, b) for b in boxes] for a in boxes]
    np.testing.assert_allclose(found, wanted, atol=1e-9)


def test_matches():
    truth = [instance(3, (0, 0, 40, 40)), instance(5, (60, 60, 100, 100))]
    found = [
        instance(3, (0, 0, 40, 36), 0.7),  # found twice: the lower score is wrong
        instance(3, (0, 0, 40, 40), 0.9),
        instance(6, (60, 60, 100, 100), 0.8),  # another class
        instance(5, (60, 60, 100, 79), 0.95),  # less than half
    ]
    assert match(truth, found) == [None, 0, None, None]
    assert match(truth, [instance(5, (60, 60, 100, 81), 0.6)]) == [1]
    assert match([], found) == [None] * 4 and match(truth, []) == []


@pytest.mark.parametrize(
    'found, ticks, crosses',
    [
        ([(3, 0.9)], True, False),
        ([(4, 0.9)], False, True),
        ([], False, True),  # missed
    ],
)
def test_detected(found, ticks, crosses):
    image = Image.new('RGB', (128, 128))
    box = (30, 30, 80, 90)
    picture = predictions.detected(
        image, [instance(3, box)], [instance(label, box, score) for label, score in found], NAMES
    )
    truth, right = halves(picture)
    assert marks(truth) == (False, False)
    assert marks(right) == (ticks, crosses)


def test_detected_in_a_picture_that_is_no_square():
    image = Image.new('RGB', (200, 100))
    mask = np.zeros((100, 200), bool)
    mask[20:60, 100:180] = True
    wide = Instance(1, (100, 20, 180, 60), mask, 0.9)
    picture = predictions.detected(image, [wide], [wide], NAMES)
    painted = np.asarray(halves(picture)[1].crop((0, picture.height - TILE, TILE, picture.height)))
    # The lower right corner of the box, half a tile's width from the left: 180 / 200 and 60 / 100.
    corner = painted[round(0.6 * TILE) - 8, round(0.9 * TILE) - 8]
    outside = painted[round(0.6 * TILE) + 8, round(0.9 * TILE) - 8]
    assert corner.any() and not outside.any()


def test_pieces_without_specks():
    labels = np.zeros((128, 128), np.uint8)
    labels[10:40, 10:20] = 3
    labels[60:90, 60:70] = 3
    labels[0:8, 100:108] = 4  # 64 pixels
    found = pieces(labels)
    assert [label for label, _ in found] == [3, 3]
    assert sorted(int(mask.sum()) for _, mask in found) == [300, 300]


@pytest.mark.parametrize('wrong_rows, ticks', [(10, True), (30, False)])
def test_segmented(wrong_rows, ticks):
    truth = np.zeros((128, 128), np.uint8)
    truth[40:80, 40:80] = 3
    found = truth.copy()
    # Where the truth is the background: the piece is right as long as most of it is.
    truth[40 : 40 + wrong_rows] = 0
    left, right = halves(
        predictions.segmented(Image.new('RGB', (128, 128)), truth, found, ['background', *NAMES])
    )
    assert marks(left) == (False, False)
    assert marks(right) == (ticks, not ticks)


def test_a_missed_piece_is_marked():
    truth = np.zeros((128, 128), np.uint8)
    truth[40:80, 40:80] = 3
    image, names = Image.new('RGB', (128, 128)), ['background', *NAMES]
    for rows, missed in ((10, True), (30, False)):
        found = np.zeros_like(truth)
        found[40 : 40 + rows, 40:80] = 3
        _, right = halves(predictions.segmented(image, truth, found, names))
        # What is found of it is right all the same.
        assert marks(right) == (True, missed)


def test_nothing_found_and_nothing_there():
    empty = np.zeros((128, 128), np.uint8)
    image = Image.new('RGB', (128, 128), (1, 2, 3))
    names = ['background', *NAMES]
    for picture in (
        predictions.segmented(image, empty, empty, names),
        predictions.detected(image, [], [], NAMES),
    ):
        for half in halves(picture):
            tile = np.asarray(half)[-TILE:]
            assert (tile == (1, 2, 3)).all()


@pytest.mark.parametrize('label', [7, 1])
def test_classified(label):
    picture = predictions.classified(Image.new('RGB', (32, 32), 'blue'), 7, label, 0.98, NAMES)
    assert marks(picture) == (label == 7, label != 7)
    # The text is below the picture.
    assert (np.asarray(picture)[:TILE] == (0, 0, 255)).all()


def test_sheet():
    tiles = [Image.new('RGB', (20, 10), (i, 0, 0)) for i in range(1, 6)]
    sheet = predictions.sheet(tiles, 2)
    assert sheet.size == (2 * 20 + 3 * GAP, 3 * 10 + 4 * GAP)
    centre = (GAP + 20 + GAP + 10, GAP + 10 + GAP + 5)
    assert sheet.getpixel(centre) == (4, 0, 0)
