"""Layer-wise learning-rate decay: the rate of every parameter, in the three tasks."""

import re

import pytest
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from torch import nn

from mmhcnet import HcNet, VHeat
from mmhcnet.cli.config import load_config, use_constructor
from mmhcnet.cli.errors import import_task
from mmhcnet.inference.model import build_model
from mmhcnet.training.layer_decay import LearningRateDecayOptimizerConstructor

from ..conftest import ROOT

DEPTHS = [1, 2, 3, 1]
SMALL = dict(embed_dims=[16, 16, 32, 32], depths=DEPTHS)
BACKBONES = dict(
    hcnet=lambda **settings: HcNet(arch=SMALL, **settings),
    vheat=lambda **settings: VHeat(
        arch=dict(SMALL, post_norm=True, layer_scale=1e-5), img_size=64, **settings
    ),
)


def depth_of(name):
    """The depth that a parameter of a backbone with ``DEPTHS`` is expected to have."""
    if name.startswith('stem.'):
        return 0
    match = re.match(r'stages\.(\d)\.(\d)\.', name)
    if match:
        return {(0, 0): 1, (1, 0): 2, (1, 1): 3, (2, 0): 4, (2, 1): 5, (2, 2): 6, (3, 0): 7}[
            int(match[1]), int(match[2])
        ]
    match = re.match(r'(downsamples|norm|freq_embed)\.?(\d)', name)
    return dict(downsamples=[2, 4, 7], norm=[1, 3, 6, 7], freq_embed=[1, 2, 4, 7])[match[1]][
        int(match[2])
    ]


@pytest.mark.parametrize('family', BACKBONES)
def test_depths(family):
    backbone = BACKBONES[family]()
    for name, _ in backbone.named_parameters():
        assert backbone.get_layer_depth(name) == (depth_of(name), 9), name
        assert backbone.get_layer_depth(f'backbone.{name}', 'backbone.') == (depth_of(name), 9)
    assert backbone.get_layer_depth('neck.convs.0.weight', 'backbone.') == (8, 9)
    assert backbone.get_layer_depth('decode_head.norm.weight', 'backbone.') == (8, 9)


def config(task, family, constructor, **paramwise):
    path = {
        'cls': 'classification/{}_digits.py',
        'det': 'detection/mask_rcnn_{}_digits.py',
        'seg': 'segmentation/upernet_{}_digits.py',
    }[task].format(family)
    cfg = load_config(
        str(ROOT / 'configs' / path),
        {'model.backbone.arch.depths': DEPTHS, 'optim_wrapper.constructor': constructor},
        None,
    )
    cfg.optim_wrapper.paramwise_cfg = paramwise
    cfg.optim_wrapper.optimizer.lr = 1.0
    import_task(cfg.default_scope)
    init_default_scope(cfg.default_scope)
    use_constructor(cfg)
    return cfg


def rates_of(cfg):
    model = build_model(cfg)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = {
        names[id(p)]: group for group in wrapper.optimizer.param_groups for p in group['params']
    }
    assert set(groups) == {name for name, p in model.named_parameters() if p.requires_grad}
    return groups


@pytest.mark.parametrize('family', BACKBONES)
@pytest.mark.parametrize(
    'task, constructor, key',
    [
        ('cls', 'LearningRateDecayOptimWrapperConstructor', 'layer_decay_rate'),
        ('det', 'LearningRateDecayOptimizerConstructor', 'decay_rate'),
        ('det', 'mmdet.LearningRateDecayOptimizerConstructor', 'decay_rate'),
        ('det', 'mmhcnet.LearningRateDecayOptimizerConstructor', 'decay_rate'),
        ('seg', 'LearningRateDecayOptimizerConstructor', 'decay_rate'),
    ],
)
def test_rate_of_every_parameter(task, constructor, key, family):
    groups = rates_of(config(task, family, constructor, **{key: 0.5}))
    for name, group in groups.items():
        depth = depth_of(name[len('backbone.') :]) if name.startswith('backbone.') else 8
        assert group['lr'] == pytest.approx(0.5 ** (8 - depth)), name
    assert len({group['lr'] for group in groups.values()}) == 9


@pytest.mark.parametrize('family', BACKBONES)
@pytest.mark.parametrize(
    'task, decay_type, num_layers, layer, head',
    [
        ('det', 'layer_wise', 3, {0: 0, 1: 1, 2: 1, 3: 2, 4: 2, 5: 3, 6: 3, 7: 3}, 4),
        ('seg', 'stage_wise', 6, {0: 0, 1: 1, 2: 2, 3: 2, 4: 3, 5: 3, 6: 3, 7: 4}, 5),
    ],
)
def test_layers_are_gathered(family, task, decay_type, num_layers, layer, head):
    """The settings of the ConvNeXt recipes: blocks in fewer layers, or a layer per stage."""
    groups = rates_of(
        config(
            task,
            family,
            'LearningRateDecayOptimizerConstructor',
            decay_rate=0.7,
            decay_type=decay_type,
            num_layers=num_layers,
        )
    )
    for name, group in groups.items():
        found = layer[depth_of(name[len('backbone.') :])] if name.startswith('backbone.') else head
        assert group['lr'] == pytest.approx(0.7 ** (head - found)), name


@pytest.mark.parametrize('family', BACKBONES)
def test_what_has_no_weight_decay(family):
    groups = rates_of(
        config('det', family, 'LearningRateDecayOptimizerConstructor', decay_rate=0.7)
    )
    for name, group in groups.items():
        free = group['params'][0].ndim == 1 or re.search(
            r'conduction\.[wk]$|freq_embed|gamma', name
        )
        assert group['weight_decay'] == (0 if free else 0.05), name


def test_options_of_mmengine_stay():
    groups = rates_of(
        config(
            'det',
            'hcnet',
            'LearningRateDecayOptimizerConstructor',
            decay_rate=0.7,
            custom_keys=dict(neck=dict(lr_mult=0.5)),
            norm_decay_mult=0.0,
        )
    )
    assert {group['lr'] for name, group in groups.items() if name.startswith('neck.')} == {0.5}
    # Nothing is said of biases, and so they decay as weights do.
    assert {
        group['weight_decay']
        for name, group in groups.items()
        if name.startswith('rpn_head.') and name.endswith('.bias')
    } == {0.05}


@pytest.mark.parametrize(
    'paramwise, said',
    [
        (dict(), 'decay_rate must be above 0'),
        (dict(decay_rate=1.5), 'got 1.5'),
        (dict(decay_rate=0.5, decay_type='block'), "'layer_wise' or 'stage_wise', got 'block'"),
        (dict(decay_rate=0.5, num_layers=0), 'num_layers must be'),
    ],
)
def test_settings_out_of_range(paramwise, said):
    with pytest.raises(ValueError, match=said):
        LearningRateDecayOptimizerConstructor(dict(optimizer=dict(type='SGD', lr=1.0)), paramwise)


def test_a_backbone_without_depths():
    constructor = LearningRateDecayOptimizerConstructor(
        dict(optimizer=dict(type='SGD', lr=1.0)), dict(decay_rate=0.5)
    )
    with pytest.raises(ValueError, match='Linear has no get_layer_depth'):
        constructor(nn.Linear(2, 2))


def test_constructors_of_others_are_left_to_them():
    theirs = 'LearningRateDecayOptimizerConstructor'
    cfg = Config(
        dict(
            default_scope='mmdet',
            optim_wrapper=dict(constructor=theirs),
            model=dict(backbone=dict(type='mmpretrain.ConvNeXt')),
        )
    )
    use_constructor(cfg)
    assert cfg.optim_wrapper.constructor == theirs


@pytest.mark.parametrize(
    'path, lowest',
    [
        ('classification/hcnet_digits_finetune.py', 3e-3 * 0.75**6),
        ('detection/mask_rcnn_hcnet_digits_finetune.py', 2.5e-3 * 0.8**6),
        ('segmentation/upernet_hcnet_digits_finetune.py', 1e-2 * 0.7**5),
    ],
)
def test_examples(path, lowest):
    cfg = load_config(str(ROOT / 'configs' / path), None, None)
    import_task(cfg.default_scope)
    init_default_scope(cfg.default_scope)
    groups = rates_of(cfg)
    stem = {group['lr'] for name, group in groups.items() if name.startswith('backbone.stem.')}
    assert list(stem) == pytest.approx([lowest])
    assert max(group['lr'] for group in groups.values()) == cfg.optim_wrapper.optimizer.lr
