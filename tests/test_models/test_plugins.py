"""The heat layers in other backbones, through OpenMMLab's plugin interface."""

import copy
import pickle

import pytest
import torch
from mmengine.model.efficient_conv_bn_eval import (
    efficient_conv_bn_eval_control,
    turn_on_efficient_conv_bn_eval,
)
from mmengine.registry import init_default_scope
from torch import nn

from mmhcnet import HeatConductionLayer, HeatConductionOperator

TYPES = {
    'HeatConductionOperator': HeatConductionOperator,
    'HeatConductionLayer': HeatConductionLayer,
}


def resnet(package, type, position, depth=50, **cfg):
    """ResNet with thin layers and a plug-in in its last two stages."""
    init_default_scope(package)
    registry = pytest.importorskip(f'{package}.registry').MODELS
    return registry.build(
        dict(
            type='ResNet',
            depth=depth,
            base_channels=8,
            stem_channels=8,
            out_indices=(0, 1, 2, 3),
            plugins=[
                dict(
                    cfg=dict(type=f'mmhcnet.{type}', **cfg),
                    stages=(False, False, True, True),
                    position=position,
                )
            ],
        )
    )


@pytest.mark.parametrize('package', ['mmdet', 'mmseg'])
@pytest.mark.parametrize('type', TYPES)
@pytest.mark.parametrize('position', ['after_conv2', 'after_conv3'])
def test_in_a_resnet(package, type, position):
    model = resnet(package, type, position)
    layers = [m for m in model.modules() if isinstance(m, TYPES[type])]
    assert len(layers) == 6 + 3
    model.train()
    for size in ((64, 96), (75, 50)):
        outs = model(torch.randn(2, 3, *size))
        assert all(out.isfinite().all() for out in outs)
        assert outs[3].shape[2:] == (-(-size[0] // 32), -(-size[1] // 32))
    sum((out * torch.randn_like(out)).sum() for out in outs).backward()
    for layer in layers:
        for name, parameter in layer.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_options_and_two_of_them_in_one_block():
    model = resnet(
        'mmdet',
        'HeatConductionOperator',
        'after_conv2',
        k='learnable',
        with_gate=False,
        with_dwconv=False,
        postfix=1,
    )
    assert hasattr(model.layer3[0], 'heat_conduction_operator1')
    assert not any('freq_embed' in key for key in model.state_dict())


@pytest.mark.parametrize('layer', ['HeatConductionOperator', 'HeatConductionLayer'])
def test_efficient_conv_bn_eval_of_the_network_around_a_layer(layer):
    model = resnet('mmdet', layer, 'after_conv2')
    model.eval()
    x = torch.randn(2, 3, 64, 96)
    wanted = model(x)
    turn_on_efficient_conv_bn_eval(nn.ModuleDict(dict(backbone=model)), 'backbone')
    assert any(
        node.target is efficient_conv_bn_eval_control for node in model.forward.__self__.graph.nodes
    )
    for a, b in zip(model(x), wanted):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    'layer',
    [
        HeatConductionOperator(6),
        HeatConductionOperator(6, k=0.5),
        HeatConductionLayer(6),
        HeatConductionOperator(6, freq_size=7, k='frequency', with_gate=False),
        HeatConductionLayer(6, stencil='isotropic', k='learnable'),
    ],
)
@pytest.mark.parametrize('size', [(14, 14), (1, 1), (5, 9), (50, 84)])
def test_keeps_the_shape(layer, size):
    x = torch.randn(2, 6, *size)
    assert layer(x).shape == x.shape


def test_operator_starts_near_the_identity():
    x = torch.randn(2, 6, 20, 30)
    torch.testing.assert_close(HeatConductionOperator(6)(x), x, rtol=0, atol=1e-4)


def test_constant_field_stays_constant_in_the_layer():
    x = torch.full((1, 6, 5, 4), 2.5)
    torch.testing.assert_close(HeatConductionLayer(6)(x), x)


def test_copies():
    layer, x = HeatConductionOperator(6, layer_scale=1.0).eval(), torch.randn(1, 6, 9, 8)
    with torch.no_grad():
        expected = layer(x)
        for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert torch.equal(copied(x), expected)


def test_bad_arguments():
    with pytest.raises(ValueError, match='k must be one of'):
        HeatConductionOperator(6, k='dynamic')
    with pytest.raises(TypeError, match="unexpected keyword argument 'channels'"):
        HeatConductionOperator(6, channels=6)
