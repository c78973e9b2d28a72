"""A user's own project: a config outside this repository and OpenMMLab's own unmodified tools."""
import re
import subprocess
import sys
from pathlib import Path

import pytest

# A base of the package, what replaces its backbone, and what points it to the small data set.
CASES = {
    'mmpretrain': ('resnet/resnet50_8xb32_in1k.py', '''
model = dict(
    backbone=dict(_delete_=True, type='mmhcnet.HcNet', arch='tiny', out_indices=(3, )),
    head=dict(num_classes=10, in_channels=512, topk=(1, )))
pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=32), dict(type='PackInputs')]
train_dataloader = dict(batch_size=4, num_workers=0, persistent_workers=False, dataset=dict(
    _delete_=True, type='CustomDataset', data_root='DATA/classification', data_prefix='val',
    pipeline=pipeline))
train_cfg = dict(by_epoch=True, max_epochs=1)
'''),
    'mmdet': ('mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', '''
model = dict(
    backbone=dict(_delete_=True, type='mmhcnet.HcNet', arch='tiny'),
    neck=dict(in_channels=[64, 128, 320, 512]))
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape'))]
train_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(
    data_root='DATA/detection/', ann_file='annotations/instances_val2017.json',
    data_prefix=dict(img='val2017/'), metainfo=dict(classes=tuple('0123456789')),
    pipeline=pipeline))
train_cfg = dict(max_epochs=1)
'''),
    'mmseg': ('upernet/upernet_r50_4xb4-80k_ade20k-512x512.py', '''
model = dict(
    data_preprocessor=dict(size=(128, 128)),
    pretrained=None,
    backbone=dict(_delete_=True, type='mmhcnet.HcNet', arch='tiny'),
    decode_head=dict(in_channels=[64, 128, 320, 512]),
    auxiliary_head=dict(in_channels=320))
pipeline = [
    dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False, dataset=dict(
    data_root='DATA/segmentation', img_suffix='.png', data_prefix=dict(
        img_path='images/validation', seg_map_path='annotations/validation'), pipeline=pipeline))
train_cfg = dict(max_iters=2, val_interval=10)
'''),
}
COMMON = '''
param_scheduler = []
val_cfg = val_dataloader = val_evaluator = None
test_cfg = test_dataloader = test_evaluator = None
default_hooks = dict(logger=dict(interval=1))
'''


@pytest.mark.slow
@pytest.mark.parametrize('package', CASES)
def test_trains_with_the_packages_own_tool(package, digits, tmp_path):
    base, rest = CASES[package]
    mim = f"__import__('{package}').__path__[0] + '/.mim/configs/{base}'"
    config = tmp_path / 'mine.py'
    config.write_text(f'_base_ = {mim}\n{rest.replace("DATA", str(digits))}{COMMON}')
    where = subprocess.run(
        [sys.executable, '-c', f'import {package}; print({package}.__path__[0])'],
        capture_output=True, text=True, check=True).stdout.split()[-1]
    done = subprocess.run(
        [sys.executable, str(Path(where) / '.mim' / 'tools' / 'train.py'), str(config),
         '--work-dir', str(tmp_path / 'run')], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r'\(train\).* loss: [\d.]+', done.stdout)
    assert (tmp_path / 'run' / 'last_checkpoint').is_file()
    assert 'HcNet' in (tmp_path / 'run' / 'mine.py').read_text()


@pytest.mark.parametrize('name', ['classification/hcnet_t_in1k.py',
                                  'detection/mask_rcnn_hcnet_s_3x.py',
                                  'segmentation/upernet_hcnet_b_160k_ade20k.py'])
def test_a_whole_config_of_ours_is_a_base(name, tmp_path):
    config = tmp_path / 'mine.py'
    config.write_text(f"_base_ = __import__('mmhcnet').config('{name}')\n"
                      'model = dict(backbone=dict(drop_path_rate=0.05))\n')
    code = (f"from mmengine.config import Config; c = Config.fromfile('{config}')\n"
            'print(c.model.backbone.type, c.model.backbone.drop_path_rate)')
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True,
                          text=True)
    assert done.stdout.split()[-2:] == ['mmhcnet.HcNet', '0.05'], done.stderr
