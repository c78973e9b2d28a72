import torch

from mmhcnet.ops import group_norm_1


def test_equals_the_formula():
    x, weight, bias = torch.randn(3, 4, 5, 6).double(), torch.rand(4), torch.rand(4)
    weight, bias = weight.double(), bias.double()
    y = torch.empty_like(x)
    for b in range(3):
        mean = x[b].sum() / 120
        variance = (x[b] - mean).square().sum() / 120
        for c in range(4):
            y[b, c] = (x[b, c] - mean) / (variance + 1e-3).sqrt() * weight[c] + bias[c]
    torch.testing.assert_close(group_norm_1(x, weight, bias, 1e-3), y, rtol=0, atol=1e-13)
