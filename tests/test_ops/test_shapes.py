"""A parameter of another shape is refused by the operator itself, whatever implementation runs."""

import pytest
import torch

from mmhcnet import ops

B, C, H, W = 2, 3, 5, 4
Z = torch.randn(B, C, H, W)
STENCIL = torch.full((C, 4), 0.25)
WEIGHT, VECTOR = torch.ones(C, 1, 3, 3), torch.ones(C)
RATES = [
    (C,),
    (B, C),
    (B, 1, H, W),
    (B, C, 1, W),
    (3, C, 1, 1),
    (B, C + 1, 1, 1),
    (1, B, C, 1, 1),
    (B, C, 1, 0),
]


def k(*shape):
    return torch.full(shape, 0.1)


CASES = {
    **{
        f'k {shape}': (
            lambda z, backend, shape=shape: ops.heat_step(z, STENCIL, k(*shape), backend=backend),
            rf'k must broadcast to \(B, C, 1, 1\) = \({B}, {C}, 1, 1\), got',
        )
        for shape in RATES
    },
    'k, isotropic': (
        lambda z, backend: ops.heat_step(z, None, k(B, C, H, W), backend=backend),
        r'k must broadcast to \(B, C, 1, 1\)',
    ),
    **{
        f'w {shape}': (
            lambda z, backend, shape=shape: ops.heat_step(
                z, torch.ones(shape), 0.1, backend=backend
            ),
            r'w must be \(C, 4\) = \(3, 4\)',
        )
        for shape in [(C,), (4, C), (1, 4), (C, 5), (B, C, 4)]
    },
    **{
        f'weight {shape}': (
            lambda z, backend, shape=shape: ops.gelu_dwconv(z, torch.ones(shape), backend=backend),
            r'weight must be \(C, 1, 3, 3\) = \(3, 1, 3, 3\)',
        )
        for shape in [(C, 3, 3), (C, 1, 5, 5), (2 * C, 1, 3, 3), (1, C, 3, 3)]
    },
    **{
        f'{name} {shape}': (
            lambda z, backend, shape=shape, name=name: ops.group_norm_1(
                z,
                **dict(dict(weight=VECTOR, bias=VECTOR), **{name: torch.ones(shape)}),
                backend=backend,
            ),
            r'weight and bias must be \(C,\) = \(3,\)',
        )
        for name in ('weight', 'bias')
        for shape in [(), (1,), (C + 1,), (1, C, 1, 1)]
    },
}


@pytest.mark.parametrize('grad', [False, True])
@pytest.mark.parametrize('backend', ops.BACKENDS)
@pytest.mark.parametrize('name', CASES)
def test_one_answer_for_every_implementation(name, backend, grad):
    call, message = CASES[name]
    with pytest.raises(ValueError, match=message):
        call(Z.clone().requires_grad_(grad), backend)


@pytest.mark.parametrize(
    'shape', [(), (1,), (C, 1, 1), (1, C, 1, 1), (B, 1, 1, 1), (B, C, 1, 1), (1, 1)]
)
def test_rates_that_broadcast(shape):
    rate = torch.rand(shape)
    assert torch.equal(
        ops.heat_step(Z, STENCIL, rate), ops.heat_step(Z, STENCIL, rate.expand(B, C, 1, 1))
    )


def test_the_spectral_operator_too():
    u = torch.randn(B, H, W, C)
    for shape in [(H, W), (H, W, C + 1), (W, H, C), (1, H, W, C)]:
        with pytest.raises(ValueError, match=r'decay must be \(H, W, C\) = \(5, 4, 3\)'):
            ops.heat_spectral(u, torch.ones(shape))
