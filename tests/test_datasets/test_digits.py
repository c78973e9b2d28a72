import hashlib
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmhcnet.datasets import digits

TOOL = Path(__file__).parents[2] / 'tools/dataset_converters/make_digits.py'
SMALL = dict(images=(20, 10), scenes=(3, 2))
SMALL_SHA256 = 'ac0e1279f327a9443cb40d182ea15219f4495e0ced3b48c76f4221ec843a1be8'


@pytest.fixture(scope='module')
def small(tmp_path_factory):
    root = tmp_path_factory.mktemp('data') / 'digits'
    digits.write_digits(root, **SMALL)
    return root


@pytest.fixture(scope='module')
def scenes():
    """Thirty scenes: image (128, 128, 3), masks (n, 128, 128), labels (n,), full areas (n,)."""
    glyphs, labels = digits.load_glyphs()
    sources, _ = digits.split_sources(labels, seed=0)
    place, drawn = digits._place, []

    def record(*args):
        placed = place(*args)
        drawn.append(np.count_nonzero(placed[0] >= 0.5))
        return placed

    made = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digits, '_place', record)
        for index in range(30):
            drawn.clear()
            image, masks, chosen = digits.draw_scene(glyphs, labels, sources, 0, 0, index)
            made.append((image, masks, chosen, list(drawn)))
    return made


def load(path):
    with Image.open(path) as image:
        return np.array(image)


def decode(rle):
    """Decode uncompressed RLE by its definition, one run after the other."""
    flat, value = [], False
    for count in rle['counts']:
        flat += [value] * count
        value = not value
    height, width = rle['size']
    return np.array(flat, dtype=bool).reshape(width, height).T


def snapshot(root):
    return {
        path.relative_to(root): path.read_bytes() if path.is_file() else None
        for path in sorted(root.rglob('*'))
    }


# the pure parts


def test_source_digits():
    glyphs, labels = digits.load_glyphs()
    assert glyphs.shape == (1797, 8, 8) and glyphs.dtype == np.uint8 and glyphs.max() == 16
    train, val = digits.split_sources(labels, seed=0)
    assert len(np.intersect1d(train, val)) == 0
    np.testing.assert_array_equal(np.union1d(train, val), np.arange(1797))
    share = np.bincount(labels[val]) / np.bincount(labels)
    assert np.all(np.abs(share - 0.2) < 0.01)
    assert not np.array_equal(val, digits.split_sources(labels, seed=1)[1])


def test_interpolate_reproduces_samples_and_parabolas():
    at = np.arange(8.0)
    values = np.stack([at**2, 3 - at])
    np.testing.assert_array_equal(digits.interpolate(values, at[None]), values)
    between = np.array([[2.25, 4.5]])
    expected = np.stack([between[0] ** 2, 3 - between[0]])
    np.testing.assert_allclose(digits.interpolate(values, between), expected)


def test_render_glyph():
    glyph = np.full((8, 8), 16, dtype=np.uint8)
    coverage, ink = digits.render_glyph(glyph, height=40, aspect=0.5, slant=0, threshold=0.5)
    assert coverage.min() >= 0 and coverage.max() == 1 and coverage.shape == ink.shape
    assert coverage.any(axis=0).all() and coverage.any(axis=1).all()
    _, _, height, width = digits._box(coverage >= 0.5)
    assert (height, width) == (40, 20)


def test_ink_inside_a_glyph():
    """A filled loop is covered all over, and fainter than the strokes around it."""
    glyph = np.full((8, 8), 16, dtype=np.uint8)
    glyph[2:6, 2:6] = 10
    coverage, ink = digits.render_glyph(glyph, height=40, aspect=1, slant=0, threshold=0.5)
    middle, stroke = np.s_[20:24, 20:24], np.s_[4:8, 20:24]
    assert (coverage[middle] == 1).all() and (coverage[stroke] == 1).all()
    # (10 / 16 - threshold) / (1 - threshold) = 1 / 4
    np.testing.assert_allclose(ink[middle], 1 / 4, atol=0.02)
    np.testing.assert_array_equal(ink[stroke], 1)


@pytest.mark.parametrize('slant, sign', [(0.2, 1), (-0.2, -1)])
def test_positive_slant_leans_right(slant, sign):
    glyph = np.zeros((8, 8), dtype=np.uint8)
    glyph[:, 3:5] = 16
    coverage, _ = digits.render_glyph(glyph, height=40, aspect=1, slant=slant, threshold=0.5)
    mask = coverage >= 0.5
    top, bottom = (np.flatnonzero(mask[row]).mean() for row in (8, -8))
    assert sign * (top - bottom) > 3


def test_masks(scenes):
    for image, masks, labels, full_areas in scenes:
        assert image.shape == (128, 128, 3) and image.dtype == np.uint8
        assert masks.dtype == bool and 2 <= len(masks) == len(labels) <= 4
        assert masks.sum(axis=0).max() == 1
        visible = masks.sum(axis=(1, 2)) / full_areas
        assert visible.min() >= 0.8 and visible.max() <= 1
    counts = {len(masks) for _, masks, _, _ in scenes}
    assert counts == {2, 3, 4}
    assert any(np.any(masks.sum(axis=(1, 2)) < full) for _, masks, _, full in scenes)


def test_digits_stand_out(scenes):
    for image, masks, _, _ in scenes:
        for mask in masks:
            top, left, height, width = digits._box(mask)
            window = np.s_[top : top + height, left : left + width]
            inside, outside = image[window][mask[window]], image[window][~mask[window]]
            distance = np.abs(np.median(inside, axis=0) - np.median(outside, axis=0))
            assert distance.max() > 30


def test_instances(scenes):
    image, masks, labels, _ = scenes[0]
    instances = digits.coco_instances(masks, labels, image_id=7, first_id=11)
    assert [instance['id'] for instance in instances] == list(range(11, 11 + len(masks)))
    for instance, mask, label in zip(instances, masks, labels):
        assert instance['category_id'] == label + 1
        assert instance['image_id'] == 7 and instance['iscrowd'] == 0
        assert instance['area'] == mask.sum()
        x, y, width, height = instance['bbox']
        inside = mask[y : y + height, x : x + width]
        assert inside.sum() == mask.sum()
        assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()
    json.dumps(instances)


def test_label_map(scenes):
    _, masks, labels, _ = scenes[0]
    merged = digits.label_map(masks, labels)
    assert merged.dtype == np.uint8
    np.testing.assert_array_equal(merged == 0, ~masks.any(axis=0))
    for mask, label in zip(masks, labels):
        assert np.all(merged[mask] == label + 1)


RLE_MASKS = [
    np.array(mask, dtype=bool)
    for mask in ([[0, 1], [1, 1]], [[1, 0, 0], [0, 0, 1]], np.zeros((3, 2)), np.ones((2, 3)), [[1]])
]


def test_rle_is_column_major():
    assert digits.encode_rle(RLE_MASKS[0]) == dict(size=[2, 2], counts=[1, 3])
    assert digits.encode_rle(RLE_MASKS[1]) == dict(size=[2, 3], counts=[0, 1, 4, 1])


@pytest.mark.parametrize('mask', RLE_MASKS)
def test_rle_round_trip(mask):
    np.testing.assert_array_equal(decode(digits.encode_rle(mask)), mask)


def test_rle_round_trip_in_pycocotools(scenes):
    coco = pytest.importorskip('pycocotools.mask')
    masks = RLE_MASKS + [mask for _, masks, _, _ in scenes for mask in masks]
    for mask in masks:
        rle = digits.encode_rle(mask)
        np.testing.assert_array_equal(coco.decode(coco.frPyObjects(rle, *rle['size'])), mask)


def test_no_room():
    glyphs = digits.load_glyphs()[0][:40]
    with pytest.raises(ValueError, match='fewer or smaller glyphs'):
        digits.compose_scene(np.random.RandomState(0), glyphs, size=64, heights=(30, 40))


# the written set


def test_pixels_never_change(small):
    assert json.loads((small / 'digits.json').read_text()) == dict(
        version=3, seed=0, images=[20, 10], scenes=[3, 2], sha256=SMALL_SHA256
    )


def test_digest_is_of_the_files(small):
    digest = hashlib.sha256()
    for cls, det, seg in digits.SPLITS:
        for path in sorted(small.glob(f'classification/{cls}/*/*.png'), key=lambda path: path.name):
            digest.update(load(path).tobytes())
        for path in sorted(small.glob(f'detection/{det}/*.png')):
            digest.update(load(path).tobytes())
            digest.update(load(small / 'segmentation/annotations' / seg / path.name).tobytes())
        digest.update((small / f'detection/annotations/instances_{det}.json').read_bytes())
    assert digest.hexdigest() == SMALL_SHA256


def test_another_seed_is_another_set(small, tmp_path):
    record = digits.write_digits(tmp_path / 'digits', seed=1, **SMALL)
    assert record['sha256'] != SMALL_SHA256


@pytest.mark.parametrize('split, count', [('train', 20), ('val', 10)])
def test_classification(small, split, count):
    root = small / 'classification' / split
    assert sorted(path.name for path in root.iterdir()) == list('0123456789')
    for folder in root.iterdir():
        images = [load(path) for path in folder.glob('*.png')]
        assert len(images) == count // 10
        assert all(image.shape == (32, 32, 3) and image.dtype == np.uint8 for image in images)


@pytest.mark.parametrize('split', [0, 1])
def test_detection_agrees_with_segmentation(small, split):
    _, det, seg = digits.SPLITS[split]
    coco = json.loads((small / f'detection/annotations/instances_{det}.json').read_text())
    assert coco['categories'] == [dict(id=i + 1, name=str(i)) for i in range(10)]
    assert len(coco['images']) == SMALL['scenes'][split]
    ids = [instance['id'] for instance in coco['annotations']]
    assert ids == list(range(1, len(ids) + 1))
    for entry in coco['images']:
        image = load(small / 'detection' / det / entry['file_name'])
        assert image.shape == (entry['height'], entry['width'], 3)
        segmentation = small / 'segmentation'
        np.testing.assert_array_equal(
            load(segmentation / 'images' / seg / entry['file_name']), image
        )
        merged = np.zeros(image.shape[:2], dtype=np.uint8)
        for instance in coco['annotations']:
            if instance['image_id'] == entry['id']:
                merged[decode(instance['segmentation'])] = instance['category_id']
        np.testing.assert_array_equal(
            load(segmentation / 'annotations' / seg / entry['file_name']), merged
        )


def test_more_scenes_for_segmentation_than_for_detection(small, tmp_path):
    out = tmp_path / 'digits'
    digits.write_digits(out, detection=1, **SMALL)
    segmentation = {path: text for path, text in snapshot(small).items() if 'segm' in str(path)}
    found = snapshot(out)
    assert {path: found[path] for path in segmentation} == segmentation
    coco = json.loads((out / 'detection/annotations/instances_train2017.json').read_text())
    (entry,) = coco['images']
    assert [path.name for path in (out / 'detection/train2017').iterdir()] == [entry['file_name']]
    assert {instance['image_id'] for instance in coco['annotations']} == {entry['id']}
    # Validation is the same for both.
    assert len(list((out / 'detection/val2017').iterdir())) == SMALL['scenes'][1]
    assert digits.write_digits(out, detection=1, **SMALL) == json.loads(
        (out / 'digits.json').read_text()
    )
    with pytest.raises(FileExistsError, match='2 of them for detection'):
        digits.write_digits(out, detection=2, **SMALL)


class InThisProcess:
    """Stands in for the pool of processes, from which nothing recorded would come back."""

    def __init__(self, **options):
        pass

    def map(self, draw, indices, chunksize):
        return map(draw, indices)

    def shutdown(self, cancel_futures):
        pass


def test_splits_share_no_source_digit(tmp_path, monkeypatch):
    # no two of the source digits are equal pixel for pixel, so the pixels name the source
    used = []
    compose = digits.compose_scene

    def record(rng, glyphs, **options):
        used.append({glyph.tobytes() for glyph in glyphs})
        return compose(rng, glyphs, **options)

    monkeypatch.setattr(digits, 'compose_scene', record)
    monkeypatch.setattr(digits, 'ProcessPoolExecutor', InThisProcess)
    digits.write_digits(tmp_path / 'digits', **SMALL)
    train, val = set().union(*used[:23]), set().union(*used[23:])
    assert len(used) == 35 and len(train) > 20 and len(val) > 10
    assert not train & val


# the destination


def test_complete_set_is_left_alone(small, monkeypatch, capsys):
    before = snapshot(small)
    monkeypatch.setattr(digits, 'load_glyphs', None)
    record = digits.write_digits(small, **SMALL)
    assert record['sha256'] == SMALL_SHA256
    assert 'nothing to do' in capsys.readouterr().out
    assert snapshot(small) == before


@pytest.mark.parametrize(
    'other', [dict(SMALL, seed=1), dict(SMALL, images=(20, 9)), dict(SMALL, scenes=(4, 2))]
)
def test_other_parameters_are_refused(small, other):
    before = snapshot(small)
    with pytest.raises(FileExistsError, match='another folder'):
        digits.write_digits(small, **other)
    assert snapshot(small) == before


@pytest.mark.parametrize('foreign', ['empty', 'file', 'notes', 'not json', 'list'])
def test_foreign_destination_is_refused(tmp_path, foreign):
    out = tmp_path / 'digits'
    if foreign == 'file':
        out.write_text('mine')
    else:
        out.mkdir()
    if foreign == 'notes':
        (out / 'notes.txt').write_text('mine')
    if foreign in ('not json', 'list'):
        (out / 'digits.json').write_text('[]' if foreign == 'list' else '{')
    before = snapshot(tmp_path)
    with pytest.raises(FileExistsError, match='move it away or delete it'):
        digits.write_digits(out, **SMALL)
    assert snapshot(tmp_path) == before


def test_set_with_a_missing_file_is_refused(tmp_path):
    out = tmp_path / 'digits'
    digits.write_digits(out, images=(0, 0), scenes=(1, 0))
    (out / 'segmentation/annotations/training/000000000001.png').unlink()
    with pytest.raises(FileExistsError, match='complete'):
        digits.write_digits(out, images=(0, 0), scenes=(1, 0))


@pytest.mark.parametrize('error', [KeyboardInterrupt, OSError])
@pytest.mark.parametrize('after', [0, 15, 38])
def test_interrupted_run_leaves_nothing(tmp_path, monkeypatch, error, after):
    save, calls = digits._save, []

    def interrupt(*args):
        if len(calls) == after:
            raise error
        calls.append(args)
        save(*args)

    monkeypatch.setattr(digits, '_save', interrupt)
    with pytest.raises(error):
        digits.write_digits(tmp_path / 'digits', **SMALL)
    assert len(calls) == after
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('module', ['sklearn.datasets', 'PIL.Image', 'tqdm'])
def test_missing_module_names_the_cure(tmp_path, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r'pip install "mmhcnet\[demo\]"'):
        digits.write_digits(tmp_path / 'digits', **SMALL)
    assert list(tmp_path.iterdir()) == []


# the command


def run_tool(monkeypatch, *args):
    monkeypatch.setattr(sys, 'argv', [str(TOOL), *map(str, args)])
    runpy.run_path(str(TOOL), run_name='__main__')


@pytest.mark.parametrize('args, out', [((), 'data/digits'), (('--out', 'elsewhere'), 'elsewhere')])
def test_tool(monkeypatch, args, out):
    calls = []
    monkeypatch.setattr(digits, 'write_digits', calls.append)
    run_tool(monkeypatch, *args)
    assert calls == [out]


def test_tool_refuses_a_foreign_folder(tmp_path, monkeypatch):
    (tmp_path / 'notes.txt').write_text('mine')
    with pytest.raises(SystemExit, match='move it away or delete it'):
        run_tool(monkeypatch, '--out', tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ['notes.txt']
