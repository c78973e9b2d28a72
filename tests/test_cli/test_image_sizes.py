import pytest
from mmengine.config import Config

import mmhcnet
from mmhcnet.cli.image_sizes import varying_step

NOTHING = 'a pipeline in which no step gives images one size'
KEPT = 'Resize(scale=(1333, 800), keep_ratio=True)'


@pytest.mark.parametrize(
    'config, train, val',
    [
        ('classification/hcnet_t_in1k.py', None, None),
        ('classification/vheat_digits.py', None, None),
        ('detection/mask_rcnn_hcnet_t_1x.py', KEPT, KEPT),
        ('detection/mask_rcnn_hcnet_t_3x.py', 'RandomChoice()', KEPT),
        # The scenes have one size, which their pipelines do not say.
        ('detection/mask_rcnn_hcnet_digits.py', NOTHING, None),
        # Crops, padded to their size in training.
        (
            'segmentation/upernet_hcnet_t_160k_ade20k.py',
            None,
            'Resize(scale=(2048, 512), keep_ratio=True)',
        ),
        ('segmentation/upernet_vheat_digits.py', None, NOTHING),
    ],
)
def test_configs(config, train, val):
    cfg = Config.fromfile(mmhcnet.config(config))
    assert (varying_step(cfg, 'train'), varying_step(cfg, 'val')) == (train, val)


@pytest.mark.parametrize(
    'steps, varying',
    [
        ([dict(type='mmdet.Resize', scale_factor=2.0)], 'Resize()'),
        (
            [
                dict(type='ResizeEdge', scale=256, edge='short'),
                dict(type='CenterCrop', crop_size=224),
            ],
            None,
        ),
        (
            [dict(type='RandomCrop', crop_size=(384, 600), crop_type='absolute_range')],
            "RandomCrop(crop_size=(384, 600), crop_type='absolute_range')",
        ),
        (
            [
                dict(type='RandomResize', scale=(640, 640)),
                dict(type='RandomCrop', crop_size=(640, 640)),
                dict(type='Pad', size=(640, 640)),
            ],
            None,
        ),
        ([dict(type='Pad', size_divisor=32)], NOTHING),
        (
            [
                dict(type='CenterCrop', crop_size=224),
                dict(
                    type='TestTimeAug',
                    transforms=[
                        [dict(type='RandomFlip', prob=p) for p in (0.0, 1.0)],
                        [dict(type='PackInputs')],
                    ],
                ),
            ],
            None,
        ),
        (
            [
                dict(type='CenterCrop', crop_size=224),
                dict(
                    type='TestTimeAug',
                    transforms=[
                        [dict(type='Resize', scale=s) for s in (224, 288)],
                        [dict(type='PackInputs')],
                    ],
                ),
            ],
            'TestTimeAug()',
        ),
    ],
)
def test_steps(steps, varying):
    cfg = Config(dict(test_dataloader=dict(dataset=dict(pipeline=steps))))
    assert varying_step(cfg, 'test') == varying


def test_the_pipeline_of_a_wrapper_comes_last():
    inner = dict(pipeline=[dict(type='CenterCrop', crop_size=224)])
    outer = dict(
        type='MultiImageMixDataset',
        dataset=dict(type='ConcatDataset', datasets=[inner]),
        pipeline=[dict(type='Mosaic')],
    )
    cfg = Config(dict(train_dataloader=dict(dataset=outer)))
    assert varying_step(cfg, 'train') == 'Mosaic()'
