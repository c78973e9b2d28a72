"""Multiply-accumulates as another package counts them. `make test-deploy` installs it."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmhcnet import HcNet, HeatConductionOperator, VHeat
from mmhcnet.inference import THOP_OPS

pytestmark = pytest.mark.deploy

ARCH = dict(embed_dims=[64, 128], depths=[1, 2])
VHEAT = dict(ARCH, post_norm=True, layer_scale=1e-5)


@pytest.mark.parametrize(
    'make',
    [
        lambda: HcNet(ARCH, out_indices=(1,)),
        lambda: HcNet(ARCH, out_indices=(1,), stencil='isotropic', k=0.5),
        lambda: VHeat(VHEAT, out_indices=(1,)),
        lambda: VHeat(VHEAT, out_indices=(1,), k=0.5, with_gate=False),
        lambda: nn.Sequential(nn.Conv2d(3, 64, 3), HeatConductionOperator(64)),
    ],
)
def test_thop_counts_the_heat_equation_too(make):
    thop = pytest.importorskip('thop', reason='thop is not installed: make test-deploy')
    image = torch.randn(1, 3, 64, 96)
    model = make().eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(image)
    wanted = counter.get_total_flops() / 2
    assert thop.profile(make(), (image,), verbose=False)[0] < wanted
    found, _ = thop.profile(model, (image,), custom_ops=THOP_OPS, verbose=False)
    # It counts torch's norm layers, too.
    assert found == pytest.approx(wanted, rel=0.02)
