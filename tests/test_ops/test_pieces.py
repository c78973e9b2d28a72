"""The pieces of a function with its own backward, against float64 autograd of the plain operators.

Plain torch on a CPU; the fused kernels with Triton's interpreter or on a GPU.
"""

import pytest
import torch
import torch.nn.functional as F

from mmhcnet.ops import (
    gelu_dwconv_backward,
    gelu_dwconv_forward,
    gelu_dwconv_ref,
    group_norm_1_backward,
    group_norm_1_forward,
    group_norm_1_ref,
    heat_step_forward,
    heat_step_ref,
    heat_step_sums,
    heat_step_transposed,
    norm_gate_backward,
    norm_gate_forward,
)

from .where import INTERPRETED, KERNELS

WHERE = (
    KERNELS
    if INTERPRETED
    else [('torch', 'cpu'), *(('torch', device) for _, device in KERNELS), *KERNELS]
)
# Also two and four samples to a program of the kernels, and strips of 7 and of 8 columns.
SHAPES = [(2, 3, 2, 9), (2, 64, 2, 8), (4, 32, 2, 7), (1, 70, 2, 2), (1, 2, 15, 1), (1, 1, 1, 1)]
if not INTERPRETED:
    SHAPES += [
        (3, 2, 7, 7),
        (1, 3, 13, 5),
        (1, 2, 1, 8),
        (4, 64, 56, 56),
        (2, 320, 14, 14),
        (3, 100, 31, 45),
    ]
everywhere = pytest.mark.parametrize('name, device', WHERE, ids=['-'.join(w) for w in WHERE])
stencils = pytest.mark.parametrize('stencil', ['anisotropic', 'isotropic'])


def shapes_with(option, *values, shapes=SHAPES):
    """Every shape with every value of an option.

    With the interpreter, which is slow, that holds of the first shape, and others have one value.
    """
    pairs = [
        (shape, value)
        for n, shape in enumerate(shapes)
        for value in ((values[n % len(values)],) if INTERPRETED and n else values)
    ]
    return pytest.mark.parametrize(f'shape, {option}', pairs)


@pytest.fixture(autouse=True)
def full_precision(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)


def dtypes(name, shape):
    if INTERPRETED:  # which is slow.
        return [torch.float32, torch.bfloat16][: 1 + (shape == SHAPES[0])]
    return [torch.float32, torch.bfloat16] + [torch.float64] * (name == 'torch')


def field(shape):
    return torch.randn(shape, dtype=torch.float64).contiguous(memory_format=torch.channels_last)


def normal(*shape):
    return torch.randn(shape, dtype=torch.float64)


def per_channel(shape, offset):
    return None if offset is None else normal(1 if offset == 'one' else shape[0], shape[1])


def rounded(inputs, dtype, device='cpu'):
    """Inputs in a dtype, and the numbers that they then stand for in float64."""
    low = [t if t is None else t.to(dtype).to(device) for t in inputs]
    return low, [t if t is None else t.double().cpu() for t in low]


# Units in the last place, of the largest number of a result: plain torch rounds in between, and
# sums of numbers rounded to 16 bits keep their errors.
ULPS = {torch.float64: 2e3, torch.float32: 1e2, torch.bfloat16: 8}


def assert_close(found, exact, dtype, sums=()):
    """``sums``: indices of results that stay in float32, if the fields have less."""
    for n, (f, x) in enumerate(zip(found, exact)):
        assert (f is None) == (x is None)
        if f is None:
            continue
        wide = torch.promote_types(dtype, torch.float32)
        assert f.dtype == (wide if n in sums else dtype)
        assert f.shape == x.shape
        limit = ULPS[dtype] * torch.finfo(dtype).eps * x.abs().max().clamp(min=1)
        assert (f.double().cpu() - x).abs().max() <= limit, n


def gradients(function, inputs, dy):
    """Value, and gradients of all tensors in ``inputs``, None for None."""
    inputs = [t if t is None else t.detach().clone().requires_grad_() for t in inputs]
    y = function(*inputs)
    found = iter(torch.autograd.grad(y, [t for t in inputs if t is not None], dy))
    return [y.detach()] + [t if t is None else next(found) for t in inputs]


def heat_inputs(shape, stencil):
    w = None if stencil == 'isotropic' else normal(shape[1], 4).abs() / 2
    return [field(shape), w, normal(shape[0], shape[1], 1, 1).sigmoid()]


@everywhere
@stencils
@shapes_with('offset', None, 'one', 'all')
def test_heat_step_forward(shape, stencil, offset, name, device):
    for dtype in dtypes(name, shape):
        low, exact = rounded(
            heat_inputs(shape, stencil) + [per_channel(shape, offset)], dtype, device
        )
        added = 0 if offset is None else exact[3][:, :, None, None]
        u = heat_step_forward(*low, backend=name)
        assert_close([u], [heat_step_ref(*exact[:3]) + added], dtype)


@everywhere
@stencils
@shapes_with('offset', None, 'one', 'all')
def test_heat_step_gradients(shape, stencil, offset, name, device):
    for dtype in dtypes(name, shape):
        inputs = heat_inputs(shape, stencil) + [field(shape), per_channel(shape, offset)]
        (z, w, k, dout, mean_grad), exact = rounded(inputs, dtype, device)
        _, dz, dw, dk = gradients(heat_step_ref, exact[:3], exact[3])
        if offset is not None:
            dz = dz + exact[4][:, :, None, None]
        assert_close([heat_step_transposed(dout, w, k, mean_grad, backend=name)], [dz], dtype)
        assert_close(heat_step_sums(dout, z, w, k, backend=name), [dk, dw], dtype, sums=(0, 1))


@everywhere
@stencils
@pytest.mark.parametrize('k', [(), (1, 1, 1, 1), (2, 1, 1, 1), (3, 1, 1), 0.3], ids=str)
def test_heat_step_pieces_broadcast_k(k, stencil, name, device):
    z, w, _ = heat_inputs((2, 3, 2, 2), stencil)
    rate = torch.as_tensor(k if isinstance(k, float) else normal(*k).abs()).double()
    dout = field(z.shape)
    _, dz, dw, dk = gradients(heat_step_ref, [z, w, rate.expand(2, 3, 1, 1)], dout)
    z, w, dout = (t if t is None else t.float().to(device) for t in (z, w, dout))
    low = k if isinstance(k, float) else rate.float().to(device)
    assert_close(
        [heat_step_forward(z, w, low, backend=name)],
        [heat_step_ref(z.double(), w if w is None else w.double(), rate.to(device)).cpu()],
        torch.float32,
    )
    assert_close([heat_step_transposed(dout, w, low, backend=name)], [dz], torch.float32)
    if not isinstance(k, float):
        assert_close(heat_step_sums(dout, z, w, low, backend=name), [dk, dw], torch.float32)


@everywhere
@shapes_with('scaled', False, True)
def test_gelu_dwconv(shape, scaled, name, device):
    for dtype in dtypes(name, shape):
        scale = torch.rand(shape[0], dtype=torch.float64) * 2 if scaled else None
        if scaled:
            scale[0] = 0
        inputs = [2 * field(shape), normal(shape[1], 1, 3, 3), scale, field(shape)]
        (p, weight, scale, dg), exact = rounded(inputs, dtype, device)

        def plain(p, weight, bias):
            g = gelu_dwconv_ref(p + bias[:, None, None], weight)
            return g if exact[2] is None else g * exact[2].view(-1, 1, 1, 1)

        bias = torch.zeros(shape[1], dtype=torch.float64)
        g, dp, dweight, dbias = gradients(plain, [*exact[:2], bias], exact[3])
        assert_close([gelu_dwconv_forward(p, weight, scale, backend=name)], [g], dtype)
        assert_close(
            gelu_dwconv_backward(dg, p, weight, scale, backend=name),
            [dp, dweight, dbias],
            dtype,
            sums=(1, 2),
        )


@everywhere
@shapes_with('offset', None, 'one', 'all', shapes=SHAPES + [(2, 40, 11, 13)])
@pytest.mark.parametrize('skips', [False, True])
def test_group_norm(shape, offset, skips, name, device):
    if shape == (1, 1, 1, 1):
        shape = (2, 1, 2, 1)  # One number alone has no variance.
    for dtype in dtypes(name, shape):
        inputs = [
            field(shape) + 0.5,
            normal(shape[1]) + 1,
            normal(shape[1]),
            per_channel(shape, offset),
            field(shape),
            field(shape) if skips else None,
        ]
        (x, weight, bias, shift, dy, residual), exact = rounded(inputs, dtype, device)

        def plain(x, weight, bias):
            if exact[3] is not None:
                x = x - exact[3][:, :, None, None]
            return group_norm_1_ref(x, weight, bias, 1e-5)

        y, dx, dweight, dbias = gradients(plain, exact[:3], exact[4])
        dx = dx if exact[5] is None else dx + exact[5]
        found, mean, rstd = group_norm_1_forward(x, weight, bias, 1e-5, shift, backend=name)
        assert mean.shape == rstd.shape == shape[:1]
        assert_close([found], [y], dtype)
        found = group_norm_1_backward(dy, x, weight, mean, rstd, residual, shift, backend=name)
        assert_close(found, [dx, dweight, dbias], dtype, sums=(1, 2))


@everywhere
@pytest.mark.parametrize('gated', [None, 'whole', 'slice'])
@pytest.mark.parametrize('shape', [(2, 3, 5, 96), (1, 1, 7, 3), (3, 7, 7, 32), (1, 13, 5, 70)])
def test_norm_gate(shape, gated, name, device):
    for dtype in dtypes(name, SHAPES[0]):
        wide = normal(*shape[:3], 2 * shape[3])
        inputs = [normal(*shape), wide, normal(shape[3]) + 1, normal(shape[3]), normal(*shape)]
        (u, wide, weight, bias, dy), exact = rounded(inputs, dtype, device)
        gate, exact_gate = (t[..., shape[3] :] for t in (wide, exact[1]))
        if gated == 'whole':
            gate = gate.contiguous()
        if gated is None:
            gate = exact_gate = None

        def plain(u, gate, weight, bias):
            y = F.layer_norm(u, u.shape[3:], weight, bias, 1e-5)
            return y if gate is None else y * F.silu(gate)

        y, du, dgate, dweight, dbias = gradients(
            plain, [exact[0], exact_gate, *exact[2:4]], exact[4]
        )
        found, mean, rstd = norm_gate_forward(u, gate, weight, bias, 1e-5, backend=name)
        assert mean.shape == rstd.shape == (*shape[:3], 1)
        assert_close([found], [y], dtype)
        for out in (None, torch.full_like(wide, 7.0)) if gated else (None,):
            place = None if out is None else out[..., shape[3] :]
            found = norm_gate_backward(
                dy, u, gate, weight, bias, mean, rstd, backend=name, dgate_out=place
            )
            assert_close(found, [du, dgate, dweight, dbias], dtype, sums=(2, 3))
            if out is not None:
                assert found[1].data_ptr() == place.data_ptr()
                assert (out[..., : shape[3]] == 7).all()


@everywhere
def test_where_the_gradient_of_the_gate_goes_need_not_be_evenly_spaced(name, device):
    u, gate, dy = (torch.randn(2, 3, 4, 5, device=device) for _ in range(3))
    weight, bias = torch.rand(5, device=device), torch.rand(5, device=device)
    _, mean, rstd = norm_gate_forward(u, gate, weight, bias, 1e-5, backend=name)
    expected = norm_gate_backward(dy, u, gate, weight, bias, mean, rstd, backend=name)
    place = torch.zeros(2, 3, 8, 5, device=device)[:, :, :4]
    strided = torch.zeros(2, 3, 4, 10, device=device)[..., ::2].copy_(gate)
    found = norm_gate_backward(
        dy, u, strided, weight, bias, mean, rstd, backend=name, dgate_out=place
    )
    torch.testing.assert_close(found, expected)
    assert torch.equal(place, found[1])


@everywhere
def test_one_offset_for_all_samples(name, device):
    z, w, k = (t.float().to(device) for t in heat_inputs((2, 3, 3, 4), 'anisotropic'))
    weight, bias, offset = (torch.rand(n, device=device) for n in ((3,), (3,), (1, 3)))
    for function, inputs in [
        (heat_step_forward, (z, w, k)),
        (heat_step_transposed, (z, w, k)),
        (group_norm_1_forward, (z, weight, bias, 1e-5)),
    ]:
        torch.testing.assert_close(
            function(*inputs, offset, backend=name),
            function(*inputs, offset.expand(2, 3), backend=name),
        )


@everywhere
def test_pieces_of_half_fields_take_parameters_in_float32(name, device):
    # As in mixed precision: fields in bfloat16, parameters and statistics in float32.
    shape = (2, 4, 3, 5)
    z, dy = (field(shape).bfloat16().to(device) for _ in range(2))
    w, weight, bias = (torch.rand(n, device=device) for n in ((4, 4), (4,), (4,)))
    scale, k = torch.rand(2, device=device), torch.rand(2, 4, 1, 1, device=device).bfloat16()
    offset = torch.rand(1, 4, device=device)
    exact = [t.double().cpu() for t in (z, w, k, offset)]
    u = heat_step_forward(z, w, k, offset, backend=name)
    assert_close([u], [heat_step_ref(*exact[:3]) + exact[3][:, :, None, None]], torch.bfloat16)
    dz = heat_step_transposed(dy, w, k, offset, backend=name)
    dk, dw = heat_step_sums(dy, z, w, k, backend=name)
    y, mean, rstd = group_norm_1_forward(z, weight, bias, 1e-5, offset, backend=name)
    dx, dweight, dbias = group_norm_1_backward(dy, z, weight, mean, rstd, dy, offset, backend=name)
    v = z.permute(0, 2, 3, 1)
    n, *statistics = norm_gate_forward(v, v, weight, bias, 1e-5, backend=name)
    du, dgate, *affine = norm_gate_backward(
        dy.permute(0, 2, 3, 1).contiguous(), v, v, weight, bias, *statistics, backend=name
    )
    assert {t.dtype for t in (u, dz, y, dx, n, du, dgate)} == {torch.bfloat16}
    assert {t.dtype for t in (dk, dw, dweight, dbias, *affine)} == {torch.float32}
    if name == 'triton' or device == 'cuda':
        taps = torch.rand(4, 1, 3, 3, device=device)
        taps = taps if name == 'triton' else taps.bfloat16()
        g = gelu_dwconv_forward(z, taps, scale, backend=name)
        dp, dtaps, dbias = gelu_dwconv_backward(dy, z, taps, scale, backend=name)
        assert g.dtype == dp.dtype == torch.bfloat16
        assert dtaps.dtype == dbias.dtype == torch.float32


def test_wrong_shapes_are_refused():
    z, w, k = torch.rand(2, 3, 4, 4), torch.rand(3, 4), torch.rand(2, 3, 1, 1)
    for wrong in (torch.rand(3), torch.rand(2, 1), torch.rand(3, 3)):
        with pytest.raises(ValueError, match=r'must be \(B, C\) = \(2, 3\) or \(1, C\)'):
            heat_step_forward(z, w, k, wrong)
        with pytest.raises(ValueError, match=r'must be \(B, C\) = \(2, 3\) or \(1, C\)'):
            heat_step_transposed(z, w, k, wrong)
        with pytest.raises(ValueError, match=r'must be \(B, C\) = \(2, 3\) or \(1, C\)'):
            group_norm_1_forward(z, torch.rand(3), torch.rand(3), 1e-5, wrong)
    with pytest.raises(ValueError, match=r'scale must be \(B,\) = \(2,\)'):
        gelu_dwconv_forward(z, torch.rand(3, 1, 3, 3), torch.rand(3))
    with pytest.raises(ValueError, match='gate must be of the shape of u'):
        norm_gate_forward(z, z[:1], torch.rand(4), torch.rand(4), 1e-5)
    with pytest.raises(ValueError, match=r'weight and bias must be \(C,\) = \(4,\)'):
        norm_gate_forward(z, z, torch.rand(3), torch.rand(3), 1e-5)
