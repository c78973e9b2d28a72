import itertools

import numpy as np
import pytest
from PIL import Image

from mmhcnet.visualization.labels import (
    RIGHT,
    STEP,
    WRONG,
    Label,
    draw_label,
    draw_labels,
    label_size,
    place_labels,
)

WHITE = (255, 255, 255)


def covered(place, size, mask):
    (x, y), (w, h) = place, size
    return np.count_nonzero(mask[y : y + h, x : x + w])


@pytest.mark.parametrize('seed', range(4))
def test_labels_cover_neither_objects_nor_one_another(seed):
    rng = np.random.default_rng(seed)
    objects = []
    for x, y in rng.integers(0, 180, (5, 2)):
        objects.append(np.zeros((256, 256), bool))
        objects[-1][y : y + 70, x : x + 24] = True
    taken = np.any(objects, axis=0)
    sizes = [(int(rng.integers(20, 80)), 26) for _ in objects]
    places = place_labels(sizes, objects, taken)
    for (x, y), (w, h) in zip(places, sizes):
        assert 0 <= x <= 256 - w and 0 <= y <= 256 - h
        assert covered((x, y), (w, h), taken) == 0
    for (a, (w, h)), (b, (v, u)) in itertools.combinations(zip(places, sizes), 2):
        apart = a[0] + w <= b[0] or b[0] + v <= a[0] or a[1] + h <= b[1] or b[1] + u <= a[1]
        assert apart, (a, b)


def test_a_label_is_at_its_object():
    mask = np.zeros((256, 256), bool)
    mask[100:160, 100:140] = True
    ((x, y),) = place_labels([(30, 20)], [mask], mask)
    # It touches the object up to the step of the search, and does not cover it.
    assert 100 - 30 - STEP <= x <= 140 + STEP and 100 - 20 - STEP <= y <= 160 + STEP
    assert covered((x, y), (30, 20), mask) == 0


def test_where_there_is_no_room_as_little_as_possible_is_covered():
    taken = np.ones((66, 60), bool)
    taken[:, 50:] = False
    places = place_labels([(40, 20)] * 3, [taken] * 3, taken)
    # All at the right edge, below one another.
    assert {x for x, _ in places} == {20}
    tops = sorted(y for _, y in places)
    assert tops[1] - tops[0] >= 20 and tops[2] - tops[1] >= 20


def test_a_label_larger_than_the_picture():
    with pytest.raises(ValueError, match='80x20 pixels is larger than its picture'):
        place_labels([(80, 20)], [np.ones((60, 60), bool)], np.ones((60, 60), bool))


@pytest.mark.parametrize('right, sign', [(True, RIGHT), (False, WRONG), (None, None)])
def test_the_mark(right, sign):
    label = Label('7', WHITE, right)
    canvas = Image.new('RGB', (100, 60), (9, 9, 9))
    draw_label(canvas, (10, 10), label)
    colours = {colour for _, colour in canvas.getcolors(10000)}
    assert WHITE in colours
    assert {RIGHT, WRONG} & colours == ({sign} if sign else set())
    # Nothing is drawn outside of the size that was reckoned with.
    w, h = label_size(label)
    drawn = np.argwhere(np.any(np.asarray(canvas) != 9, axis=-1))
    assert drawn.min(axis=0).tolist() == [10, 10]
    assert (drawn.max(axis=0) + 1).tolist() == [10 + h, 10 + w]


def test_a_far_label_is_joined_to_its_object():
    mask = np.zeros((256, 256), bool)
    mask[120:136, 20:36] = True
    # Room only at the right edge.
    taken = np.ones((256, 256), bool)
    taken[:, 200:] = False
    canvas = Image.new('RGB', (256, 256))
    draw_labels(canvas, [Label('7', (255, 0, 0))], [mask], taken)
    red = np.asarray(canvas)[..., 0] == 255
    assert red[:, 60:180].any(axis=0).all()
    near = Image.new('RGB', (256, 256))
    draw_labels(near, [Label('7', (255, 0, 0))], [mask], mask)
    assert not (np.asarray(near)[:, 100:, 0] == 255).any()
