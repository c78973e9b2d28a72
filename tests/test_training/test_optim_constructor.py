"""Learning rate and weight decay of every parameter of every recipe, whatever a user adds."""

import copy
import re

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmhcnet.cli.config import load_config, stock_config, use_constructor
from mmhcnet.models.backbones import hcnet, vheat
from mmhcnet.training.optim_constructor import OptimWrapperConstructor

from ..conftest import ROOT

CONFIGS = ROOT / 'configs'
RECIPES = sorted(
    path.relative_to(CONFIGS).as_posix()
    for path in CONFIGS.rglob('*.py')
    if '_base_' not in path.parts
)
ARCHS = {'mmhcnet.HcNet': hcnet.ARCHS, 'mmhcnet.VHeat': vheat.ARCHS}
# What the papers' recipes keep free of weight decay beside norms, by name.
FREE = re.compile(r'conduction\.[wk]$|freq_embed|gamma')
NORMS = (nn.GroupNorm, nn.LayerNorm, _BatchNorm)


def build(cfg):
    init_default_scope(cfg.default_scope)
    with torch.device('meta'):
        return MODELS.build(cfg.model)


def settings_of(model, optim_wrapper):
    """Learning rate and weight decay of every parameter."""
    optimizer = build_optim_wrapper(model, copy.deepcopy(optim_wrapper)).optimizer
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {
        names[id(parameter)]: (group['lr'], group['weight_decay'])
        for group in optimizer.param_groups
        for parameter in group['params']
    }
    assert set(found) == set(names.values())
    return found


def norms_of(model):
    return {
        f'{name}.{part}'
        for name, module in model.named_modules()
        if isinstance(module, NORMS)
        for part in ('weight', 'bias')
    }


@pytest.mark.parametrize('name', RECIPES)
def test_every_parameter_of_a_recipe(name):
    cfg = load_config(str(CONFIGS / name), None, None)
    backbone = cfg.model.backbone
    if backbone.type in ARCHS:
        arch = backbone.arch
        arch = ARCHS[backbone.type][arch] if isinstance(arch, str) else arch
        backbone.arch = dict(arch, depths=[1, 1, 1, 1])
    model = build(cfg)
    optimizer, norms = cfg.optim_wrapper.optimizer, norms_of(model)
    factor = 1.0
    if 'digits' in name and 'finetune' not in name:
        factor = dict(classification=1.0, detection=0.5, segmentation=0.2)[name.split('/')[0]]
    biases_decay = not (name.startswith('classification') and 'digits' not in name)

    as_shipped = settings_of(model, cfg.optim_wrapper)
    cfg.merge_from_dict({'optim_wrapper.paramwise_cfg.custom_keys.backbone.lr_mult': 0.1})
    overridden = settings_of(model, cfg.optim_wrapper)
    for key, (lr, decay) in as_shipped.items():
        own = factor if key.startswith('backbone.') else 1.0
        if 'finetune' not in name:
            assert lr == pytest.approx(optimizer.lr * own), key
        free = key in norms or FREE.search(key) or (key.endswith('bias') and not biases_decay)
        assert decay == (0.0 if free else optimizer.weight_decay), key
        scale = 0.1 / own if key.startswith('backbone.') else 1.0
        assert overridden[key] == (pytest.approx(lr * scale), decay), key


@pytest.mark.parametrize('family', ['HcNet', 'VHeat'])
@pytest.mark.parametrize('override', [{}, dict(backbone=dict(lr_mult=0.1))], ids=str)
@pytest.mark.parametrize('named', [True, False])
def test_a_config_of_others_with_our_backbone(family, override, named):
    """Swin's recipe, whose keys say which parameters do not decay, with the backbone replaced."""
    cfg = Config.fromfile(stock_config('mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py'))
    arch = dict(embed_dims=[96, 192, 384, 768], depths=[1, 1, 1, 1])
    if family == 'VHeat':
        arch.update(post_norm=True, layer_scale=1e-5)
    cfg.model.backbone = dict(type=f'mmhcnet.{family}', arch=arch)
    cfg.optim_wrapper.paramwise_cfg.custom_keys.update(override)
    if named:
        cfg.optim_wrapper.constructor = 'mmhcnet.OptimWrapperConstructor'
    use_constructor(cfg)
    model = build(cfg)
    norms = norms_of(model)
    for key, (lr, decay) in settings_of(model, cfg.optim_wrapper).items():
        scale = 0.1 if override and key.startswith('backbone.') else 1.0
        assert lr == pytest.approx(1e-4 * scale), key
        assert decay == (0.0 if key in norms or FREE.search(key) else 0.05), key


def test_a_constructor_that_a_config_names_stays():
    for constructor in ('DefaultOptimWrapperConstructor', 'mmhcnet.OptimWrapperConstructor'):
        wrapper = dict(constructor=constructor, optimizer=dict(type='AdamW'))
        cfg = Config(dict(optim_wrapper=wrapper, model=dict(backbone=dict(type='mmhcnet.HcNet'))))
        use_constructor(cfg)
        assert cfg.optim_wrapper.constructor == constructor


class Part(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, groups=2)
        self.norm = nn.GroupNorm(1, 2)
        self.scale = nn.Parameter(torch.ones(2))

    def no_weight_decay(self):
        return {'scale'}


def rates(paramwise_cfg, model=None, **optimizer):
    optimizer = dict(type='AdamW', lr=1.0, weight_decay=1.0) | optimizer
    constructor = OptimWrapperConstructor(dict(optimizer=optimizer), paramwise_cfg)
    model = model or nn.ModuleDict(dict(backbone=Part(), head=nn.Linear(2, 2)))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = constructor(model).optimizer.param_groups
    return {names[id(group['params'][0])]: group for group in groups}


def test_without_options_only_the_wish_of_a_module_counts():
    for paramwise_cfg in (None, {}):
        groups = rates(paramwise_cfg)
        assert {name: g['weight_decay'] for name, g in groups.items() if 'scale' in name} == {
            'backbone.scale': 0.0
        }
        assert {g['weight_decay'] for name, g in groups.items() if 'scale' not in name} == {1.0}
        assert {group['lr'] for group in groups.values()} == {1.0}


def test_multipliers_combine():
    groups = rates(
        dict(
            norm_decay_mult=0.0,
            bias_lr_mult=2.0,
            dwconv_decay_mult=0.5,
            custom_keys={'backbone': dict(lr_mult=0.1, decay_mult=0.5, betas=(0.5, 0.5))},
        )
    )
    found = {name: (group['lr'], group['weight_decay']) for name, group in groups.items()}
    assert found == {
        'backbone.scale': (0.1, 0.0),
        'backbone.conv.weight': (0.1, 0.25),
        'backbone.conv.bias': (0.2, 0.25),
        'backbone.norm.weight': (0.1, 0.0),
        'backbone.norm.bias': (0.1, 0.0),
        'head.weight': (1.0, 1.0),
        'head.bias': (2.0, 1.0),
    }
    assert groups['backbone.conv.bias']['betas'] == (0.5, 0.5)
    assert groups['head.bias']['betas'] == (0.9, 0.999)


def test_the_longest_key_that_has_a_setting_decides_it():
    keys = {
        'backbone': dict(lr_mult=0.1, decay_mult=0.5),
        'backbone.norm': dict(decay_mult=0.0),
        'norm': dict(lr_mult=3.0),
        'bias': dict(lr_mult=4.0),
        'conv': dict(lr_mult=5.0),
    }
    found = {
        name: (group['lr'], group['weight_decay'])
        for name, group in rates(dict(custom_keys=keys)).items()
    }
    assert found['backbone.norm.weight'] == (0.1, 0.0)
    assert found['backbone.conv.bias'] == (0.1, 0.5)
    assert found['head.bias'] == (4.0, 1.0)
    # Of keys of equal length the first in the alphabet, as in mmengine.
    part = nn.ModuleDict(dict(conv=nn.Linear(2, 2)))
    assert rates(dict(custom_keys=keys), part)['conv.bias']['lr'] == 4.0


def test_frozen_parameters_are_left_out():
    model = nn.ModuleDict(dict(backbone=Part(), head=nn.Linear(2, 2)))
    model['backbone'].requires_grad_(False)
    assert set(rates(dict(), model)) == {'head.weight', 'head.bias'}


@pytest.mark.parametrize(
    'optimizer, settings, said',
    [
        (dict(type='AdamW'), dict(lr_mult=0.1), 'custom_keys.head.lr_mult .* set optim_wrapper'),
        (dict(type='AdamW', lr=1.0), dict(decay_mult=0.1), 'base_wd should not be None'),
    ],
)
def test_a_multiplier_of_nothing(optimizer, settings, said):
    with pytest.raises(ValueError, match=said):
        OptimWrapperConstructor(dict(optimizer=optimizer), dict(custom_keys=dict(head=settings)))
