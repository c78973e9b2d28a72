import math

import pytest
import torch

from mmhcnet.ops import gelu_dwconv


def test_equals_the_loop():
    x, weight = torch.randn(2, 3, 4, 5).double(), torch.randn(3, 1, 3, 3).double()
    y = torch.zeros_like(x)
    for b, c, i, j in torch.cartesian_prod(*map(torch.arange, x.shape)).tolist():
        for u in range(3):
            for v in range(3):
                p, q = i + u - 1, j + v - 1
                if 0 <= p < 4 and 0 <= q < 5:
                    value = x[b, c, p, q].item()
                    gelu = value * (1 + math.erf(value / math.sqrt(2))) / 2
                    y[b, c, i, j] += weight[c, 0, u, v] * gelu
    torch.testing.assert_close(gelu_dwconv(x, weight), y, rtol=0, atol=1e-13)


def test_gradients():
    x, weight = torch.randn(2, 2, 3, 4).double(), torch.randn(2, 1, 3, 3).double()
    assert torch.autograd.gradcheck(gelu_dwconv, (x.requires_grad_(), weight.requires_grad_()))


def test_wrong_weight_is_refused():
    with pytest.raises(ValueError, match=r'weight must be \(C, 1, 3, 3\) = \(3, 1, 3, 3\)'):
        gelu_dwconv(torch.rand(2, 3, 4, 4), torch.rand(1, 3, 3, 3))
