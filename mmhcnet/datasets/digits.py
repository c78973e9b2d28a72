"""The demo data set: real handwritten digits composed into scenes, made without a download.

The digits are the 1797 images of 8x8 pixels which scikit-learn carries (UCI, "Optical Recognition
of Handwritten Digits"). :func:`write_digits` writes them as three standard layouts under one root::

    classification/{train,val}/{0..9}/*.png                        class folders, one digit an image
    detection/{train2017,val2017}/*.png                            scenes of several digits
    detection/annotations/instances_{train2017,val2017}.json       COCO instances, category d + 1
    segmentation/images/{training,validation}/*.png                the same scenes, and more
    segmentation/annotations/{training,validation}/*.png           0 background, d + 1 digit d
    digits.json                                                    version, parameters, sha256

The pixels are the same bits on every machine: the numbers come from ``RandomState.random_sample``,
``randint`` and ``permutation``, whose streams NumPy has frozen, and all arithmetic is on integers
or elementwise float64 (+, -, *, /, floor, rint, min, max), where IEEE 754 leaves no freedom. Sums
over float arrays, BLAS, transcendental functions and image libraries do leave some and are not
used; nor is ``RandomState.uniform``, whose C code may be compiled to a fused multiply-add.
"""

import hashlib
import importlib
import json
import os
import shutil
import signal
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

CLASSES = tuple('0123456789')
VERSION = 3

# (classification folder, detection folder, segmentation folder), training then validation
SPLITS = (('train', 'train2017', 'training'), ('val', 'val2017', 'validation'))


def _need(module):
    """Import a module that only making the data set needs."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f'making the digits data set needs {module.partition(".")[0]}; '
            'install it with: pip install "mmhcnet[demo]"'
        ) from error


def load_glyphs():
    """Read scikit-learn's bundled digits.

    Returns:
        tuple: glyphs (1797, 8, 8) uint8, ink 0..16; labels (1797,) int64, 0..9.
    """
    bunch = _need('sklearn.datasets').load_digits()
    return bunch.images.astype(np.uint8), bunch.target.astype(np.int64)


def split_sources(labels, seed):
    """Split the source digits 80/20 within each class, so that no digit is in both splits.

    Args:
        labels (ndarray): (N,) int64, 0..9.
        seed (int): Seed of the draw.

    Returns:
        tuple: training indices and validation indices, each (n,) int64, ascending.
    """
    rng = np.random.RandomState([seed, 0])
    train, val = [], []
    for digit in range(len(CLASSES)):
        indices = rng.permutation(np.flatnonzero(labels == digit))
        held_out = len(indices) // 5
        val.append(indices[:held_out])
        train.append(indices[held_out:])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(val))


def _between(rng, low, high):
    return low + (high - low) * rng.random_sample()


def interpolate(values, positions):
    """Cubic (Catmull-Rom) interpolation along the last axis; the ends extend as constants.

    Args:
        values (ndarray): (R, n) float64, samples at 0..n-1.
        positions (ndarray): (R, m) or (1, m) float64, where to read each row.

    Returns:
        ndarray: (R, m) float64.
    """
    rows = np.arange(len(values))[:, None]
    left = np.floor(positions)
    t = positions - left
    left = left.astype(np.int64)

    def tap(offset):
        return values[rows, np.minimum(np.maximum(left + offset, 0), values.shape[1] - 1)]

    a, b, c, d = tap(-1), tap(0), tap(1), tap(2)
    return b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))


def render_glyph(glyph, height, aspect, slant, threshold):
    """Enlarge one glyph: where it covers the image, and how much ink is there.

    The edges of the coverage are about one pixel wide. The ink inside tells digits apart whose
    outlines are alike, as an 8 with filled loops and a 1.

    Args:
        glyph (ndarray): (8, 8) uint8, ink 0..16.
        height (float): Height in pixels of the glyph's 8 rows.
        aspect (float): Pixels per column over pixels per row.
        slant (float): Columns of shift per row; positive leans to the right.
        threshold (float): Share of full ink that counts as the edge; lower is bolder.

    Returns:
        tuple: coverage (h, w) float64 in [0, 1], cut to its non-zero part; ink (h, w) float64, from
        0 at the threshold to 1 for full ink.
    """
    pad = 2
    ink = np.pad(glyph.astype(np.float64) / 16, pad)
    row_scale = height / len(glyph)
    column_scale = row_scale * aspect
    rows = len(ink)
    # the frame is wider than the ink by what the slant can shift it
    overhang = abs(slant) * rows / 2
    y = (np.arange(int(rows * row_scale)) + 0.5) / row_scale - 0.5
    x = (np.arange(int((rows + 2 * overhang) * column_scale)) + 0.5) / column_scale - 0.5 - overhang
    shifted = x[None, :] + slant * (y[:, None] - (rows - 1) / 2)
    ink = interpolate(interpolate(ink.T, y[None, :]).T, shifted)
    coverage = np.clip((ink - threshold) * row_scale + 0.5, 0, 1)
    above = np.clip((ink - threshold) / (1 - threshold), 0, 1)
    return _cut(coverage, coverage > 0), _cut(above, coverage > 0)


def _cut(array, mask):
    top, left, height, width = _box(mask)
    return array[top : top + height, left : left + width]


def _box(mask):
    """Tight box (top, left, height, width) of a non-empty mask."""
    rows = np.flatnonzero(mask.any(axis=1))
    columns = np.flatnonzero(mask.any(axis=0))
    return (
        int(rows[0]),
        int(columns[0]),
        int(rows[-1] - rows[0] + 1),
        int(columns[-1] - columns[0] + 1),
    )


def _noise(rng, size, cell):
    """Smooth noise (size, size) float64 around 0, one free value every ``cell`` pixels."""
    count = size // cell + 3
    grid = rng.random_sample((count, count)) - 0.5
    at = (np.arange(size) / cell + 1)[None, :]
    return interpolate(interpolate(grid.T, at).T, at)


def make_background(rng, size):
    """Draw a textured background: noise at three scales, a gradient and stripes in two tints.

    Args:
        rng (RandomState): Source of all draws.
        size (int): Height and width in pixels.

    Returns:
        ndarray: (size, size, 3) float64 in [0, 130].
    """
    y = (np.arange(size) / size - 0.5)[:, None]
    x = (np.arange(size) / size - 0.5)[None, :]
    noise = np.sum([_between(rng, 0, 1) * _noise(rng, size, cell) for cell in (32, 12, 5)], axis=0)
    pattern = _between(rng, -1, 1) * x + _between(rng, -1, 1) * y
    if rng.randint(2):
        waves = size * (_between(rng, -1, 1) * x + _between(rng, -1, 1) * y) / _between(rng, 5, 14)
        triangle = np.abs(2 * (waves - np.floor(waves)) - 1)
        pattern = pattern + _between(rng, 0.2, 0.5) * triangle
    # Dark, with the digits brighter: which of the two is ink has not to be learned as well.
    base = 45 * (rng.random_sample() + rng.random_sample(3))
    tints = 130 * (rng.random_sample((2, 3)) - 0.5)
    image = base + tints[0] * noise[..., None] + tints[1] * pattern[..., None]
    return np.clip(image, 0, 130)


def _draw_colour(rng, patch):
    """Draw a bright colour that stands out from the patch it is to be painted on.

    At most one pixel in 20, of the background or of a digit below, may be nearer to the colour than
    a drawn least distance. If 50 colours fail, the best of them is taken.

    Args:
        rng (RandomState): Source of all draws.
        patch (ndarray): (h, w, 3) float64 in [0, 255].

    Returns:
        ndarray: (3,) float64 in [130, 255].
    """
    least = _between(rng, 40, 90)
    best, best_near = None, patch.size
    for _ in range(50):
        colour = 130 + 125 * rng.random_sample(3)
        red, green, blue = np.moveaxis(np.abs(patch - colour), -1, 0)
        near = np.count_nonzero(0.3 * red + 0.6 * green + 0.1 * blue < least)
        if near < best_near:
            best, best_near = colour, near
        if near * 20 <= red.size:
            break
    return best


def compose_scene(rng, glyphs, size=128, heights=(40, 80), min_visible=0.8):
    """Compose glyphs on a textured background; each covers the ones before it.

    Position, height, width, slant, stroke weight and colour are drawn per glyph; the colour is
    darker where there is less ink. Every glyph lies inside the image. A placement that hides an
    earlier glyph too far is drawn again.

    Args:
        rng (RandomState): Source of all draws.
        glyphs (ndarray): (N, 8, 8) uint8, ink 0..16.
        size (int): Height and width of the image in pixels.
        heights (tuple): Least and greatest height of a glyph in pixels.
        min_visible (float): Share of each glyph's pixels that stays visible.

    Returns:
        tuple: image (size, size, 3) uint8, RGB; masks (N, size, size) bool, the visible pixels of
        each glyph, pairwise disjoint.
    """
    image = make_background(rng, size)
    masks = np.zeros((len(glyphs), size, size), dtype=bool)
    full_areas = []
    for i, glyph in enumerate(glyphs):
        coverage, ink, top, left = _place(rng, glyph, masks[:i], full_areas, heights, min_visible)
        rows, columns = (
            slice(start, start + length) for start, length in zip((top, left), coverage.shape)
        )
        mask = coverage >= 0.5
        masks[:i, rows, columns] &= ~mask
        masks[i, rows, columns] = mask
        full_areas.append(np.count_nonzero(mask))
        patch = image[rows, columns]
        colour = (0.6 + 0.4 * ink[..., None]) * _draw_colour(rng, patch)
        patch += coverage[..., None] * (colour - patch)
    grain = rng.randint(0, 7)
    image += rng.randint(-grain, grain + 1, size=image.shape)
    return np.rint(np.clip(image, 0, 255)).astype(np.uint8), masks


def _place(rng, glyph, masks, full_areas, heights, min_visible):
    """Draw a shape and position for a glyph over ``masks``: coverage and ink (h, w), top, left."""
    size = masks.shape[-1]
    for _ in range(1000):
        coverage, ink = render_glyph(
            glyph,
            height=_between(rng, *heights),
            aspect=_between(rng, 0.75, 1.1),
            slant=_between(rng, -0.2, 0.2),
            threshold=_between(rng, 0.32, 0.44),
        )
        height, width = coverage.shape
        if max(height, width) > size:
            continue
        top, left = rng.randint(size - height + 1), rng.randint(size - width + 1)
        window = masks[:, top : top + height, left : left + width]
        hidden = np.count_nonzero(window & (coverage >= 0.5), axis=(1, 2))
        visible = np.count_nonzero(masks, axis=(1, 2)) - hidden
        if all(visible >= min_visible * np.array(full_areas)):
            return coverage, ink, top, left
    raise ValueError(
        f'no room for {len(masks) + 1} glyphs of {heights[0]} to {heights[1]} pixels '
        f'in an image of {size}: give fewer or smaller glyphs, or a larger image'
    )


def draw_digit(glyphs, labels, sources, seed, split, index):
    """Draw one image of the classification layout.

    Classes take turns, and within a class the source digits do.

    Args:
        glyphs (ndarray): (N, 8, 8) uint8, ink 0..16, all source digits.
        labels (ndarray): (N,) int64, 0..9, their classes.
        sources (ndarray): (n,) int64, the indices of this split.
        seed (int): Seed of the data set.
        split (int): 0 training, 1 validation.
        index (int): Number of the image; it alone decides the draw, so a smaller set is a prefix.

    Returns:
        tuple: image (32, 32, 3) uint8, RGB; label, int 0..9.
    """
    turn, digit = divmod(index, len(CLASSES))
    of_class = sources[labels[sources] == digit]
    source = of_class[turn % len(of_class)]
    rng = np.random.RandomState([seed, 1, split, index])
    image, _ = compose_scene(rng, glyphs[[source]], size=32, heights=(24, 30))
    return image, digit


def draw_scene(glyphs, labels, sources, seed, split, index):
    """Draw one image of the detection and segmentation layouts, with 2 to 4 digits.

    The arguments are those of :func:`draw_digit`.

    Returns:
        tuple: image (128, 128, 3) uint8, RGB; masks (n, 128, 128) bool, pairwise disjoint; labels
        (n,) int64, 0..9.
    """
    rng = np.random.RandomState([seed, 2, split, index])
    chosen = sources[rng.randint(len(sources), size=rng.randint(2, 5))]
    image, masks = compose_scene(rng, glyphs[chosen])
    return image, masks, labels[chosen]


def encode_rle(mask):
    """Encode a mask (H, W) bool as COCO's uncompressed RLE, column by column, zeros first."""
    flat = mask.ravel(order='F')
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff(changes, prepend=0, append=flat.size).tolist()
    return dict(size=list(mask.shape), counts=[0] + counts if flat[0] else counts)


def coco_instances(masks, labels, image_id, first_id):
    """Describe the instances of one image.

    Args:
        masks (ndarray): (n, H, W) bool, each non-empty.
        labels (ndarray): (n,) int64, 0..9; the category of digit d is d + 1.
        image_id (int): The image they are in.
        first_id (int): Id of the first instance.

    Returns:
        list[dict]: COCO annotations; ``area`` and ``bbox`` [x, y, w, h] are the mask's.
    """
    instances = []
    for i, (mask, label) in enumerate(zip(masks, labels)):
        top, left, height, width = _box(mask)
        instances.append(
            dict(
                id=first_id + i,
                image_id=image_id,
                category_id=int(label) + 1,
                iscrowd=0,
                area=int(np.count_nonzero(mask)),
                bbox=[left, top, width, height],
                segmentation=encode_rle(mask),
            )
        )
    return instances


def label_map(masks, labels):
    """Merge disjoint masks (n, H, W) bool and labels (n,): (H, W) uint8, 0 or label + 1."""
    merged = np.zeros(masks.shape[1:], dtype=np.uint8)
    for mask, label in zip(masks, labels):
        merged[mask] = label + 1
    return merged


def write_digits(out='data/digits', seed=0, images=(6000, 1000), scenes=(3200, 200), detection=800):
    """Make the data set in a folder that does not exist yet; see the module for the layouts.

    The folder appears when it is complete and not before. If it already holds this very set,
    nothing is done.

    Args:
        out (str | Path): The folder to make.
        seed (int): Seed of every draw.
        images (tuple): Numbers of training and validation images for classification.
        scenes (tuple): Numbers of training and validation scenes.
        detection (int): The detection layout has at most so many training scenes, the first. A
            small segmentor learns them by heart before it can tell the digits of new ones.

    Returns:
        dict: The contents of ``digits.json``: version, seed, images, scenes and the sha256 over
        all pixels and annotations.

    Raises:
        FileExistsError: ``out`` exists and is not this data set; it is left as it is.
    """
    out = Path(out)
    record = dict(version=VERSION, seed=seed, images=list(images), scenes=list(scenes))
    if os.path.lexists(out):
        found = _read_complete(out, record, detection)
        if found is None:
            raise FileExistsError(
                f'{out} exists and is not the complete digits data set of version {VERSION}, seed '
                f'{seed}, {images} images and {scenes} scenes, {detection} of them for detection: '
                'move it away or delete it, or choose another folder'
            )
        print(f'{out} already holds this data set; nothing to do')
        return found

    tqdm = _need('tqdm').tqdm
    _need('PIL.Image')
    glyphs, labels = load_glyphs()
    digest = hashlib.sha256()
    out.parent.mkdir(parents=True, exist_ok=True)
    # inside the temporary folder, not the folder itself: that one is readable by its owner only
    with tempfile.TemporaryDirectory(prefix=f'.{out.name}.', dir=out.parent) as temporary:
        root = Path(temporary, out.name)
        root.mkdir()
        # Ctrl-C is for this process, which stops the others.
        pool = ProcessPoolExecutor(
            initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)
        )
        try:
            with tqdm(total=sum(images) + sum(scenes), desc=str(out), mininterval=1) as progress:
                for split, sources in enumerate(split_sources(labels, seed)):
                    source = (glyphs, labels, sources, seed, split)
                    singles = pool.map(
                        partial(draw_digit, *source), range(images[split]), chunksize=20
                    )
                    composed = pool.map(
                        partial(draw_scene, *source), range(scenes[split]), chunksize=20
                    )
                    _write_classification(root, split, singles, digest, progress)
                    detected = scenes[split] if split else detection
                    _write_scenes(root, split, composed, detected, digest, progress)
        finally:
            pool.shutdown(cancel_futures=True)
        record['sha256'] = digest.hexdigest()
        (root / 'digits.json').write_text(json.dumps(record, indent=2) + '\n')
        root.rename(out)
    print(f'{out}: {sum(images)} images and {sum(scenes)} scenes, sha256 {record["sha256"]}')
    return record


def _read_complete(root, expected, detection):
    """Read ``digits.json`` of a complete set with the expected parameters, else None."""
    try:
        record = json.loads((root / 'digits.json').read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(record, dict) or {**record, **expected} != record:
        return None
    detected = min(detection, expected['scenes'][0]), expected['scenes'][1]
    for (cls, det, seg), images, scenes, with_boxes in zip(
        SPLITS, expected['images'], expected['scenes'], detected
    ):
        for pattern, count in (
            (f'classification/{cls}/*/*.png', images),
            (f'detection/{det}/*.png', with_boxes),
            (f'detection/annotations/instances_{det}.json', 1),
            (f'segmentation/images/{seg}/*.png', scenes),
            (f'segmentation/annotations/{seg}/*.png', scenes),
        ):
            if sum(1 for _ in root.glob(pattern)) != count:
                return None
    return record


def _save(path, array, digest):
    """Write an array (H, W) or (H, W, 3) uint8 as PNG and add its pixels to the digest."""
    _need('PIL.Image').fromarray(array).save(path)
    digest.update(array.tobytes())


def _write_classification(root, split, singles, digest, progress):
    folder = root / 'classification' / SPLITS[split][0]
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
    for index, (image, label) in enumerate(singles):
        _save(folder / CLASSES[label] / f'{index:06d}.png', image, digest)
        progress.update()


def _write_scenes(root, split, composed, detected, digest, progress):
    _, det, seg = SPLITS[split]
    folder = root / 'detection' / det
    annotations = root / 'detection/annotations'
    seg_images = root / 'segmentation/images' / seg
    seg_maps = root / 'segmentation/annotations' / seg
    for path in (folder, annotations, seg_images, seg_maps):
        path.mkdir(parents=True, exist_ok=True)

    entries, instances = [], []
    for index, (image, masks, labels) in enumerate(composed):
        height, width = image.shape[:2]
        name = f'{index + 1:012d}.png'
        _save(seg_images / name, image, digest)
        _save(seg_maps / name, label_map(masks, labels), digest)
        if index < detected:
            shutil.copyfile(seg_images / name, folder / name)
            entries.append(dict(id=index + 1, file_name=name, height=height, width=width))
            instances += coco_instances(masks, labels, index + 1, len(instances) + 1)
        progress.update()

    categories = [dict(id=i + 1, name=name) for i, name in enumerate(CLASSES)]
    text = json.dumps(dict(images=entries, annotations=instances, categories=categories))
    (annotations / f'instances_{det}.json').write_text(text)
    digest.update(text.encode())
