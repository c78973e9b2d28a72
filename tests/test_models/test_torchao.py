"""int8 by torchao's quantiser for x86 processors, not compiled. `make test-deploy` installs it."""

import pytest
import torch

from mmhcnet import HcNet, VHeat

pytestmark = [pytest.mark.deploy, pytest.mark.filterwarnings('ignore')]

ARCH = dict(embed_dims=[16, 32], depths=[1, 1])


def hcnet():
    return HcNet(ARCH, out_indices=(1,)).eval()


def vheat():
    model = VHeat(dict(ARCH, post_norm=False, layer_scale=None), out_indices=(1,)).eval()
    model.switch_to_deploy(64)
    return model


# HcNet: three convolutions outside of blocks, and in each of two blocks a stencil, three
# convolutions and a linear layer. vHeat: five convolutions, and four linear layers in each
# block; its transforms are no layers.
@pytest.mark.parametrize('make, count', [(hcnet, 13), (vheat, 13)])
def test_layers_in_int8(make, count):
    pytest.importorskip('torchao', reason='torchao is not installed: make test-deploy')
    from torchao.quantization.pt2e import quantize_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    model, x = make(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        program = torch.export.export(model, (x,), strict=True).module()
        quantizer = x86.X86InductorQuantizer()
        quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
        prepared = quantize_pt2e.prepare_pt2e(program, quantizer)
        prepared(x)
        int8 = quantize_pt2e.convert_pt2e(prepared)
        (found,), (wanted,) = int8(x), model(x)
    layers = [
        node
        for node in int8.graph.nodes
        if node.target in (torch.ops.aten.conv2d.default, torch.ops.aten.linear.default)
    ]
    in_int8 = [
        node
        for node in layers
        if all('dequantize' in str(operand.target) for operand in node.args[:2])
    ]
    assert len(layers) == len(in_int8) == count
    error = (found - wanted).abs().max() / wanted.abs().max()
    # Not exact, or nothing was quantised.
    assert 1e-4 < error < 0.1
