"""The fused kernels against plain torch in float64, on a GPU or with Triton's interpreter."""

import os

import pytest
import torch
import torch.nn.functional as F

from mmhcnet.ops import (
    backend,
    gelu_dwconv,
    gelu_dwconv_ref,
    group_norm_1,
    group_norm_1_ref,
    heat_step,
    heat_step_ref,
)

INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'
DEVICE = 'cpu' if INTERPRETED else 'cuda'
if not backend._INSTALLED:
    pytest.skip('needs torch 2.7 and triton', allow_module_level=True)
if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip(
        'needs a GPU; test_triton_interpreter.py runs these with the interpreter',
        allow_module_level=True,
    )

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
STENCILS = ['anisotropic', 'isotropic']
# Less and more than a strip, a block of channels and a run of rows; H or W of 1.
SHAPES = [(2, 3, 2, 9), (1, 64, 2, 2), (1, 2, 15, 1), (1, 2, 1, 8)]
if not INTERPRETED:
    SHAPES = [(4, 64, 56, 56), (2, 320, 14, 14), (3, 100, 31, 45)] + SHAPES


@pytest.fixture(autouse=True)
def full_precision(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)


def heat_inputs(shape, stencil):
    batch, channels = shape[:2]
    w = None if stencil == 'isotropic' else torch.rand(channels, 4) / 2
    return [torch.randn(shape), w, torch.rand(batch, channels, 1, 1)]


def dwconv_inputs(shape):
    return [2 * torch.randn(shape), torch.randn(shape[1], 1, 3, 3)]


def norm_inputs(shape):
    return [torch.randn(shape), torch.rand(shape[1]) + 0.5, torch.randn(shape[1])]


def leaves(inputs, dtype=None):
    return [
        t.detach().to(DEVICE, dtype).requires_grad_() if isinstance(t, torch.Tensor) else t
        for t in inputs
    ]


def run(function, inputs, dy):
    """Output and the gradients of all inputs that are tensors."""
    y = function(*inputs)
    y.backward(dy.to(DEVICE, y.dtype))
    return [y.detach()] + [t.grad for t in inputs if isinstance(t, torch.Tensor)]


def assert_as_good_as_torch(op, ref, inputs):
    """Error to float64 at most twice that of plain torch in the dtype of the inputs.

    Beyond that 4 units in the last place of float32 are allowed: plain torch can be exact by
    chance. The interpreter cuts bfloat16 off where a GPU rounds: one of its units more.
    """
    dy = torch.randn(inputs[0].shape).to(inputs[0].dtype)
    exact = run(ref, leaves(inputs, torch.float64), dy)
    plain = run(ref, leaves(inputs), dy)
    fused = run(lambda *args: op(*args, backend='triton'), leaves(inputs), dy)
    for x, p, f in zip(exact, plain, fused):
        assert (f.shape, f.dtype) == (p.shape, p.dtype)
        units = 4 * torch.finfo(torch.float32).eps
        if INTERPRETED and f.dtype == torch.bfloat16:
            units += torch.finfo(torch.bfloat16).eps
        limit = 2 * (p.double() - x).abs().max() + units * x.abs().max()
        assert (f.double() - x).abs().max() <= limit
    assert fused[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize('stencil', STENCILS)
@pytest.mark.parametrize('shape', SHAPES)
def test_heat_step_on_shapes(shape, stencil):
    assert_as_good_as_torch(heat_step, heat_step_ref, heat_inputs(shape, stencil))


@pytest.mark.parametrize('shape', SHAPES)
def test_gelu_dwconv_on_shapes(shape):
    assert_as_good_as_torch(gelu_dwconv, gelu_dwconv_ref, dwconv_inputs(shape))


# Several blocks of the statistics, the last one not full, and several tiles.
@pytest.mark.parametrize('shape', SHAPES[:-1] + [(2, 40, 11, 13), (1, 96, 16, 9)])
def test_group_norm_on_shapes(shape):
    assert_as_good_as_torch(group_norm_1, group_norm_1_ref, norm_inputs(shape))


def test_group_norm_in_one_part_of_several_blocks(monkeypatch):
    from mmhcnet.ops.triton import group_norm

    monkeypatch.setattr(group_norm, '_PARTS', 1)
    monkeypatch.setattr(group_norm, '_cached_division', group_norm._division)
    for shift in (0, 1e3):
        x, weight, bias = norm_inputs((2, 40, 11, 20))
        assert_as_good_as_torch(group_norm_1, group_norm_1_ref, [x + shift, weight, bias])


@pytest.mark.parametrize('dtype', DTYPES[1:])
@pytest.mark.parametrize('stencil', STENCILS)
def test_heat_step_in_half_precision(stencil, dtype):
    inputs = heat_inputs((2, 3, 3, 5), stencil)
    assert_as_good_as_torch(
        heat_step, heat_step_ref, [t if t is None else t.to(dtype) for t in inputs]
    )


@pytest.mark.parametrize('dtype', DTYPES[1:])
def test_gelu_dwconv_in_half_precision(dtype):
    inputs = [t.to(dtype) for t in dwconv_inputs((2, 3, 3, 5))]
    assert_as_good_as_torch(gelu_dwconv, gelu_dwconv_ref, inputs)


@pytest.mark.parametrize('dtype', DTYPES[1:])
def test_group_norm_in_half_precision(dtype):
    inputs = [t.to(dtype) for t in norm_inputs((2, 3, 5, 5))]
    assert_as_good_as_torch(group_norm_1, group_norm_1_ref, inputs)


@pytest.mark.parametrize(
    'shift, dtype', [(1e4, torch.float32), (30, torch.float16), (-1e3, torch.float32)]
)
def test_group_norm_of_a_mean_far_from_zero(shift, dtype):
    x, weight, bias = norm_inputs((3, 6, 30, 30))
    assert_as_good_as_torch(
        group_norm_1, group_norm_1_ref, [t.to(dtype) for t in (x + shift, weight, bias)]
    )


def test_group_norm_of_an_outlying_first_element():
    # The statistics are taken relative to it.
    x, weight, bias = norm_inputs((2, 3, 5, 5))
    x[:, 0, 0, 0] = 1e4
    assert_as_good_as_torch(group_norm_1, group_norm_1_ref, [x, weight, bias])


@pytest.mark.filterwarnings('ignore:overflow encountered')
def test_gelu_over_its_range():
    # A depthwise convolution that is the identity. Far out in the tail the values are too small
    # for the bound of the other tests to see them: here their leading digits count.
    x = torch.cat([torch.linspace(-5.5, 5.5, 501), torch.tensor([-1e30, -100.0, 100.0, 1e30])])
    weight = torch.zeros(len(x), 1, 3, 3)
    weight[..., 1, 1] = 1
    x = x.view(1, -1, 1, 1)
    y = gelu_dwconv(x.to(DEVICE), weight.to(DEVICE), backend='triton').cpu().double()
    torch.testing.assert_close(y, F.gelu(x.double()), rtol=1e-4, atol=1e-20)
    torch.testing.assert_close(y, F.gelu(x.double()), rtol=1e-6, atol=3e-7)


@pytest.mark.filterwarnings('ignore:overflow encountered')
@pytest.mark.parametrize('dtype', DTYPES[1:])
def test_gelu_in_half_precision_over_its_range(dtype):
    x = torch.cat([torch.linspace(-5.5, 5.5, 501), torch.tensor([-6e4, -100.0, 100.0, 6e4])])
    x = x.to(dtype).view(1, -1, 1, 1)
    weight = torch.zeros(x.shape[1], 1, 3, 3)
    weight[..., 1, 1] = 1
    x.requires_grad_()
    y = gelu_dwconv(x.to(DEVICE), weight.to(DEVICE), backend='triton')
    (gradient,) = torch.autograd.grad(y.sum(), x)
    exact = x.detach().double().requires_grad_()
    (exact_gradient,) = torch.autograd.grad(F.gelu(exact).sum(), exact)
    # A unit in the last place of the result, which the interpreter cuts off, and the polynomial's.
    rtol, smallest = torch.finfo(dtype).eps + 2e-3, torch.finfo(dtype).tiny
    torch.testing.assert_close(
        y.detach().cpu().double(), F.gelu(exact.detach()), rtol=rtol, atol=smallest
    )
    torch.testing.assert_close(gradient.double(), exact_gradient, rtol=rtol, atol=2e-4)


@pytest.mark.parametrize('stencil', STENCILS)
@pytest.mark.parametrize('k', [0.3, (), (1, 1, 1, 1), (2, 1, 1, 1), (3, 1, 1)], ids=str)
def test_heat_step_broadcasts_k(k, stencil):
    z, w, _ = heat_inputs((2, 3, 2, 2), stencil)
    k = k if isinstance(k, float) else torch.rand(k)
    assert_as_good_as_torch(heat_step, heat_step_ref, [z, w, k])


def test_sums_of_more_strips_than_a_program_adds_up(monkeypatch):
    from mmhcnet.ops.triton import heat_step as kernels

    inputs = heat_inputs((1, 2, 9, 3), 'anisotropic')
    monkeypatch.setattr(kernels, '_STRIPS', 1)
    assert_as_good_as_torch(heat_step, heat_step_ref, inputs)


def layouts(x):
    """The same numbers in other places."""
    yield x.contiguous(memory_format=torch.channels_last)
    yield x.repeat_interleave(2, 2).repeat_interleave(2, 3)[:, :, ::2, ::2]
    yield torch.cat([x, x], 1)[:, x.shape[1] :]
    yield x[:, :, :1].expand(x.shape)


@pytest.mark.parametrize(
    'op, inputs',
    [
        (heat_step, heat_inputs((2, 3, 1, 3), 'anisotropic')),
        (heat_step, heat_inputs((2, 3, 1, 3), 'isotropic')),
        (gelu_dwconv, dwconv_inputs((2, 3, 1, 3))),
        (group_norm_1, norm_inputs((2, 3, 1, 3))),
    ],
    ids=['heat_step', 'heat_step, isotropic', 'gelu_dwconv', 'group_norm_1'],
)
def test_any_layout_gives_the_same(op, inputs):
    inputs[0] = inputs[0].repeat(1, 1, 2, 1)
    x, *parameters = leaves(inputs)
    dy = x.detach().cos()
    y = op(x, *parameters, backend='triton')
    y.backward(dy)
    assert y.stride() == (18, 1, 9, 3)
    for other, other_dy in zip(layouts(x.detach()), layouts(dy)):
        assert torch.equal(other, x)
        other.requires_grad_()
        z = op(other, *parameters, backend='triton')
        z.backward(other_dy)
        assert z.stride() == y.stride()
        assert torch.equal(z, y) and torch.equal(other.grad, x.grad)


@pytest.mark.parametrize('shape', [(0, 3, 4, 4), (2, 3, 0, 4)])
def test_nothing_gives_nothing(shape):
    for op, inputs in [
        (heat_step, heat_inputs(shape, 'anisotropic')),
        (heat_step, heat_inputs(shape, 'isotropic')),
        (gelu_dwconv, dwconv_inputs(shape)),
        (group_norm_1, norm_inputs(shape)),
    ]:
        y, *gradients = run(
            lambda *args: op(*args, backend='triton'), leaves(inputs), torch.empty(shape)
        )
        assert y.shape == shape
        for t, g in zip([t for t in inputs if t is not None], gradients):
            assert g.shape == t.shape and not g.any()


@pytest.mark.parametrize(
    'op, parameters, reached',
    [
        (heat_step, heat_inputs((1, 2, 4, 4), 'anisotropic')[1:], [(1, 2), (0, 3), (1, 3), (2, 3)]),
        (
            heat_step,
            heat_inputs((1, 2, 4, 4), 'isotropic')[1:],
            [(i, j) for i in (0, 1, 2) for j in (2, 3)],
        ),
        (gelu_dwconv, dwconv_inputs((1, 2, 4, 4))[1:], [(i, j) for i in (0, 1, 2) for j in (2, 3)]),
    ],
    ids=['anisotropic', 'isotropic', 'gelu_dwconv'],
)
def test_nan_reaches_the_stencil_and_nothing_else(op, parameters, reached):
    x = torch.randn(1, 2, 4, 4, device=DEVICE)
    x[0, 1, 1, 3] = float('nan')
    with torch.no_grad():
        y = op(x, *leaves(parameters), backend='triton')
    assert [tuple(index) for index in y.isnan().nonzero().tolist()] == sorted(
        (0, 1, i, j) for i, j in reached
    )


@pytest.mark.skipif(INTERPRETED, reason='the interpreter runs one program after the other')
def test_the_same_input_gives_the_same_bits():
    shape = (16, 96, 56, 56)
    for op, inputs in [
        (heat_step, heat_inputs(shape, 'anisotropic')),
        (gelu_dwconv, dwconv_inputs(shape)),
        (group_norm_1, norm_inputs(shape)),
    ]:
        dy = torch.randn(shape)
        first, second = (
            run(lambda *args: op(*args, backend='triton'), leaves(inputs), dy) for _ in range(2)
        )
        assert all(torch.equal(a, b) for a, b in zip(first, second))


def three_in_a_row(z, w, k, gamma, beta, weight):
    y = heat_step(z, w, k, backend='triton')
    return gelu_dwconv(group_norm_1(y, gamma, beta, backend='triton'), weight, backend='triton')


def inputs_in_a_row(shape):
    return heat_inputs(shape, 'anisotropic') + norm_inputs(shape)[1:] + dwconv_inputs(shape)[1:]


def test_compiled_without_a_graph_break():
    inputs, dy = inputs_in_a_row((1, 2, 2, 2)), torch.randn(1, 2, 2, 2)
    compiled = torch.compile(three_in_a_row, fullgraph=True, backend='aot_eager')
    for a, b in zip(run(compiled, leaves(inputs), dy), run(three_in_a_row, leaves(inputs), dy)):
        assert torch.equal(a, b)
        assert a.stride() == b.stride()


def test_checkpointing_changes_nothing():
    inputs, dy = inputs_in_a_row((1, 2, 2, 2)), torch.randn(1, 2, 2, 2)

    def checkpointed(*args):
        return torch.utils.checkpoint.checkpoint(three_in_a_row, *args, use_reentrant=False)

    for a, b in zip(run(checkpointed, leaves(inputs), dy), run(three_in_a_row, leaves(inputs), dy)):
        assert torch.equal(a, b)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_autocast_keeps_the_dtype_of_the_field(dtype):
    # Parameters are float32 under autocast, and k is what a linear layer gives: bfloat16.
    z, w, k, gamma, beta, weight = leaves(inputs_in_a_row((1, 2, 2, 3)))
    z, k = z.detach().to(dtype).requires_grad_(), k.detach().bfloat16().requires_grad_()
    exact = [t.detach().double() for t in (z, w, k, gamma, beta, weight)]
    tolerance = dict(rtol=1e-5, atol=1e-6) if dtype == torch.float32 else dict(rtol=0.01, atol=0.01)
    with torch.autocast(DEVICE, torch.bfloat16):
        for y, x in [
            (heat_step(z, w, k, backend='triton'), heat_step_ref(*exact[:3])),
            (
                group_norm_1(z, gamma, beta, backend='triton'),
                group_norm_1_ref(exact[0], *exact[3:5]),
            ),
            (gelu_dwconv(z, weight, backend='triton'), gelu_dwconv_ref(exact[0], exact[5])),
        ]:
            assert y.dtype == dtype
            torch.testing.assert_close(y.double(), x, **tolerance)
            y.float().sum().backward()
    for t in (z, w, k, gamma, beta, weight):
        assert t.grad.dtype == t.dtype


def test_mixed_dtypes_promote_as_in_plain_torch():
    z, w, k = leaves(heat_inputs((1, 2, 2, 3), 'anisotropic'))
    half = z.detach().half().requires_grad_()
    y = heat_step(half, w, k, backend='triton')
    assert y.dtype == heat_step_ref(half, w, k).dtype == torch.float32
    torch.testing.assert_close(y, heat_step_ref(half.float(), w, k), rtol=1e-6, atol=1e-6)
    y.sum().backward()
    assert half.grad.dtype == torch.float16


def registered():
    """Every operator with arguments for it: with all options, and with none."""
    from mmhcnet.ops.triton import (  # noqa: F401 (registers the operators)
        conduction_rate,
        gelu_dwconv,
        group_norm,
        heat_step,
        norm_gate,
    )

    x, w, k = heat_inputs((1, 2, 2, 2), 'anisotropic')
    _, taps = dwconv_inputs(x.shape)
    one, offset, c = torch.ones(1), torch.rand(1, 2), torch.rand(2)
    u, pixel = torch.randn(1, 2, 2, 2), torch.ones(1, 2, 2, 1)
    gate = torch.randn(1, 2, 2, 4)[..., 2:]
    return {
        'conduction_rate_forward': [(x, torch.eye(2), one), (x, torch.eye(2), None)],
        'heat_step_forward': [(x, w, k, offset), (x, None, k, None)],
        'heat_step_sums': [(x, x.cos(), w, k), (x, x.cos(), None, k)],
        'heat_step_transposed': [(x, w, k, offset), (x, None, k, None)],
        'gelu_dwconv_forward': [(x, taps, one), (x, taps, None)],
        'gelu_dwconv_backward': [(x, x.cos(), taps, one), (x, x.cos(), taps, None)],
        'group_norm_1_forward': [(x, c, c, 1e-5, offset), (x, c, c, 1e-5, None)],
        'group_norm_1_backward': [
            (x, x.cos(), c, one, one, x, offset),
            (x, x.cos(), c, one, one, None, None),
        ],
        'norm_gate_forward': [(u, gate, c, c, 1e-5), (u, None, c, c, 1e-5)],
        'norm_gate_backward': [
            (u, u.cos(), gate, c, c, pixel, pixel, torch.empty_like(u)),
            (u, u.cos(), None, c, c, pixel, pixel, None),
        ],
    }


@pytest.mark.parametrize(
    'name, arguments',
    [(name, arguments) for name, both in registered().items() for arguments in both],
)
def test_registration(name, arguments):
    op = getattr(torch.ops.mmhcnet, name).default
    arguments = [t.to(DEVICE) if isinstance(t, torch.Tensor) else t for t in arguments]
    torch.library.opcheck(op, tuple(arguments))
    assert_fake_is_as_real(op, arguments)


def test_every_operator_is_in_the_tests_above():
    found = {
        name.split('::')[1].split('.')[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith('mmhcnet::')
    }
    # That one is oneDNN's product, on a CPU.
    assert found - {'linear'} == set(registered())


def assert_fake_is_as_real(op, inputs):
    real = op(*inputs)
    with torch._subclasses.FakeTensorMode() as mode:
        fake = op(*[mode.from_tensor(t) if isinstance(t, torch.Tensor) else t for t in inputs])
    for r, f in zip(*([out] if isinstance(out, torch.Tensor) else out for out in (real, fake))):
        assert (f.shape, f.stride(), f.dtype) == (r.shape, r.stride(), r.dtype)


def test_second_derivatives_are_refused():
    for op, inputs in [
        (heat_step, heat_inputs((1, 1, 1, 2), 'isotropic')),
        (gelu_dwconv, dwconv_inputs((1, 1, 1, 2))),
        (group_norm_1, norm_inputs((1, 1, 1, 2))),
    ]:
        inputs = leaves(inputs)
        y = op(*inputs, backend='triton')
        (gradient,) = torch.autograd.grad(y.sum(), inputs[0], create_graph=True)
        with pytest.raises(RuntimeError, match='no autograd formula was registered'):
            gradient.sum().backward()


def test_bad_input_is_refused():
    z, w, k = leaves(heat_inputs((1, 3, 2, 2), 'anisotropic'))
    with pytest.raises(ValueError, match=r'w must be \(C, 4\) = \(3, 4\)'):
        heat_step(z, w.t(), k, backend='triton')
    for wrong in (
        torch.rand(2, 3, 1, 1),
        torch.rand(3),
        torch.rand(1, 3, 2, 2),
        torch.rand(1, 1, 1, 1, 1),
    ):
        with pytest.raises(ValueError, match=r'k must broadcast to \(B, C, 1, 1\)'):
            heat_step(z, w, wrong.to(DEVICE), backend='triton')
    with pytest.raises(ValueError, match=r'weight must be \(C, 1, 3, 3\)'):
        gelu_dwconv(z, torch.rand(1, 1, 3, 3, device=DEVICE), backend='triton')
    with pytest.raises(ValueError, match=r'weight and bias must be \(C,\) = \(3,\)'):
        group_norm_1(z, k[0, :2, 0, 0], k[0, :, 0, 0], backend='triton')


def test_samples_beyond_32_bit_offsets_are_refused():
    from mmhcnet.ops.triton.launch import check_size

    with pytest.raises(ValueError, match="use backend='torch'"):
        check_size(1, 2**10, 2**10, 2**10)
    check_size(2**10, 2**9, 2**10, 2**10)
    from mmhcnet.ops.triton import group_norm, strip

    for divide in (lambda x: strip.strips(x, (7,), 1, 7), group_norm._divide):
        with pytest.raises(ValueError, match="use backend='torch'"):
            divide(torch.empty(1, 2**10, 2**10, 2**10, device='meta'))
