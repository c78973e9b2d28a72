"""r = s sigmoid(K GAP(z)) against float64 autograd of the equation.

Plain torch on a CPU; the fused kernels with Triton's interpreter or on a GPU.
"""

import pytest
import torch

from mmhcnet.ops import conduction_rate_backward, conduction_rate_forward

from .test_blocks import everywhere
from .where import INTERPRETED

# More samples, channels and pixels than a program takes, and one of each.
SHAPES = [(17, 70, 2, 3), (2, 3, 33, 40), (1, 1, 1, 1)]
if not INTERPRETED:
    SHAPES += [(4, 128, 28, 28), (1, 64, 280, 250)]


@everywhere
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('drop', [False, True])
@pytest.mark.parametrize('shape', SHAPES)
def test_against_the_equation(shape, drop, dtype, name, device):
    z = torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last)
    to_k = torch.randn(shape[1], shape[1])
    keep = torch.rand(shape[0]) if drop else None
    dr = torch.randn(shape[0], shape[1], 1, 1)

    mean = z.double().mean((2, 3)).requires_grad_()
    weight = to_k.double().requires_grad_()
    k = torch.sigmoid(mean @ weight.t())
    r = (k if keep is None else k * keep.double()[:, None])[:, :, None, None]
    expected = torch.autograd.grad(r, [mean, weight], dr.double())

    z, to_k, keep, dr = (t if t is None else t.to(device) for t in (z, to_k, keep, dr))
    rate, rate_k, rate_mean = conduction_rate_forward(z, to_k, keep, name)
    assert rate.dtype == dtype and rate.shape == r.shape
    torch.testing.assert_close(
        rate.cpu().double(), r, rtol=0, atol=1e-5 if dtype == torch.float32 else 4e-3
    )
    found = conduction_rate_backward(dr, rate_k, rate_mean, to_k, keep)
    for value, exact in zip((rate_k, rate_mean, *found), (k, mean, *expected)):
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.cpu().double(), exact, rtol=1e-4, atol=1e-4)


def test_of_nothing():
    rate, k, mean = conduction_rate_forward(torch.ones(0, 3, 4, 4), torch.ones(3, 3))
    assert rate.shape == (0, 3, 1, 1) and k.shape == mean.shape == (0, 3)


def test_bad_weight():
    with pytest.raises(ValueError, match=r'to_k must be \(C, C\) = \(3, 3\)'):
        conduction_rate_forward(torch.ones(1, 3, 2, 2), torch.ones(3, 4))
