"""Whole blocks as one function: finite differences, and the same composition left to autograd.

Plain torch on a CPU; the fused kernels with Triton's interpreter or on a GPU.
"""

import itertools

import pytest
import torch

from mmhcnet.ops import (
    ConductionWeights,
    HcBlockWeights,
    MlpWeights,
    Residual,
    hc_block,
    hc_block_ref,
    spectral_decay,
    vheat_conduction,
    vheat_conduction_ref,
    vheat_mlp,
    vheat_mlp_ref,
)

from .where import INTERPRETED, KERNELS

# In float64 there is plain torch only, and second derivatives are always its.
in_plain_torch = pytest.mark.skipif(INTERPRETED, reason='of plain torch, which runs without it')
everywhere = pytest.mark.parametrize(
    'name, device', [('torch', 'cpu')] * (not INTERPRETED) + KERNELS
)

BATCH, C, D = 2, 8, 12
HC_OPTIONS = [
    dict(isotropic=isotropic, k=k, filter=filter, drop=drop)
    for isotropic, k, filter, drop in itertools.product(
        (False, True), ('input_dependent', 'per layer', 'per channel'), (True, False), (False, True)
    )
]
if INTERPRETED:  # which is slow: every pair of two options' values.
    HC_OPTIONS = [
        dict(isotropic=isotropic, k=k, filter=filter, drop=drop)
        for isotropic, k, filter, drop in (
            (False, 'input_dependent', True, True),
            (False, 'per layer', False, False),
            (False, 'per channel', True, False),
            (True, 'input_dependent', False, False),
            (True, 'per layer', True, True),
            (True, 'per channel', False, True),
        )
    ]
VHEAT_OPTIONS = [
    dict(gate=gate, dwconv=dwconv, post_norm=post_norm, gamma=gamma, drop=drop)
    for gate, dwconv, post_norm, gamma, drop in itertools.product((True, False), repeat=5)
]


def leaf(*shape, scale=0.5, mean=0.0, dtype=torch.float64):
    return (mean + scale * torch.randn(shape, dtype=torch.float64)).to(dtype).requires_grad_()


def kept(drop, dtype):
    """Factors of stochastic depth for two samples, one of them dropped."""
    return torch.tensor([0.0, 1.6], dtype=dtype) if drop else None


def hc_case(isotropic, k, filter, drop, size=(4, 3), dtype=torch.float64):
    """Field, conduction rate and weights, and the arguments by name that hc_block takes besides."""
    weights = HcBlockWeights(
        w=None if isotropic else leaf(C, 4, scale=0.1, mean=0.25, dtype=dtype),
        to_k=leaf(C, C, dtype=dtype) if k == 'input_dependent' else None,
        norm_weight=leaf(C, mean=1.0, dtype=dtype),
        norm_bias=leaf(C, dtype=dtype),
        fc1_weight=leaf(D, C, dtype=dtype),
        fc1_bias=leaf(D, dtype=dtype),
        filter=leaf(D, 1, 3, 3, dtype=dtype) if filter else None,
        fc2_weight=leaf(C, D, dtype=dtype),
        fc2_bias=leaf(C, dtype=dtype),
    )
    rate = {'input_dependent': None, 'per layer': (1, 1, 1, 1), 'per channel': (BATCH, C, 1, 1)}[k]
    rate = rate and leaf(*rate, scale=0.1, mean=0.4, dtype=dtype)
    return (
        [leaf(BATCH, C, *size, dtype=dtype), rate, *weights],
        dict(keep1=kept(drop, dtype), keep2=kept(drop, dtype)),
    )


def run_hc(function, options):
    return lambda z, k, *weights: function(z, HcBlockWeights(*weights), k, **options)


@pytest.mark.parametrize('function', [hc_block, hc_block_ref])
def test_a_block_without_a_rate(function):
    inputs, options = hc_case(isotropic=True, k='per layer', filter=True, drop=False)
    inputs[1] = None
    with pytest.raises(ValueError, match='weights without to_k need k'):
        run_hc(function, options)(*inputs)


def residual(gamma, dtype):
    return [
        leaf(C, mean=1.0, dtype=dtype),
        leaf(C, dtype=dtype),
        leaf(C, mean=1.0, dtype=dtype) if gamma else None,
    ]


def conduction_case(gate, dwconv, post_norm, gamma, drop, size=(4, 3), dtype=torch.float64):
    weights = ConductionWeights(
        dw_weight=leaf(C, 1, 3, 3, dtype=dtype) if dwconv else None,
        dw_bias=leaf(C, dtype=dtype) if dwconv else None,
        in_weight=leaf(2 * C if gate else C, C, dtype=dtype),
        in_bias=leaf(2 * C if gate else C, dtype=dtype),
        norm_weight=leaf(C, mean=1.0, dtype=dtype),
        norm_bias=leaf(C, dtype=dtype),
        out_weight=leaf(C, C, dtype=dtype),
        out_bias=leaf(C, dtype=dtype),
    )
    decay = spectral_decay(torch.rand(*size, C, dtype=dtype), *size).requires_grad_()
    return (
        [leaf(BATCH, *size, C, dtype=dtype), decay, *residual(gamma, dtype), *weights],
        dict(post_norm=post_norm, keep=kept(drop, dtype)),
    )


def run_conduction(function, options):
    return lambda x, decay, *weights: function(
        x, decay, ConductionWeights(*weights[3:]), Residual(*weights[:3]), **options
    )


def mlp_case(post_norm, gamma, drop, size=(4, 3), dtype=torch.float64):
    weights = MlpWeights(
        leaf(D, C, dtype=dtype), leaf(D, dtype=dtype), leaf(C, D, dtype=dtype), leaf(C, dtype=dtype)
    )
    return (
        [leaf(BATCH, *size, C, dtype=dtype), *residual(gamma, dtype), *weights],
        dict(post_norm=post_norm, keep=kept(drop, dtype)),
    )


def run_mlp(function, options):
    return lambda x, *weights: function(
        x, MlpWeights(*weights[3:]), Residual(*weights[:3]), **options
    )


CASES = [
    *(
        pytest.param(hc_case, run_hc, (hc_block, hc_block_ref), options, id=f'hc {options}')
        for options in HC_OPTIONS
    ),
    *(
        pytest.param(
            conduction_case,
            run_conduction,
            (vheat_conduction, vheat_conduction_ref),
            options,
            id=f'conduction {options}',
        )
        for options in VHEAT_OPTIONS
    ),
    *(
        pytest.param(
            mlp_case,
            run_mlp,
            (vheat_mlp, vheat_mlp_ref),
            dict(post_norm=post_norm, gamma=gamma, drop=drop),
            id=f'mlp {post_norm} {gamma} {drop}',
        )
        for post_norm, gamma, drop in itertools.product((True, False), repeat=3)
    ),
]
# One of each kind, with every part that it can have.
FULL = [
    pytest.param(
        hc_case,
        run_hc,
        (hc_block, hc_block_ref),
        dict(isotropic=False, k='input_dependent', filter=True, drop=True),
        id='hc',
    ),
    pytest.param(
        conduction_case,
        run_conduction,
        (vheat_conduction, vheat_conduction_ref),
        dict(gate=True, dwconv=True, post_norm=False, gamma=True, drop=True),
        id='conduction',
    ),
    pytest.param(
        conduction_case,
        run_conduction,
        (vheat_conduction, vheat_conduction_ref),
        dict(gate=True, dwconv=True, post_norm=True, gamma=True, drop=True),
        id='conduction, post-norm',
    ),
    pytest.param(
        mlp_case,
        run_mlp,
        (vheat_mlp, vheat_mlp_ref),
        dict(post_norm=False, gamma=True, drop=True),
        id='mlp',
    ),
]
every_case = pytest.mark.parametrize('case, run, functions, options', CASES)
every_kind = pytest.mark.parametrize('case, run, functions, options', FULL)


def given(inputs):
    return [t for t in inputs if t is not None]


def with_holes(function, inputs):
    """The function of the inputs that are not None."""

    def call(*tensors):
        tensors = iter(tensors)
        return function(*(None if t is None else next(tensors) for t in inputs))

    return call


@in_plain_torch
@every_case
@pytest.mark.parametrize('recompute', [True, False])
def test_gradients_by_finite_differences(case, run, functions, options, recompute):
    inputs, arguments = case(**options)
    function = run(functions[0], dict(arguments, recompute=recompute))
    assert torch.autograd.gradcheck(with_holes(function, inputs), given(inputs), fast_mode=True)


@in_plain_torch
@every_kind
def test_second_derivatives_by_finite_differences(case, run, functions, options):
    inputs, arguments = case(**options, size=(2, 3))
    function = run(functions[0], arguments)
    assert torch.autograd.gradgradcheck(with_holes(function, inputs), given(inputs), fast_mode=True)


def to(device, inputs, arguments):
    """Inputs and arguments on a device."""
    moved = [t if t is None else t.detach().to(device).requires_grad_() for t in inputs]
    return moved, {
        key: value.to(device) if isinstance(value, torch.Tensor) else value
        for key, value in arguments.items()
    }


def values_and_gradients(function, inputs, dout):
    out = function(*inputs)
    return [out, *torch.autograd.grad(out, given(inputs), dout.to(out.dtype))]


@everywhere
@every_case
@pytest.mark.parametrize('size', [(2, 3)] if INTERPRETED else [(7, 7), (13, 5), (1, 4), (1, 1)])
def test_equal_to_the_plain_composition(case, run, functions, options, size, name, device):
    inputs, arguments = case(**options, size=size, dtype=torch.float32)
    dout = torch.randn_like(inputs[0])
    expected = values_and_gradients(run(functions[1], arguments), inputs, dout)
    inputs, arguments = to(device, inputs, arguments)
    found = values_and_gradients(
        run(functions[0], dict(arguments, backend=name)), inputs, dout.to(device)
    )
    for value, reference in zip(found, expected):
        scale = reference.abs().max().clamp(min=1)
        torch.testing.assert_close(value.cpu() / scale, reference / scale, rtol=0, atol=1e-5)


@everywhere
@every_kind
@pytest.mark.parametrize('recompute', [True, False])
@pytest.mark.parametrize('half_stream', [True, False])
def test_autocast(case, run, functions, options, recompute, half_stream, name, device):
    """In bfloat16 as far from float32 as the plain composition in bfloat16, or nearer."""
    inputs, arguments = case(**options, size=(2, 3) if INTERPRETED else (8, 6), dtype=torch.float32)
    dout = torch.randn_like(inputs[0])
    inputs, arguments = to(device, inputs, arguments)
    dout = dout.to(device)
    if half_stream:
        inputs[0] = inputs[0].detach().bfloat16().requires_grad_()
    exact = [t if t is None else t.detach().float().requires_grad_() for t in inputs]
    expected = values_and_gradients(run(functions[1], arguments), exact, dout)
    with torch.autocast(device, dtype=torch.bfloat16):
        plain = values_and_gradients(run(functions[1], arguments), inputs, dout)
        found = values_and_gradients(
            run(functions[0], dict(arguments, recompute=recompute, backend=name)), inputs, dout
        )
    assert found[0].dtype == inputs[0].dtype
    for i, (value, other, reference) in enumerate(zip(found, plain, expected)):
        assert value.dtype == given([inputs[0], *inputs])[i].dtype
        norm = reference.norm().clamp(min=1e-3)
        error, allowed = (value.float() - reference).norm(), (other.float() - reference).norm()
        assert error / norm < 2 * allowed / norm + 0.02


@in_plain_torch
@every_kind
def test_recomputation_changes_no_bit(case, run, functions, options):
    inputs, arguments = case(**options, dtype=torch.float32)
    dout = torch.randn_like(inputs[0])
    again, kept = (
        values_and_gradients(run(functions[0], dict(arguments, recompute=recompute)), inputs, dout)
        for recompute in (True, False)
    )
    assert all(map(torch.equal, again, kept))


@in_plain_torch
@every_kind
def test_gradients_only_where_they_are_asked_for(case, run, functions, options):
    inputs, arguments = case(**options)
    dout = torch.randn_like(inputs[0])
    expected = values_and_gradients(run(functions[0], arguments), inputs, dout)[1:]
    for i in range(len(given(inputs))):
        alone = [t if t is None else t.detach() for t in inputs]
        position = [j for j, t in enumerate(inputs) if t is not None][i]
        alone[position].requires_grad_()
        run(functions[0], arguments)(*alone).backward(dout)
        assert torch.equal(alone[position].grad, expected[i])
        assert all(t is None or t.grad is None for j, t in enumerate(alone) if j != position)
