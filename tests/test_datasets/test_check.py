"""The check of a user's data and what training says before its first iteration, on situations that
people have reported; each is one of its kind."""

import json
import logging
import random
import shutil
import struct
import sys
import zlib

import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.fileio import LocalBackend, register_backend
from mmengine.registry import init_default_scope
from PIL import Image

from mmhcnet.cli.config import load_config
from mmhcnet.cli.errors import import_task
from mmhcnet.datasets.check import absent_classes, quick_check, stop_at_errors
from mmhcnet.datasets.check.metrics import names_of
from mmhcnet.errors import UserError
from mmhcnet.training.coco_annotations import build_dataset
from mmhcnet.training.tolerant_data import read_tolerantly

from ..conftest import ROOT, load_script
from ..scenes import SIDE, outline, write_config, write_scenes


@pytest.fixture(scope='session')
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp('scenes')
    write_scenes(folder)
    return folder


@pytest.fixture
def data(scenes, tmp_path):
    """A copy of the scenes to break."""
    shutil.copytree(scenes, tmp_path / 'data')
    return tmp_path / 'data'


@pytest.fixture
def config(data, tmp_path):
    """A loaded config of a task: config(task, lines that change it, options)."""

    def make(task, more='', **options):
        cfg = load_config(
            str(write_config(tmp_path / 'mine.py', task, data, more)),
            options,
            str(tmp_path / 'work'),
        )
        import_task(cfg.default_scope)
        init_default_scope(cfg.default_scope)
        return cfg

    return make


@pytest.fixture(scope='session')
def tool():
    return load_script(ROOT / 'tools' / 'misc' / 'prepare_data.py')


@pytest.fixture
def check(tool, data, tmp_path, monkeypatch, capsys):
    """Run the tool on a config: (exit code, what it printed)."""

    def run(task, more='', *args):
        path = write_config(tmp_path / 'checked.py', task, data, more)
        monkeypatch.setattr(sys, 'argv', ['prepare_data.py', str(path), *args])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            tool.main()
        return end.value.code, capsys.readouterr().out

    return run


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def of_all(data, change):
    """Change every annotation of both files."""
    for split in ('train', 'val'):
        edit(data / f'det/{split}.json', lambda c: [change(a) for a in c['annotations']])


def images(data, task='det'):
    return sorted((data / task).rglob('*.png'))


def both(setting):
    """Lines that change the data sets of training and validation."""
    return (
        f'train_dataloader = dict(dataset=dict({setting}))\n'
        f'val_dataloader = dict(dataset=dict({setting}))\ntest_dataloader = val_dataloader\n'
    )


def label_maps(data, change):
    for path in sorted((data / 'seg/annotations').rglob('*.png')):
        Image.fromarray(change(np.asarray(Image.open(path)))).save(path)


ORDER = both("metainfo=dict(classes=('blue', 'green', 'red'))")
UPPER = both("metainfo=dict(_delete_=True, CLASSES=('red', 'green', 'blue'))")
CAPITALS = both("metainfo=dict(classes=('Red', 'Green', 'Blue'))")
FILTER = "train_dataloader = dict(dataset=dict(filter_cfg=dict(filter_empty_gt=True, min_size=32)))"
TWO = (
    both("metainfo=dict(classes=('background', 'thing'), palette=[[0, 0, 0], [255, 0, 0]])")
    + '''
loss2 = dict(class_weight=[1., 1.])
model = dict(decode_head=dict(num_classes=2, loss_decode=loss2),
             auxiliary_head=dict(num_classes=2, loss_decode=loss2))
'''
)
IGNORE_254 = (
    both('ignore_index=254')
    + '''
model = dict(data_preprocessor=dict(seg_pad_val=254), decode_head=dict(ignore_index=254),
             auxiliary_head=dict(ignore_index=254))
val_evaluator = dict(ignore_index=254)
test_evaluator = val_evaluator
'''
)
REPEATED = '''
one = {{_base_.train_dataloader.dataset}}
train_dataloader = dict(dataset=dict(_delete_=True, type='RepeatDataset', times=3, dataset=%s))
'''
INNER_254 = '''
one = dict(
    type='BaseSegDataset', data_root='DATA/seg', metainfo={{_base_.meta}}, ignore_index=254,
    img_suffix='.png', pipeline={{_base_.train_pipeline}},
    data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'))
train_dataloader = dict(dataset=dict(_delete_=True, type='RepeatDataset', times=3, dataset=one))
'''
EPOCHS = '''
train_cfg = dict(_delete_=True, type='mmhcnet.EpochTrainLoop', max_epochs=2, val_interval=1)
default_hooks = dict(checkpoint=dict(by_epoch=True, interval=1))
'''
CUSTOM = '''
train_dataloader = dict(dataset=dict(_delete_=True, type='CustomDataset', data_root='DATA/cls',
    data_prefix='train', pipeline={{_base_.train_pipeline}}))
val_dataloader = dict(dataset=dict(_delete_=True, type='CustomDataset', data_root='DATA/cls',
    data_prefix='val', pipeline={{_base_.test_pipeline}}))
test_dataloader = val_dataloader
'''
UNLABELLED = '''
test_dataloader = dict(
    batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(_delete_=True, type='BaseSegDataset', data_root='DATA/seg',
                 metainfo={{_base_.meta}}, img_suffix='.png',
                 data_prefix=dict(img_path='images/validation'),
                 pipeline=[dict(type='LoadImageFromFile'), dict(type='PackSegInputs')]))
test_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'], format_only=True,
                      output_dir='DATA/formatted')
'''


def crowds(data):
    def change(annotation):
        x, y, w, h = annotation['bbox']
        # Column by column: nothing, then the rows of the box in each of its columns.
        counts = [x * SIDE + y] + [h, SIDE - h] * (w - 1) + [h, SIDE * SIDE]
        counts[-1] -= sum(counts[:-1])
        annotation.update(iscrowd=1, segmentation=dict(size=[SIDE, SIDE], counts=counts))

    of_all(data, change)


def second_red(data):
    for split in ('train', 'val'):

        def change(content):
            content['categories'].append(dict(id=91, name='red'))
            content['annotations'][0]['category_id'] = 91

        edit(data / f'det/{split}.json', change)


def no_sizes(data):
    for split in ('train', 'val'):
        edit(
            data / f'det/{split}.json',
            lambda c: [(image.pop('width'), image.pop('height')) for image in c['images']],
        )


def stored_lying(data):
    """Photos that are stored on their side; the annotations are of what is stored."""
    for path in images(data):
        image = np.asarray(Image.open(path))[:, :100]
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(image).save(path.with_suffix('.jpg'), exif=exif)
        path.unlink()
    for split in ('train', 'val'):

        def change(content):
            for image in content['images']:
                image.update(width=100, file_name=image['file_name'].replace('png', 'jpg'))
            for annotation in content['annotations']:
                x, y, w, h = annotation['bbox']
                annotation['bbox'] = [x, y, max(2, min(w, 100 - x)), h]
                annotation['segmentation'] = outline(annotation['bbox'])

        edit(data / f'det/{split}.json', change)


def turned_upright(data):
    """The same photos; the annotations are of what a person sees, turned clockwise."""
    stored_lying(data)
    for split in ('train', 'val'):

        def change(content):
            for image in content['images']:
                image.update(width=SIDE, height=100)
            for annotation in content['annotations']:
                x, y, w, h = annotation['bbox']
                annotation['bbox'] = [SIDE - y - h, x, h, w]
                annotation['segmentation'] = outline(annotation['bbox'])

        edit(data / f'det/{split}.json', change)


def films(data):
    for path in images(data):
        jpeg = path.with_suffix('.jpg')
        Image.open(path).save(jpeg)
        jpeg.write_bytes(jpeg.read_bytes() + bytes(200_000))
        path.unlink()
    for split in ('train', 'val'):
        edit(
            data / f'det/{split}.json',
            lambda c: [
                image.update(file_name=image['file_name'].replace('png', 'jpg'))
                for image in c['images']
            ],
        )


def nothing(data):
    pass


def first_annotation(**changes):
    """Change the first annotation of the training's file."""
    return lambda data: edit(
        data / 'det/train.json', lambda content: content['annotations'][0].update(changes)
    )


# task, what is done to the data, lines of the config, what the check says, and what training says
# before its first iteration (None: it trains).
WRONG = {
    'order of the classes': (
        'det',
        nothing,
        ORDER,
        "'red' is called 'blue'",
        r"train\.json.*metainfo\.classes to "
        r"\('red', 'green', 'blue'\)",
    ),
    'a category under two ids': (
        'det',
        second_red,
        '',
        "'red' stands under the ids 3 and 91",
        'ids 3 and 91',
    ),
    'crowds only': ('det', crowds, '', '24 of 24 are crowds', '24 of 24 are crowds'),
    'no iscrowd': (
        'det',
        lambda data: of_all(data, lambda a: a.pop('iscrowd')),
        '',
        "val.json: annotations[0]: has no iscrowd, which the metric (COCO's evaluation) reads",
        r'val\.json: annotations\[0\]: has no iscrowd',
    ),
    'no area': (
        'det',
        lambda data: of_all(data, lambda a: a.pop('area')),
        '',
        'train.json: annotations[0]: has no area',
        r'train\.json: annotations\[0\]: has no area',
    ),
    'no segmentation': (
        'det',
        lambda data: of_all(data, lambda a: a.pop('segmentation')),
        '',
        'annotation 1: has no segmentation',
        r'train\.json: no annotation has a segmentation',
    ),
    'no width and height': (
        'det',
        no_sizes,
        '',
        'images[0]: has no width and no height',
        r'train\.json: images\[0\]: has no width and no height',
    ),
    'a width that is no number': (
        'det',
        lambda data: edit(
            data / 'det/train.json', lambda c: c['images'][1].update(width='128', height=None)
        ),
        '',
        "train.json: images[1]: its width is '128', which is no number: write the size",
        r"train\.json: images\[1\]: its width is '128', which is no number",
    ),
    'CLASSES': (
        'det',
        nothing,
        UPPER,
        "none of its categories ('red', 'green', 'blue') is among the classes ('person'",
        r"train\.json: none of its categories \('red', 'green', 'blue'\).*CLASSES, which is not "
        'read',
    ),
    'other capitals': (
        'det',
        nothing,
        CAPITALS,
        "none of its categories ('red', 'green', 'blue') is among the classes ('Red'",
        r"none of its categories \('red', 'green', 'blue'\).*\('Red', 'Green', 'Blue'\)",
    ),
    'other capitals, filtered': (
        'det',
        nothing,
        CAPITALS + FILTER,
        'none of its categories',
        'none of its categories',
    ),
    'fractions of the image': (
        'det',
        lambda data: of_all(data, lambda a: a.update(bbox=[v / SIDE for v in a['bbox']])),
        '',
        'not fractions of the image',
        'of its 24 annotations none is left to learn',
    ),
    # pycocotools ends the process on this one; a training refuses the file when it reads it.
    'a polygon far from its image': (
        'det',
        first_annotation(segmentation=[[0, 0, 1e10, 0, 1e10, 1e10]]),
        '',
        'segmentation has the coordinate 10000000000.0, in ',
        None,
    ),
    'a mask that fits into no memory': (
        'det',
        first_annotation(segmentation=dict(size=[60000, 60000], counts='a')),
        '',
        'segmentation is a mask of 60000x60000 pixels, in ',
        None,
    ),
    'a box of 1e300': (
        'det',
        first_annotation(bbox=[0, 0, 1e300, 9]),
        '',
        'bbox has the coordinate 1e+300, in ',
        None,
    ),
    'an infinite box': (
        'det',
        first_annotation(bbox=[0, 0, float('inf'), 9]),
        '',
        'bbox has the coordinate inf, in ',
        None,
    ),
    'stored size of a photo that is turned': ('det', stored_lying, '', 'EXIF orientation 6', None),
    'label maps of 0 and 255': (
        'seg',
        lambda data: label_maps(data, lambda a: (255 * (a > 0)).astype(np.uint8)),
        TWO,
        "class 1 ('thing') is in no label map",
        "class 1 .'thing'. is in no label map",
    ),
    'label maps of colours': (
        'seg',
        lambda data: label_maps(data, lambda a: np.stack([a] * 3, 2)),
        '',
        'has 3 channels',
        r'annotations/training/0\.png: has 3 channels',
    ),
    'everything is ignored': (
        'seg',
        lambda data: label_maps(data, lambda a: np.full_like(a, 255)),
        '',
        'every pixel of 8 label maps is ignored',
        'every pixel of 4 label maps is ignored',
    ),
    'ids of 16 bits': (
        'seg',
        lambda data: label_maps(data, lambda a: a.astype(np.uint16) + 256),
        '',
        'and mmseg keeps 8 bits',
        'and mmseg keeps 8 bits',
    ),
    'epochs of an endless sampler': (
        'seg',
        nothing,
        EPOCHS,
        'train_dataloader.sampler: is an InfiniteSampler',
        r'train_dataloader\.sampler: is an InfiniteSampler',
    ),
    'heads that ignore another id': (
        'seg',
        nothing,
        both('ignore_index=254'),
        'model.decode_head.ignore_index: is 255, and train_dataloader.dataset.ignore_index is 254',
        r'model\.decode_head\.ignore_index',
    ),
    'class weights': (
        'seg',
        nothing,
        'model = dict(decode_head=dict(loss_decode=dict(class_weight=[1., 1.])))',
        'model.decode_head.loss_decode.class_weight: has 2 numbers, and the head 4 outputs',
        'class_weight: has 2 numbers',
    ),
    'save_best': (
        'seg',
        nothing,
        "default_hooks = dict(checkpoint=dict(save_best='mAP'))",
        "default_hooks.checkpoint.save_best: is 'mAP', and the evaluators report 'aAcc', 'mIoU'",
        "save_best: is 'mAP'",
    ),
    'save_best of detection': (
        'det',
        nothing,
        "default_hooks = dict(checkpoint=dict(save_best='mIoU'))",
        "save_best: is 'mIoU', and the evaluators report 'coco/bbox_mAP'",
        "save_best: is 'mIoU', and the evaluators report 'coco/bbox_mAP'",
    ),
    'save_best of classification': (
        'cls',
        nothing,
        "default_hooks = dict(checkpoint=dict(save_best=['accuracy/top9']))",
        "save_best: is 'accuracy/top9', and the evaluators report 'accuracy/top1'",
        "is 'accuracy/top9', and the evaluators report 'accuracy/top1': set it to one of them",
    ),
    'a string of classes': (
        'seg',
        nothing,
        both("metainfo=dict(_delete_=True, classes='thing')"),
        "is the string 'thing'",
        r"write it as a tuple, \('thing', \)",
    ),
    'ImageNet with three folders': (
        'in1k',
        nothing,
        '',
        "cls/train: 3 class folders, and the config has 1000 classes: "
        "train_dataloader.dataset.type='ImageNet'",
        "set it to 'CustomDataset'",
    ),
    'Mixup of 1000 classes': (
        'in1k',
        nothing,
        CUSTOM,
        'data_preprocessor.num_classes: is 1000',
        'is 1000, and the data',
    ),
    'top-5 of three classes': (
        'in1k',
        nothing,
        CUSTOM + 'data_preprocessor = dict(num_classes=3)',
        'val_evaluator.topk: is (1, 5), and there are 3 classes',
        r'val_evaluator\.topk',
    ),
    'images below the least size': (
        'cls',
        nothing,
        both(
            "pipeline=[dict(type='LoadImageFromFile'), dict(type='Resize', "
            "scale=24), dict(type='PackInputs')]"
        ),
        'makes images of 24 pixels, and mmhcnet.HcNet needs 32',
        'images of 24 pixels',
    ),
    'grey images for three channels': (
        'cls',
        nothing,
        both(
            "pipeline=[dict(type='LoadImageFromFile', color_type='grayscale'), "
            "dict(type='Resize', scale=48), dict(type='PackInputs')]"
        ),
        'is loaded with 1 channels, and model.backbone.in_channels is 3',
        None,
    ),
    'folders that differ': (
        'cls',
        lambda data: (data / 'cls/val/blue').rename(data / 'cls/val/azure'),
        '',
        "class 0 is 'azure', and 'blue' in train_dataloader.dataset",
        "class 0 is 'azure'",
    ),
    'order of the folders': (
        'cls',
        nothing,
        both("metainfo=dict(classes=('red', 'green', 'blue'))"),
        "'blue' is called 'red'",
        "'blue' is called 'red'",
    ),
    'repeated names': (
        'cls',
        nothing,
        both("metainfo=dict(classes=('red', 'red', 'blue'))"),
        "has 'red' more than once",
        "has 'red' more than once",
    ),
}


@pytest.mark.parametrize('situation', WRONG)
def test_what_makes_no_sense(situation, check, config, data, tmp_path):
    task, change, more, said_by_check, said_by_training = WRONG[situation]
    change(data)
    more = more.replace('DATA', str(data))
    code, said = check(task, more)
    assert code == 1 and said.splitlines()[-1].startswith('to be fixed: ')
    assert any(
        line.startswith('  ERROR ') and said_by_check in line for line in said.splitlines()
    ), said
    cfg = config(task, more)
    if said_by_training is None:
        stop_at_errors(cfg, ['train', 'val'])
    else:
        with pytest.raises(UserError, match=said_by_training) as error:
            stop_at_errors(cfg, ['train', 'val'])
        assert '\n' not in str(error.value) and '--no-data-check' in str(error.value)


# The same with a wrapper around the data set, where the attribute or the file is inside.
RIGHT = {
    'cls': ('cls', nothing, ''),
    'det': ('det', nothing, ''),
    'seg': ('seg', nothing, ''),
    'films after photos': ('det', films, ''),
    'photos that are turned': ('det', turned_upright, ''),
    'another ignored id': (
        'seg',
        lambda data: label_maps(data, lambda a: np.where(a == 2, 254, a).astype(np.uint8)),
        IGNORE_254,
    ),
    'another ignored id, repeated': (
        'seg',
        lambda data: label_maps(data, lambda a: np.where(a == 2, 254, a).astype(np.uint8)),
        IGNORE_254 + INNER_254,
    ),
    'a test without labels': ('seg', nothing, UNLABELLED),
    'two metrics': (
        'seg',
        nothing,
        "test_evaluator = [dict(type='IoUMetric', iou_metrics=['mIoU', 'mFscore'])]",
    ),
    'two classes': ('seg', lambda data: label_maps(data, lambda a: (a > 0).astype(np.uint8)), TWO),
    'a folder twice': (
        'cls',
        nothing,
        '''
one = {{_base_.train_dataloader.dataset}}
train_dataloader = dict(dataset=dict(_delete_=True, type='RepeatDataset', times=2, dataset=dict(
    type='ConcatDataset', datasets=[one, one])))
''',
    ),
    'folds': (
        'cls',
        nothing,
        '''
one = {{_base_.train_dataloader.dataset}}
train_dataloader = dict(dataset=dict(_delete_=True, type='KFoldDataset', num_splits=3, dataset=one))
''',
    ),
    'grey images': (
        'cls',
        nothing,
        '''
model = dict(backbone=dict(in_channels=1))
data_preprocessor = dict(mean=[127.5], std=[60.], to_rgb=False)
'''
        + both(
            "pipeline=[dict(type='LoadImageFromFile', color_type='grayscale'), "
            "dict(type='Resize', scale=48), dict(type='PackInputs')]"
        ),
    ),
}


@pytest.mark.parametrize('situation', RIGHT)
def test_what_is_right(situation, check, config, data):
    task, change, more = RIGHT[situation]
    change(data)
    more = more.replace('DATA', str(data))
    code, said = check(task, more, '--full')
    assert (code, 'ERROR' in said, 'not checked' in said) == (0, False, False), said
    assert said.splitlines()[-1] == 'the data is complete'
    cfg = config(task, more)
    stop_at_errors(cfg, ['train', 'val'])
    # And training takes every sample.
    dataset = build_dataset(cfg.train_dataloader.dataset)
    assert all(not read_tolerantly(dataset, i).faults for i in range(len(dataset)))


def test_all_three_at_once(check):
    _, said = check('in1k')
    for part in (
        "type='ImageNet'",
        'data_preprocessor.num_classes: is 1000',
        'val_evaluator.topk: is (1, 5)',
    ):
        assert part in said


def test_boxes_without_width_in_a_wrapper(check, data):
    edit(data / 'det/train.json', lambda c: c['annotations'][0]['bbox'].__setitem__(2, 0))
    for more in ('', REPEATED % 'one'):
        code, said = check('det', more)
        assert code == 0
        assert any(
            line.startswith('  WARNING ') and 'annotation 1: bbox' in line
            for line in said.splitlines()
        )


def bomb(side):
    """A PNG file whose header claims more pixels than any memory holds."""

    def chunk(name, content):
        body = name + content
        return struct.pack('>I', len(content)) + body + struct.pack('>I', zlib.crc32(body))

    return (
        b'\x89PNG\r\n\x1a\n'
        + chunk(b'IHDR', struct.pack('>IIBBBBB', side, side, 8, 2, 0, 0, 0))
        + chunk(b'IDAT', zlib.compress(bytes(1000)))
        + chunk(b'IEND', b'')
    )


@pytest.mark.parametrize('task', ['cls', 'det', 'seg'])
def test_the_check_goes_on_after_a_bomb(task, check, data):
    first, second, *_ = [
        path
        for path in images(data, task)
        if 'train' in str(path) and 'annotations' not in str(path)
    ]
    first.write_bytes(bomb(60000))
    second.write_bytes(b'')
    code, said = check(task, '', '--full')
    assert code == 1 and said.splitlines()[-1].startswith('to be fixed: train')
    assert any(line.startswith(f'  ERROR {first}: is not an image') for line in said.splitlines())
    assert f'  ERROR {second}: is empty (0 bytes)' in said and '\nval: ' in said


def test_counts_of_each_class(check, data):
    of_all(data, lambda a: a.update(category_id=3) if a['category_id'] == 5 else None)
    code, said = check('det')
    expected = json.loads((data / 'det/train.json').read_text())['annotations']
    red = [a for a in expected if a['category_id'] == 3]
    rows = {
        line.split()[0]: line.split()[1:] for line in said.splitlines() if line.startswith('    ')
    }
    assert rows['class'] == ['objects', 'images', 'crowds', 'share']
    train = said[: said.index('val: ')]
    (row,) = [line.split() for line in train.splitlines() if line.split()[0] == 'red']
    assert row[:4] == ['red', str(len(red)), str(len({a['image_id'] for a in red})), '0']
    assert "WARNING train_dataloader.dataset: 1 of 3 classes have no sample: 'blue'" in said
    assert code == 0


def test_counts_of_pixels(check, data):
    _, said = check('seg')
    maps = [
        np.asarray(Image.open(path))
        for path in sorted((data / 'seg/annotations/training').iterdir())
    ]
    train = said[: said.index('val: ')]
    for i, name in enumerate(('background', 'red', 'green', 'blue')):
        (row,) = [line.split() for line in train.splitlines() if line.split()[0] == name]
        assert row[1:3] == [
            str(sum(int((a == i).sum()) for a in maps)),
            str(sum(bool((a == i).any()) for a in maps)),
        ]


def test_what_is_not_known_is_not_called_complete(check):
    code, said = check(
        'cls',
        '''
custom_imports = dict(imports=['tests.test_datasets.unknown_data'])
train_dataloader = dict(dataset=dict(_delete_=True, type='UnknownData'))
''',
    )
    assert code == 0, said
    assert 'not checked train_dataloader.dataset: is a UnknownData' in said
    assert 'the data is complete' not in said
    assert said.splitlines()[-1].startswith('no error was found, but not everything was checked')


CLASSES = ('red', 'green', 'blue')
BOXES = torch.tensor([[2.0, 2.0, 30.0, 30.0]])
SAMPLES = dict(
    cls=dict(
        pred_score=torch.tensor([0.2, 0.7, 0.1]),
        gt_label=torch.tensor([1]),
        gt_score=torch.tensor([0, 1, 0]),
        gt_label_difficult=torch.tensor([], dtype=torch.long),
        num_classes=3,
    ),
    det=dict(
        img_id=1,
        ori_shape=(SIDE, SIDE),
        instances=[dict(bbox=BOXES[0].tolist(), bbox_label=1, ignore_flag=0)],
        gt_instances=dict(bboxes=BOXES, labels=torch.tensor([1])),
        ignored_instances=dict(bboxes=BOXES[:0], labels=torch.tensor([])),
        pred_instances=dict(bboxes=BOXES, labels=torch.tensor([1]), scores=torch.tensor([0.9])),
    ),
    seg=dict(
        pred_sem_seg=dict(data=torch.ones(1, 4, 4, dtype=torch.long)),
        gt_sem_seg=dict(data=torch.ones(1, 4, 4, dtype=torch.long)),
    ),
)
METRICS = [
    ('cls', dict(type='Accuracy', topk=(1, 2))),
    ('cls', dict(type='Accuracy', thrs=(0.0, None, 0.25), prefix='mine')),
    ('cls', dict(type='SingleLabelMetric')),
    ('cls', dict(type='SingleLabelMetric', average=None, items=('recall', 'support'))),
    ('cls', dict(type='SingleLabelMetric', average='micro', thrs=(0.1, None))),
    ('cls', dict(type='MultiLabelMetric')),
    ('cls', dict(type='MultiLabelMetric', topk=2, average='micro')),
    ('cls', dict(type='MultiLabelMetric', thr=0.3, average=None)),
    ('cls', dict(type='AveragePrecision')),
    ('cls', dict(type='AveragePrecision', average=None)),
    # Inherits what it computes.
    ('cls', dict(type='VOCAveragePrecision')),
    ('det', dict(type='CocoMetric', metric=['bbox', 'proposal_fast'], classwise=True)),
    ('det', dict(type='CocoMetric', metric='bbox', metric_items=['mAP_50'])),
    ('det', dict(type='CocoMetric', metric='proposal')),
    ('det', dict(type='VOCMetric', iou_thrs=[0.5, 0.75])),
    ('det', dict(type='VOCMetric', metric='recall', iou_thrs=[0.5, 0.75])),
    ('seg', dict(type='IoUMetric', iou_metrics=['mIoU', 'mDice', 'mFscore'])),
]


@pytest.mark.parametrize('task, settings', METRICS)
def test_names_of_metrics_are_those_that_they_report(task, settings, config):
    """As the metrics say themselves, of a sample that was predicted."""
    config(task)
    known = names_of(settings, CLASSES)
    evaluator = Evaluator([settings])
    evaluator.dataset_meta = dict(classes=CLASSES)
    evaluator.process([SAMPLES[task]])
    assert sorted(known) == sorted(evaluator.evaluate(1))


def test_a_metric_that_is_not_known_here_refuses_nothing(check, config):
    more = """
custom_imports = dict(imports=['tests.test_datasets.unknown_data'])
val_evaluator = [dict(type='Accuracy'), dict(type='UnknownMetric')]
default_hooks = dict(checkpoint=dict(save_best='%s'))
"""
    stop_at_errors(config('cls', more % 'unknown'), ['train', 'val'])
    code, said = check('cls', more % 'unknown')
    assert code == 0 and 'not everything was checked' in said.splitlines()[-1]
    assert (
        "  not checked default_hooks.checkpoint.save_best: is 'unknown', and what 'UnknownMetric' "
        'reports is known after a validation only: tools/train.py CONFIG --trial 1'
    ) in said
    assert 'save_best' not in check('cls', more % 'accuracy/top1')[1]


def test_save_best_of_a_hook_besides_the_default_ones(config):
    more = """
default_hooks = dict(checkpoint=None)
custom_hooks = [dict(type='mmhcnet.CheckpointHook', save_best='accuracy/top9')]
"""
    with pytest.raises(UserError, match=r"custom_hooks\.0\.save_best: is 'accuracy/top9'"):
        stop_at_errors(config('cls', more), ['train', 'val'])


def test_a_single_bad_file_does_not_stop_a_training(config, data):
    first = sorted((data / 'seg/annotations/training').iterdir())[0]
    Image.fromarray(np.full((SIDE, SIDE), 9, np.uint8)).save(first)
    assert not list(quick_check(config('seg'), ['train', 'val']))


def test_warnings_are_logged_before_training(config, data, monkeypatch):
    edit(data / 'det/train.json', lambda c: c['categories'].append(dict(id=99, name='cyan')))
    logged = []
    monkeypatch.setattr(
        'mmhcnet.datasets.check.judge.print_log',
        lambda text, logger, level: logged.append((text, level)),
    )
    stop_at_errors(config('det'), ['train', 'val'])
    assert len(logged) == 1 and "as 'cyan'" in logged[0][0] and logged[0][1] == logging.WARNING


def test_images_of_another_storage_are_looked_for_there(check, data):
    """A mirror in memory: on the disk there is none of the images."""
    files = {str(path): path.read_bytes() for path in images(data)}
    for path in images(data):
        path.unlink()

    @register_backend(name='mirror', force=True)
    class Mirror(LocalBackend):
        def get(self, filepath):
            return files[str(filepath)]

        def exists(self, filepath):
            return str(filepath) in files

    more = both("""pipeline=[
        dict(type='LoadImageFromFile', backend_args=dict(backend='mirror')),
        dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
        dict(type='PackDetInputs', meta_keys=('img_id', 'ori_shape', 'img_shape'))]""")
    code, said = check('det', more)
    assert code == 0 and said.splitlines()[-1] == 'the data is complete', said
    del files[min(files)]
    code, said = check('det', more)
    assert code == 1 and 'train/0.png: is not there, and ' in said


@pytest.mark.parametrize('task', ['cls', 'det', 'seg'])
def test_no_random_number_is_drawn(task, config):
    """A training is the same to the bit with and without the check before it."""
    cfg = config(task)
    before = random.getstate(), np.random.get_state(), torch.get_rng_state(), cfg.pretty_text
    stop_at_errors(cfg, ['train', 'val'])
    assert random.getstate() == before[0]
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), before[1]))
    assert torch.equal(torch.get_rng_state(), before[2])
    assert cfg.pretty_text == before[3]


def test_nothing_of_the_data_is_changed(check, data):
    before = {path: path.read_bytes() for path in data.rglob('*') if path.is_file()}
    for task in ('cls', 'det', 'seg'):
        check(task, '', '--full')
    assert {path: path.read_bytes() for path in data.rglob('*') if path.is_file()} == before


def test_what_absent_classes_mean(config, data):
    of_all(data, lambda a: a.update(category_id=3))
    lines = absent_classes(config('det'), ['train', 'val'])
    assert lines[0] == (
        "train classes      2 of 3 occur in none of 8 samples: 'green', 'blue'; "
        'nothing is learned of them'
    )
    assert (
        "val classes        2 of 3 occur in none of 3 samples: 'green', 'blue'; a mean over "
        'classes (mIoU, mAP) is that of the other 1' in lines
    )
    label_maps(data, lambda a: np.where(a == 3, 255, a).astype(np.uint8))
    train, ignored, *_ = absent_classes(config('seg'), ['train', 'val'])
    assert train.startswith("train classes      1 of 4 occur in none of 8 samples: 'blue'")
    pixels = np.concatenate(
        [
            np.asarray(Image.open(path)).reshape(-1)
            for path in sorted((data / 'seg/annotations/training').iterdir())
        ]
    )
    assert ignored.strip() == (
        f'{100 * (pixels == 255).mean():.1f} % of the pixels are ignored (ignore_index 255)'
    )
    assert absent_classes(config('cls'), ['train', 'val']) == []
