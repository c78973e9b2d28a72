"""tools/misc/prepare_data.py on the digits, whole and with faults put into them."""

import json
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from ..conftest import load_script
from .conftest import CONFIGS, ROOT


@pytest.fixture
def check(monkeypatch, capsys):
    """Run the tool in this process; returns its exit code and what it printed."""
    module = load_script(ROOT / 'tools' / 'misc' / 'prepare_data.py')

    def run(config, *args):
        monkeypatch.setattr(sys, 'argv', ['prepare_data.py', str(config), *map(str, args)])
        with pytest.raises(SystemExit) as end:
            module.main()
        return int(end.value.code), capsys.readouterr().out

    return run


@pytest.fixture
def copied(digits, tmp_path):
    """Options of a task's config for a copy of the data, and the copy."""

    def copy(task):
        root = tmp_path / task
        shutil.copytree(digits / task, root)
        end = '/' if task == 'detection' else ''
        options = [
            f'{split}_dataloader.dataset.data_root={root}{end}'
            for split in ('train', 'val', 'test')
        ]
        if task == 'detection':
            options += [
                f'{split}_evaluator.ann_file={root}/annotations/instances_val2017.json'
                for split in ('val', 'test')
            ]
        return root, ['--cfg-options', *options]

    return copy


@pytest.mark.parametrize('full', [False, True])
@pytest.mark.parametrize('task', CONFIGS)
def test_whole_data(task, full, check, copied):
    _, options = copied(task)
    code, said = check(ROOT / CONFIGS[task], *(['--full'] if full else []), *options)
    assert code == 0 and 'ERROR' not in said
    assert said.endswith('test: the same data as before\nthe data is complete\n')


def image_in(folder):
    return sorted(p for p in folder.rglob('*') if p.is_file())[0]


def truncate(path):
    path.write_bytes(path.read_bytes()[:-60])


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def repaint(path, change):
    Image.fromarray(change(np.asarray(Image.open(path)))).save(path)


def without_folders(root):
    for folder in list((root / 'val').iterdir()):
        for path in folder.iterdir():
            path.rename(root / 'val' / f'{folder.name}_{path.name}')
        folder.rmdir()


def boxes(value):
    def change(content):
        content['annotations'][0]['bbox'] = value

    return lambda root: edit(root / TRAIN, change)


def entry(entries, **values):
    return lambda root: edit(root / TRAIN, lambda content: content[entries][0].update(values))


def without(entries, key):
    return lambda root: edit(root / TRAIN, lambda content: content[entries][0].pop(key))


TRAIN = 'annotations/instances_train2017.json'
LABELS = 'annotations/training'
# What is done to the data, and what has to be said of it.
FAULTS = {
    'classification': {
        'no folder': (lambda root: shutil.rmtree(root / 'train'), 'train: is not there'),
        'class missing': (
            lambda root: shutil.rmtree(root / 'train' / '3'),
            'train: 9 class folders, and the config has 10 classes',
        ),
        'class empty': (
            lambda root: [p.unlink() for p in (root / 'train' / '3').iterdir()],
            'train/3: no image in it, 0 other files',
        ),
        'not unpacked': (
            lambda root: [
                p.rename(p.with_suffix('.tar')) for p in (root / 'train' / '3').iterdir()
            ],
            'train/3: no image in it, ',
        ),
        'no class folders': (without_folders, 'one of 20 images that are in no class folder'),
        'truncated': (lambda root: truncate(image_in(root / 'train')), '.png: is truncated ('),
        'empty file': (
            lambda root: image_in(root / 'train').write_bytes(b''),
            '.png: is empty (0 bytes)',
        ),
        'no image': (
            lambda root: image_in(root / 'train').write_text('text'),
            '.png: is not an image (4 bytes)',
        ),
    },
    'detection': {
        'no file': (
            lambda root: (root / TRAIN).unlink(),
            'instances_train2017.json\' does not exist',
        ),
        'no JSON': (lambda root: truncate(root / TRAIN), 'train2017.json: is not JSON ('),
        'no list': (
            lambda root: edit(root / TRAIN, lambda c: c.pop('categories')),
            'has no list categories',
        ),
        'image missing': (
            lambda root: image_in(root / 'train2017').unlink(),
            '000000000001.png: is not there, and ',
        ),
        'image truncated': (
            lambda root: truncate(image_in(root / 'train2017')),
            '000000000001.png: is truncated (',
        ),
        'other size': (entry('images', width=129), 'is 128x128, and '),
        'category missing': (
            entry('categories', name='null'),
            "no category '0', which the config's classes have: set metainfo",
        ),
        'category unknown': (
            entry('annotations', category_id=99),
            'annotation 1: names category 99, which is not in the file',
        ),
        'image unknown': (
            entry('annotations', image_id=9999),
            'annotation 1: names image 9999, which is not in the file',
        ),
        'ids repeated': (
            lambda root: edit(root / TRAIN, lambda c: c['annotations'].append(c['annotations'][0])),
            '1 ids of annotations occur more than once, the first: 1',
        ),
        'corners': (
            boxes([100, 100, 120, 120]),
            'bbox [100, 100, 120, 120] leaves the image of 128x128',
        ),
        'malformed': (boxes([1, 2, 3]), 'annotation 1: bbox is [1, 2, 3]'),
        'no area': (without('annotations', 'area'), 'annotations[0]: has no area'),
        'no mask': (without('annotations', 'segmentation'), 'annotation 1: has no segmentation'),
        'polygon of two points': (
            entry('annotations', segmentation=[[1, 2, 3, 4]]),
            'annotation 1: has no segmentation',
        ),
    },
    'segmentation': {
        'no folder': (lambda root: shutil.rmtree(root / LABELS), f"{LABELS}' does not exist"),
        'other suffix': (
            lambda root: [
                p.rename(p.with_suffix('.jpg')) for p in (root / 'images/training').iterdir()
            ],
            'images/training: no file *.png in it',
        ),
        'no label map': (lambda root: image_in(root / LABELS).unlink(), '.png: no '),
        'other size': (
            lambda root: repaint(image_in(root / LABELS), lambda a: a[:-1]),
            'is 128x127, and its image 128x128',
        ),
        'label out of range': (
            lambda root: repaint(image_in(root / LABELS), lambda a: a + 7),
            ', and 11 classes are 0 to 10 and 255 for no label',
        ),
        'colours': (
            lambda root: repaint(image_in(root / LABELS), lambda a: np.stack([a] * 3, axis=2)),
            'has 3 channels',
        ),
        'image truncated': (
            lambda root: truncate(image_in(root / 'images/training')),
            '.png: is truncated (',
        ),
        'label map truncated': (
            lambda root: truncate(image_in(root / LABELS)),
            '.png: is truncated (',
        ),
    },
}


@pytest.mark.parametrize(
    'task, fault', [(task, fault) for task in FAULTS for fault in FAULTS[task]]
)
def test_fault(task, fault, check, copied):
    root, options = copied(task)
    inject, expected = FAULTS[task][fault]
    inject(root)
    code, said = check(ROOT / CONFIGS[task], '--full', *options)
    assert code == 1
    line, *_ = [line for line in said.splitlines() if expected in line]
    assert line.startswith('  ERROR ') and str(root) in line
    assert said.splitlines()[-1].startswith('to be fixed: ')


@pytest.mark.parametrize(
    'task, inject, expected',
    [
        ('classification', lambda root: (root / 'train' / '3' / 'a.txt').write_text(''), 'a.txt: '),
        ('detection', boxes([10, 10, 0, 5]), 'annotation 1: bbox [10, 10, 0, 5] has no area'),
        (
            'detection',
            lambda root: edit(
                root / TRAIN, lambda c: c['categories'].append(dict(id=77, name='x'))
            ),
            "1 categories, as 'x', are not among the classes",
        ),
        (
            'segmentation',
            lambda root: image_in(root / 'images/training').unlink(),
            'training leaves it out',
        ),
    ],
)
def test_what_training_leaves_out_is_a_warning(task, inject, expected, check, copied):
    root, options = copied(task)
    inject(root)
    code, said = check(ROOT / CONFIGS[task], *options)
    assert code == 0
    assert any(line.startswith('  WARNING ') and expected in line for line in said.splitlines())


@pytest.mark.parametrize(
    'task, option, expected',
    [
        ('classification', 'model.head.num_classes=7', '10 class folders, and the config has 7'),
        (
            'detection',
            'model.roi_head.bbox_head.num_classes=7',
            'model.roi_head.bbox_head.num_classes: is 7, and the data set has 10 classes: '
            'set it to 10',
        ),
        (
            'segmentation',
            'model.decode_head.num_classes=7',
            'model.decode_head.num_classes: is 7, and the data set has 11 classes: set it to 11',
        ),
        (
            'detection',
            'val_evaluator.ann_file=ROOT/annotations/instances_train2017.json',
            'val_evaluator.ann_file: is ',
        ),
    ],
)
def test_config_that_does_not_fit_the_data(task, option, expected, check, copied):
    root, options = copied(task)
    code, said = check(ROOT / CONFIGS[task], *options, option.replace('ROOT', str(root)))
    assert code == 1 and expected in said


def test_list_of_files(check, copied):
    root, options = copied('classification')
    lines = [
        f'{p.relative_to(root / "train")} {p.parent.name}'
        for p in sorted((root / 'train').rglob('*.png'))
    ]
    options.append('train_dataloader.dataset.ann_file=list.txt')
    (root / 'list.txt').write_text('\n'.join(lines))
    assert check(ROOT / CONFIGS['classification'], *options)[0] == 0
    (root / 'list.txt').write_text('\n'.join([*lines, '0/none.png 0', lines[0][:-1] + '10', 'x']))
    code, said = check(ROOT / CONFIGS['classification'], *options)
    assert code == 1
    assert 'none.png: is not there, and ' in said
    assert f'list.txt:{len(lines) + 2}: label 10, and the config has 10 classes' in said
    assert f"list.txt:{len(lines) + 3}: 'x' is not" in said


def test_many_faults_of_a_kind_are_counted(check, copied):
    root, options = copied('detection')
    edit(root / TRAIN, lambda c: [a.pop('segmentation') for a in c['annotations']])
    n = len(json.loads((root / TRAIN).read_text())['annotations'])
    _, said = check(ROOT / CONFIGS['detection'], *options)
    assert said.count('has no segmentation') == 10
    assert f'  ... and {n - 10} more: annotations without a mask' in said


def test_only_a_sample_is_opened(check, copied, monkeypatch):
    root, options = copied('classification')
    monkeypatch.setattr('mmhcnet.datasets.check.SAMPLE', 2)
    truncate(sorted((root / 'train').rglob('*.png'))[1])
    assert check(ROOT / CONFIGS['classification'], *options)[0] == 0
    assert check(ROOT / CONFIGS['classification'], '--full', *options)[0] == 1


@pytest.mark.parametrize(
    'config, options',
    [
        (
            'detection/mask_rcnn_hcnet_t_1x.py',
            [
                '{}_dataloader.dataset.data_root=DATA/coco_tiny/',
                '{}_evaluator.ann_file=DATA/coco_tiny/annotations/instances_val2017.json',
            ],
        ),
        (
            'segmentation/upernet_hcnet_t_160k_ade20k.py',
            ['{}_dataloader.dataset.data_root=DATA/ade_tiny'],
        ),
        (
            'classification/hcnet_t_in1k.py',
            [
                '{}_dataloader.dataset.data_root=DATA/imagenet_samples',
                '{}_dataloader.dataset.split=',
                '{}_dataloader.dataset.data_prefix=val',
                '{}_dataloader.dataset.ann_file=meta/val.txt',
            ],
        ),
    ],
)
def test_photos(config, options, check, photos):
    given = [
        option.format(split).replace('DATA', str(photos))
        for option in options
        for split in ('train', 'val', 'test')
    ]
    # A training has no evaluator.
    given = [option for option in given if not option.startswith('train_evaluator')]
    code, said = check(ROOT / 'configs' / config, '--full', '--cfg-options', *given)
    assert (code, 'ERROR' in said) == (0, False), said


def test_photos_in_fewer_folders_than_imagenet_has(check, photos):
    options = [
        f'{split}_dataloader.dataset.data_root={photos}/imagenet_samples'
        for split in ('train', 'val', 'test')
    ]
    # Without the lists, as ImageNet itself is laid out.
    options += [
        f'{split}_dataloader.dataset.{key}'
        for split in ('train', 'val', 'test')
        for key in ('split=', 'data_prefix=val')
    ]
    code, said = check(ROOT / 'configs/classification/hcnet_t_in1k.py', '--cfg-options', *options)
    assert code == 1 and '50 class folders, and the config has 1000 classes' in said
