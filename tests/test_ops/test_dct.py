"""The spectral solution of the heat equation against scipy's DCT and against its physics."""

import math

import pytest
import torch

from mmhcnet.ops import dct2, dct_matrix, eigenvalues, heat_spectral, idct2, spectral_decay

from ..old_torch import HALF, compiles

SIZES = [(7, 5), (4, 4), (1, 6), (6, 1), (1, 1), (25, 42)]
CPU = torch.device('cpu')


def field(size, channels=3, batch=2):
    return torch.randn(batch, *size, channels, dtype=torch.float64)


def conduct(u, k):
    return heat_spectral(u, spectral_decay(k, u.shape[1], u.shape[2]))


@pytest.mark.parametrize('size', SIZES)
def test_equals_scipy(size):
    fft = pytest.importorskip('scipy.fft')
    u = field(size)
    forward = torch.from_numpy(fft.dctn(u.numpy(), axes=(1, 2), norm='ortho'))
    torch.testing.assert_close(dct2(u), forward, rtol=0, atol=1e-12)
    inverse = torch.from_numpy(fft.idctn(u.numpy(), axes=(1, 2), norm='ortho'))
    torch.testing.assert_close(idct2(u), inverse, rtol=0, atol=1e-12)


@pytest.mark.parametrize('n', [1, 2, 7, 56, 333])
def test_matrix_is_orthonormal(n):
    matrix = dct_matrix(n, CPU, torch.float64)
    eye = torch.eye(n, dtype=torch.float64)
    torch.testing.assert_close(matrix @ matrix.T, eye, rtol=0, atol=1e-12)
    torch.testing.assert_close(matrix.T @ matrix, eye, rtol=0, atol=1e-12)


@pytest.mark.parametrize('size', SIZES)
def test_inverse_undoes_the_transform(size):
    u = field(size)
    torch.testing.assert_close(idct2(dct2(u)), u, rtol=0, atol=1e-12)


def test_a_slice_of_channels_is_taken_as_it_is():
    wide = field((6, 5), channels=8)
    # Not equal on every processor: a product of another layout may add in another order.
    torch.testing.assert_close(
        dct2(wide[..., 2:5]), dct2(wide[..., 2:5].contiguous()), rtol=0, atol=1e-14
    )


def test_eigenvalues():
    expected = torch.linspace(0, math.pi, 8, dtype=torch.float64)[:7].square()
    torch.testing.assert_close(eigenvalues(7, CPU, torch.float64), expected)


@pytest.mark.parametrize('mode', [(0, 0), (1, 0), (0, 3), (2, 5), (11, 9)])
def test_cosine_mode_decays_by_its_eigenvalue(mode):
    height, width = 12, 10
    rows = torch.cos(math.pi * mode[0] * (torch.arange(height).double() + 0.5) / height)
    columns = torch.cos(math.pi * mode[1] * (torch.arange(width).double() + 0.5) / width)
    u = (rows[:, None] * columns[None, :])[None, :, :, None]
    k = torch.tensor(0.37, dtype=torch.float64)
    rate = (mode[0] * math.pi / height) ** 2 + (mode[1] * math.pi / width) ** 2
    torch.testing.assert_close(conduct(u, k), math.exp(-rate * 0.37) * u, rtol=0, atol=1e-13)


@pytest.mark.parametrize('size', SIZES)
def test_uniform_k_is_a_semigroup(size):
    u = field(size)
    k1, k2 = torch.rand(2, 3, dtype=torch.float64)
    torch.testing.assert_close(conduct(conduct(u, k1), k2), conduct(u, k1 + k2), rtol=0, atol=1e-12)


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('per_mode', [False, True])
def test_mean_is_conserved(size, per_mode):
    u = field(size)
    k = torch.rand(*size, 3, dtype=torch.float64) if per_mode else torch.rand(3).double()
    torch.testing.assert_close(
        conduct(u, k).mean(dim=(1, 2)), u.mean(dim=(1, 2)), rtol=0, atol=1e-13
    )


def test_no_conduction_and_endless_conduction():
    u = field((6, 7))
    torch.testing.assert_close(conduct(u, torch.zeros(1).double()), u, rtol=0, atol=1e-13)
    mean = u.mean(dim=(1, 2), keepdim=True).expand_as(u)
    torch.testing.assert_close(conduct(u, torch.full((1,), 1e4).double()), mean, rtol=0, atol=1e-12)


def test_agrees_with_many_small_explicit_steps_for_a_smooth_field():
    # Smooth: there the five-point stencil's eigenvalues are those of the cosines to 1 %.
    from mmhcnet.ops import heat_step

    i = (torch.arange(40).double() + 0.5) / 40
    u = (torch.cos(math.pi * i)[:, None] * torch.cos(2 * math.pi * i)[None, :])[None, :, :, None]
    z, w = u.permute(0, 3, 1, 2), torch.ones(1, 4, dtype=torch.float64)
    for _ in range(200):
        z = heat_step(z, w, 0.1)
    exact = conduct(u, torch.tensor(20.0, dtype=torch.float64)).permute(0, 3, 1, 2)
    torch.testing.assert_close(z, exact, rtol=0, atol=2e-3)


@pytest.mark.parametrize('size', [(3, 4), (1, 2)])
def test_gradients(size):
    u = field(size, channels=2, batch=1).requires_grad_()
    k = torch.rand(*size, 2, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(conduct, (u, k))


@pytest.mark.parametrize('dtype', [torch.bfloat16, *HALF])
def test_decay_of_low_precision_k_is_float32(dtype):
    k = torch.rand(5, 6, 2).to(dtype)
    decay = spectral_decay(k, 5, 6)
    assert decay.dtype == torch.float32
    torch.testing.assert_close(
        decay.double(), spectral_decay(k.double(), 5, 6), rtol=1e-5, atol=1e-7
    )
    assert spectral_decay(torch.rand(2).double(), 5, 6).dtype == torch.float64


@pytest.mark.parametrize('dtype', [torch.bfloat16, *HALF])
def test_low_precision_and_autocast(dtype):
    u, k = field((14, 11)).float(), torch.rand(14, 11, 3)
    expected = conduct(u, k)
    low = conduct(u.to(dtype), k)
    assert low.dtype == dtype
    torch.testing.assert_close(low.float(), expected, rtol=0, atol=5e-2)
    with torch.autocast('cpu', dtype=dtype):
        torch.testing.assert_close(conduct(u, k).float(), expected, rtol=0, atol=5e-2)


def test_constants_are_cached():
    first = dct_matrix(9, CPU, torch.float32)
    assert dct_matrix(9, CPU, torch.float32) is first
    assert dct_matrix(9, CPU, torch.float64) is not first
    assert not first.requires_grad


def test_constants_made_in_inference_mode_serve_training():
    with torch.inference_mode():
        conduct(field((13, 17)), torch.rand(3).double())
    u = field((13, 17)).requires_grad_()
    conduct(u, torch.rand(3).double()).sum().backward()
    assert u.grad.isfinite().all()


@compiles
def test_compiles():
    u, k = field((6, 5)).float(), torch.rand(6, 5, 3)
    compiled = torch.compile(conduct, fullgraph=True, backend='aot_eager')
    torch.testing.assert_close(compiled(u, k), conduct(u, k))


def test_inputs_are_not_changed():
    u, k = field((5, 5)), torch.rand(5, 5, 3).double()
    before = u.clone(), k.clone()
    conduct(u, k)
    assert torch.equal(u, before[0]) and torch.equal(k, before[1])


@pytest.mark.parametrize('shape', [(5, 4, 3), (4, 3), (1, 5, 5, 3)])
def test_k_of_another_size_is_refused(shape):
    with pytest.raises(ValueError, match=r'k must broadcast to \(H, W, C\) = \(5, 5, C\)'):
        spectral_decay(torch.rand(shape), 5, 5)


def test_decay_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r'decay must be \(H, W, C\) = \(5, 5, 3\)'):
        heat_spectral(field((5, 5)), spectral_decay(torch.rand(3).double(), 5, 4))
