"""A user's own project: a folder elsewhere, mmhcnet from a wheel, OpenMMLab's unmodified tools.

Three ways to a model of ours: the backbone by its dotted name in a config of the package, a whole
config of ours as base, and a new-style config that imports the class.
"""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from ..conftest import outside
from ..processes import run

SMALL = 'dict(embed_dims=[16, 24, 32, 40], depths=[1, 1, 1, 1])'

# What the three ways share: the small data set, and a short run without validation.
DATA = {
    'mmpretrain': '''
loader = dict(
    batch_size=10, num_workers=0, persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='CustomDataset', data_root='DATA/classification', data_prefix='val',
        pipeline=[dict(type='LoadImageFromFile'), dict(type='Resize', scale=32),
                  dict(type='PackInputs')]))
train_cfg = dict(by_epoch=True, max_epochs=1)
''',
    'mmdet': '''
loader = dict(
    batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='CocoDataset', data_root='DATA/detection/',
        ann_file='annotations/instances_val2017.json', data_prefix=dict(img='val2017/'),
        metainfo=dict(classes=tuple('0123456789')),
        pipeline=[dict(type='LoadImageFromFile'),
                  dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
                  dict(type='PackDetInputs',
                       meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape'))]))
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=1)
''',
    'mmseg': '''
loader = dict(
    batch_size=2, num_workers=0, sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='BaseSegDataset', data_root='DATA/segmentation', img_suffix='.png',
        metainfo=dict(classes=tuple('0123456789_')), data_prefix=dict(
            img_path='images/validation', seg_map_path='annotations/validation'),
        pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'),
                  dict(type='PackSegInputs')]))
train_cfg = dict(type='IterBasedTrainLoop', max_iters=2, val_interval=10)
''',
}
COMMON = '''
param_scheduler = []
val_cfg = val_dataloader = val_evaluator = None
test_cfg = test_dataloader = test_evaluator = None
default_hooks = dict(logger=dict(type='LoggerHook', interval=1))
'''

# Less work for Mask R-CNN's heads.
HEADS = '''
model.update(
    roi_head=dict(
        bbox_head=dict(fc_out_channels=32), mask_head=dict(num_convs=1, conv_out_channels=32)),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=100, max_per_img=50), rcnn=dict(sampler=dict(num=16))))
'''

# A config of the package, and what puts our backbone into it.
BACKBONE = {
    'mmpretrain': (
        'resnet/resnet50_8xb32_in1k.py',
        f'''
model = dict(
    backbone=dict(_delete_=True, type='mmhcnet.HcNet', arch={SMALL}, out_indices=(3, )),
    head=dict(num_classes=10, in_channels=40, topk=(1, )))
''',
    ),
    'mmdet': (
        'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
        f'''
model = dict(
    backbone=dict(_delete_=True, type='mmhcnet.HcNet', arch={SMALL}),
    neck=dict(in_channels=[16, 24, 32, 40]))
{HEADS}''',
    ),
    'mmseg': (
        'upernet/upernet_r50_4xb4-80k_ade20k-512x512.py',
        f'''
model = dict(
    data_preprocessor=dict(size=(128, 128)),
    pretrained=None,
    backbone=dict(_delete_=True, type='mmhcnet.HcNet', arch={SMALL}),
    decode_head=dict(in_channels=[16, 24, 32, 40], channels=32),
    auxiliary_head=dict(in_channels=32))
''',
    ),
}

# A config of ours, and what makes it small. It names its arch, which a dict must replace.
REPLACED = SMALL.replace('dict(', 'dict(_delete_=True, ', 1)
WHOLE = {
    'mmpretrain': (
        'classification/hcnet_t_in1k.py',
        f'''
model = dict(
    backbone=dict(arch={REPLACED}),
    head=dict(in_channels=40))
''',
    ),
    'mmdet': (
        'detection/mask_rcnn_hcnet_t_1x.py',
        f'''
model = dict(backbone=dict(arch={REPLACED}), neck=dict(in_channels=[16, 24, 32, 40]))
{HEADS}''',
    ),
    'mmseg': (
        'segmentation/upernet_hcnet_t_160k_ade20k.py',
        f'''
model = dict(
    data_preprocessor=dict(size=(128, 128)),
    backbone=dict(arch={REPLACED}),
    decode_head=dict(in_channels=[16, 24, 32, 40], channels=32),
    auxiliary_head=dict(in_channels=32))
''',
    ),
}

# A base of the user's own, whose types are imported classes, and the backbone's arguments.
NEW_STYLE = {
    'mmpretrain': (
        '''
from mmpretrain.models import CrossEntropyLoss, GlobalAveragePooling, ImageClassifier, LinearClsHead

model = dict(
    type=ImageClassifier,
    neck=dict(type=GlobalAveragePooling),
    head=dict(type=LinearClsHead, num_classes=10, in_channels=40, loss=dict(type=CrossEntropyLoss)))
''',
        f'arch={SMALL}, out_indices=(3, )',
    ),
    'mmdet': (
        '''
from mmdet.models import FCOS, FPN, DetDataPreprocessor, FCOSHead

model = dict(
    type=FCOS,
    data_preprocessor=dict(type=DetDataPreprocessor, pad_size_divisor=32),
    neck=dict(type=FPN, in_channels=[16, 24, 32, 40], out_channels=16, num_outs=5),
    bbox_head=dict(
        type=FCOSHead, num_classes=10, in_channels=16, feat_channels=16, stacked_convs=1,
        strides=[4, 8, 16, 32, 64], norm_cfg=None))
''',
        f'arch={SMALL}',
    ),
    'mmseg': (
        '''
from mmseg.models import CrossEntropyLoss, EncoderDecoder, FCNHead, SegDataPreProcessor

model = dict(
    type=EncoderDecoder,
    data_preprocessor=dict(type=SegDataPreProcessor, size=(128, 128)),
    decode_head=dict(
        type=FCNHead, in_channels=40, in_index=3, channels=16, num_convs=1, num_classes=11,
        loss_decode=dict(type=CrossEntropyLoss)),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'))
''',
        f'arch={SMALL}',
    ),
}


# Of a fresh Python that has imported torch and what else takes long, and nothing of the task's
# package or of mmhcnet: a process for each folder, in which the tool is run as a program.
RUN = """
import os, runpy, sys, traceback
import matplotlib.pyplot, mmcv.ops, mmengine.runner, scipy.optimize, sklearn, torch._dynamo
tool, package, *folders = sys.argv[1:]
for name in ('mmhcnet', package):
    assert name not in sys.modules
for folder in folders:
    sys.stdout.flush()
    child = os.fork()
    if not child:
        code = 1
        try:
            os.chdir(folder)
            sys.argv = [tool, 'mine.py', '--work-dir', 'run']
            sys.path[0] = os.path.dirname(tool)
            runpy.run_path(tool, run_name='__main__')
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0, folder
    print('END OF A RUN')
"""


def train(python, package, folders):
    """Run a package's own tools/train.py on the configs `mine.py` of folders."""
    tool = Path(find_spec(package).origin).parent / '.mim/tools/train.py'
    done = run([python, '-c', RUN, tool, package, *folders], cwd=folders[0], env=outside())
    assert done.returncode == 0, done.stderr[-3000:]
    outputs = done.stdout.split('END OF A RUN')[:-1]
    for folder, output in zip(folders, outputs, strict=True):
        losses = re.findall(r'\(train\).* loss: ([\d.]+)', output)
        assert len(losses) == 2, folder
        assert (folder / 'run' / 'last_checkpoint').is_file()
        assert 'HcNet' in (folder / 'run' / 'mine.py').read_text()


def old_style(folder, base, model, data):
    folder.mkdir()
    (folder / 'mine.py').write_text(
        f'_base_ = {base}\n{model}{data}{COMMON}train_dataloader = dict(_delete_=True, **loader)\n'
    )


def backbone_by_name(package, data, folder):
    base, model = BACKBONE[package]
    old_style(folder, f"__import__('{package}').__path__[0] + '/.mim/configs/{base}'", model, data)


def whole_config_as_base(package, data, folder):
    base, model = WHOLE[package]
    # The base names its training loop, and mmengine takes by_epoch in place of a name only.
    data = data.replace('by_epoch=True, ', '')
    old_style(folder, f"__import__('mmhcnet').config('{base}')", model, data)


def new_style_config(package, data, folder):
    model, backbone = NEW_STYLE[package]
    folder.mkdir()
    (folder / 'my_base.py').write_text(
        f'{model}{data}{COMMON}train_dataloader = loader\n'
        f"default_scope = '{package}'\n"
        "optim_wrapper = dict(optimizer=dict(type='AdamW', lr=1e-4))\n"
    )
    (folder / 'mine.py').write_text(f'''
from mmengine.config import read_base
from mmhcnet import HcNet

with read_base():
    from .my_base import *

model.update(backbone=dict(type=HcNet, {backbone}))
''')


WAYS = (backbone_by_name, whole_config_as_base, new_style_config)


@pytest.mark.slow
@pytest.mark.parametrize('package', DATA)
def test_three_ways_to_a_model(package, installed, digits, tmp_path):
    folders = [tmp_path / way.__name__ for way in WAYS]
    for way, folder in zip(WAYS, folders):
        way(package, DATA[package].replace('DATA', str(digits)), folder)
    train(installed, package, folders)
