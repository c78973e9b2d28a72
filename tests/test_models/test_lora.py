"""Low-rank adapters of mmpretrain and of peft around both backbones."""

import copy

import pytest
import torch
from mmengine.config import Config
from torch import nn

from mmhcnet import HcNet, VHeat, create_model, from_pretrained, save_pretrained
from mmhcnet.cli.lora import check_lora
from mmhcnet.errors import UserError

ARCH = dict(embed_dims=[8, 16], depths=[1, 1])
SETTINGS = {
    'hcnet': dict(type='mmhcnet.HcNet', arch=ARCH, out_indices=(0, 1)),
    'vheat': dict(
        type='mmhcnet.VHeat', arch=dict(ARCH, post_norm=True, layer_scale=0.1), out_indices=(0, 1)
    ),
}
# Linear layers are all that mmpretrain's adapters fit; peft's fit 1x1 convolutions, too.
LINEAR = {'hcnet': ['to_k'], 'vheat': ['to_k', 'fc_in', 'fc_out', 'fc1', 'fc2']}
PRODUCTS = {'hcnet': ['to_k', 'fc1', 'fc2'], 'vheat': LINEAR['vheat']}


def built(family):
    cls = HcNet if family == 'hcnet' else VHeat
    return cls(**{k: v for k, v in SETTINGS[family].items() if k != 'type'})


def outputs(model, x):
    with torch.no_grad():
        return torch.cat([out.flatten() for out in model(x)])


def check_every_adapter(model, adapted, x, names):
    """Each of the named parameters gets a gradient, and each adapted layer changes the output."""
    sum(out.square().sum() for out in model(x)).backward()
    for name in names:
        gradient = model.get_parameter(name).grad
        assert gradient is not None and gradient.abs().max() > 0, name
    whole = outputs(model, x)
    for layer in adapted:
        weights = copy.deepcopy(layer.state_dict())
        with torch.no_grad():
            for name, parameter in layer.named_parameters():
                if 'lora_' in name:
                    parameter.zero_()
        assert not torch.allclose(outputs(model, x), whole, rtol=0, atol=1e-7), layer
        layer.load_state_dict(weights)


@pytest.mark.parametrize('family', SETTINGS)
def test_mmpretrain(family):
    lora = pytest.importorskip('mmpretrain.models.peft.lora')
    targets = [dict(type=name) for name in LINEAR[family]]
    model = lora.LoRAModel(copy.deepcopy(SETTINGS[family]), alpha=4, rank=2, targets=targets).eval()
    adapted = [m for m in model.modules() if isinstance(m, lora.LoRALinear)]
    assert len(adapted) == 2 * len(LINEAR[family])
    x = torch.randn(2, 3, 48, 64)
    before = outputs(model, x)
    for layer in adapted:
        nn.init.normal_(layer.lora_up.weight)
    assert not torch.allclose(outputs(model, x), before)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(names) == 2 * len(adapted)
    check_every_adapter(model, adapted, x, names)

    merged = copy.deepcopy(model)
    for parent in list(merged.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, lora.LoRALinear):
                plain = layer.original_layer
                plain.weight.data += layer.scaling * layer.lora_up.weight @ layer.lora_down.weight
                setattr(parent, name, plain)
    torch.testing.assert_close(outputs(merged, x), outputs(model, x), rtol=1e-4, atol=1e-4)


@pytest.mark.deploy
@pytest.mark.parametrize('family', SETTINGS)
def test_peft(family):
    peft = pytest.importorskip('peft', reason='peft is not installed: make test-deploy')
    config = peft.LoraConfig(r=2, target_modules=PRODUCTS[family], init_lora_weights=False)
    model = peft.get_peft_model(built(family).eval(), config)
    adapted = [m for m in model.modules() if isinstance(m, peft.tuners.lora.LoraLayer)]
    assert len(adapted) == 2 * len(PRODUCTS[family])
    x = torch.randn(2, 3, 48, 64)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(names) == 2 * len(adapted) and all('lora_' in name for name in names)
    check_every_adapter(model, adapted, x, names)
    whole = outputs(model, x)
    merged = model.merge_and_unload()
    assert type(merged) in (HcNet, VHeat)
    torch.testing.assert_close(outputs(merged, x), whole, rtol=1e-4, atol=1e-4)


@pytest.mark.deploy
def test_peft_around_a_classifier_by_name(tmp_path):
    """As docs/adapting.md has it: adapters, a new head, and the merged model in a folder."""
    peft = pytest.importorskip('peft', reason='peft is not installed: make test-deploy')
    model = create_model('hcnet', arch=ARCH, num_classes=10)
    config = peft.LoraConfig(
        r=8, lora_alpha=16, target_modules=['to_k', 'fc1', 'fc2'], modules_to_save=['head']
    )
    model = peft.get_peft_model(model, config).eval()
    x = torch.randn(2, 3, 48, 64)
    model(x).square().sum().backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert trained == {name for name, p in model.named_parameters() if p.requires_grad}
    assert any('head' in name for name in trained)
    model.save_pretrained(str(tmp_path / 'adapters'))
    whole = outputs(model, x)
    merged = model.merge_and_unload()
    save_pretrained(merged, str(tmp_path / 'merged'))
    torch.testing.assert_close(outputs(from_pretrained(str(tmp_path / 'merged')), x), whole)


@pytest.mark.parametrize('family', SETTINGS)
def test_targets_that_match_nothing(family):
    def config(*targets):
        lora = dict(
            type='LoRAModel',
            module=SETTINGS[family],
            rank=2,
            targets=[dict(type=target) for target in targets],
        )
        return Config(dict(model=dict(type='ImageClassifier', backbone=lora)))

    check_lora(config('qkv', 'to_k'))
    check_lora(config(r'.*\.to_k'))
    known = ', '.join(sorted(LINEAR[family]))
    with pytest.raises(UserError, match=rf'targets of LoRAModel \(qkv, dw\): there are {known}$'):
        check_lora(config('qkv', 'dw'))
    with pytest.raises(UserError, match=rf'\(none are given\): there are {known}$'):
        check_lora(config())


def test_models_of_others_are_left_alone():
    check_lora(Config(dict(model=dict(backbone=dict(type='mmhcnet.HcNet')))))
    other = dict(type='LoRAModel', module=dict(type='VisionTransformer'), targets=[dict(type='a')])
    check_lora(Config(dict(model=dict(backbone=other))))
