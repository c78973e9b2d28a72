"""torch's own dynamic quantisation of linear layers, on a CPU."""

import copy
import warnings

import pytest
import torch
from torch import nn

from mmhcnet import HcNet, VHeat

ARCH = dict(embed_dims=[16, 32], depths=[1, 1])


@pytest.mark.parametrize(
    'model, linear',
    [
        (HcNet(ARCH, out_indices=(0, 1)), 2),
        (VHeat(dict(ARCH, post_norm=False, layer_scale=None), out_indices=(0, 1)), 10),
        (VHeat(dict(ARCH, post_norm=False, layer_scale=None), k=0.5, out_indices=(0, 1)), 8),
    ],
    ids=['hcnet', 'vheat', 'vheat with a fixed rate'],
)
def test_linear_layers_in_int8(model, linear):
    model.eval()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # torch recommends torchao
        quantized = torch.ao.quantization.quantize_dynamic(
            copy.deepcopy(model), {nn.Linear}, torch.qint8
        )
    kinds = [type(module).__module__ for module in quantized.modules()]
    assert sum('quantized.dynamic' in kind for kind in kinds) == linear
    x = torch.randn(2, 3, 48, 64)
    with torch.no_grad():
        for found, wanted in zip(quantized(x), model(x)):
            error = (found - wanted).abs().max() / wanted.abs().max()
            # Not exact, or nothing was quantised.
            assert 0 < error < 0.1
