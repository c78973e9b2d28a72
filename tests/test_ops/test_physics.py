"""The operators as physics: against solutions of the heat equation on an insulated square.

The unit square, N x N cells of width h = 1/N, values at the cell centres. One step with weights w
advances du/dt = a u_yy + b u_xx, where a = (w1 + w2) / 2 and b = (w3 + w4) / 2, by k h² in time.
"""

import math

import pytest
import torch

from mmhcnet.models.layers import HeatConduction
from mmhcnet.ops import heat_flux, heat_spectral, heat_step, spectral_decay

EQUAL = (0.25, 0.25, 0.25, 0.25)
UNEQUAL = (0.4, 0.4, 0.1, 0.1)
# Amplitude of each mode cos(mπy) cos(nπx) of the initial temperature.
MODES = {(0, 0): 1.0, (1, 0): 0.7, (1, 2): -0.5, (3, 1): 0.2}


def fourier_solution(n, a, b, time):
    """The Fourier series of the insulated square at the centres of n x n cells."""
    x = (torch.arange(n).double() + 0.5) / n
    return sum(
        amplitude
        * math.exp(-(math.pi**2) * (a * p**2 + b * q**2) * time)
        * torch.cos(p * math.pi * x)[:, None]
        * torch.cos(q * math.pi * x)[None, :]
        for (p, q), amplitude in MODES.items()
    )[None, None]


def slope(x, y):
    """Of the straight line through log y over log x."""
    x, y = (torch.tensor([math.log(v) for v in values]) for values in (x, y))
    return (((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()).item()


def order_of_convergence(w, a, b):
    sizes, errors, k = (12, 16, 24, 32, 48), [], 0.9
    for n in sizes:
        steps = round(0.05 / (k / n**2))
        z = fourier_solution(n, a, b, 0.0)
        for _ in range(steps):
            z = heat_step(z, w, k)
        errors.append((z - fourier_solution(n, a, b, steps * k / n**2)).abs().max().item())
    return -slope(sizes, errors)


@pytest.mark.parametrize('w', [EQUAL, UNEQUAL])
def test_converges_to_the_fourier_solution_with_second_order(w):
    # Centred differences: h². One step forward in time: k h², as k stays the same.
    a, b = (w[0] + w[1]) / 2, (w[2] + w[3]) / 2
    order = order_of_convergence(torch.tensor([w], dtype=torch.float64), a, b)
    assert order == pytest.approx(2, abs=0.05)


def test_isotropic_stencil_converges_with_first_order():
    # Inside, 6 of 8 neighbours lie at distance ±1 along either axis: a = b = 6/8 · 1/2. At a border
    # 3 of 5 lie inwards, which is not the mean that an insulated wall gives: an error of order 1
    # in a strip of width h.
    assert order_of_convergence(None, 3 / 8, 3 / 8) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize('factor', [0.97, 1.03])
def test_stability_limit_is_k_times_the_sum_of_w(factor):
    # By the layer, from noise, with Σw = 1.25: the limit is k = 0.8.
    layer = HeatConduction(1, k=factor * 0.8).double()
    with torch.no_grad():
        layer.w.copy_(torch.tensor([[0.3, 0.3, 0.325, 0.325]]))
    z = torch.randn(1, 1, 20, 24, dtype=torch.float64)
    sizes = []
    with torch.no_grad():
        for _ in range(400):
            z = layer(z)
            sizes.append(z.abs().max().item())
    # The mode that grows first alternates between pixels. Its factor per step:
    highest = 2 * (0.3 * (1 + math.cos(math.pi / 20)) + 0.325 * (1 + math.cos(math.pi / 24)))
    fastest = abs(1 - factor * 0.8 * highest)
    assert (fastest > 1) == (factor > 1)
    if factor > 1:
        assert sizes[-1] / sizes[-101] == pytest.approx(fastest**100, rel=1e-2)
    else:
        assert sizes[-1] < sizes[0]


def test_total_heat_over_many_steps():
    ramp = torch.linspace(0, 1, 17, dtype=torch.float64)[:, None].expand(1, 1, 17, 23)
    total = ramp.sum().item()
    even = uneven = ramp
    for _ in range(500):
        even = heat_step(even, torch.tensor([UNEQUAL], dtype=torch.float64), 0.9)
        uneven = heat_step(uneven, torch.tensor([[0.3, 0.2, 0.25, 0.25]], dtype=torch.float64), 0.9)
    assert even.sum().item() == pytest.approx(total, rel=1e-13)
    # w1 and w2 are learned apart: unlike ones let a pixel take more than its neighbour gives.
    assert uneven.sum().item() > 1.3 * total


def test_everything_ends_at_the_mean():
    z = torch.rand(1, 1, 9, 11, dtype=torch.float64)
    mean = z.mean()
    for _ in range(3000):
        z = heat_step(z, torch.tensor([EQUAL], dtype=torch.float64), 0.9)
    torch.testing.assert_close(z, mean.expand_as(z), rtol=0, atol=1e-12)


def test_maximum_principle_of_the_layer():
    # Any w >= 0 with Σw <= 1, alike or not, and any gate, which is below 1.
    layer = HeatConduction(16).double()
    with torch.no_grad():
        layer.w.copy_(torch.rand(16, 4).softmax(dim=1))
        layer.to_k.weight.normal_(std=30)
        z = torch.rand(3, 16, 13, 10, dtype=torch.float64)
        low, high = z.amin(dim=(2, 3)), z.amax(dim=(2, 3))
        assert (layer.rate(z) > 0.99).any() and (layer.rate(z) < 0.01).any()
        for _ in range(30):
            z = layer(z)
            assert (z.amin(dim=(2, 3)) >= low - 1e-12).all()
            assert (z.amax(dim=(2, 3)) <= high + 1e-12).all()


def test_maximum_principle_ends_at_the_stability_limit():
    hot = torch.zeros(1, 1, 5, 5, dtype=torch.float64)
    hot[0, 0, 2, 2] = 1
    w = torch.tensor([EQUAL], dtype=torch.float64)
    assert heat_step(hot, w, 1.0).min() >= 0
    assert heat_step(hot, w, 1.1).min() == pytest.approx(-0.1)


@pytest.mark.parametrize('size', [(7, 12), (16, 16)])
def test_vheat_equals_scipy(size):
    np, fft = pytest.importorskip('numpy'), pytest.importorskip('scipy.fft')
    u = torch.randn(2, *size, 3, dtype=torch.float64)
    k = torch.rand(*size, 3, dtype=torch.float64)
    y, x = ((np.arange(n) * np.pi / n) ** 2 for n in size)
    decay = np.exp(-(y[:, None, None] + x[:, None]) * k.numpy())
    expected = fft.idctn(
        fft.dctn(u.numpy(), axes=(1, 2), norm='ortho') * decay, axes=(1, 2), norm='ortho'
    )
    torch.testing.assert_close(
        heat_spectral(u, spectral_decay(k, *size)), torch.from_numpy(expected), rtol=0, atol=1e-12
    )


def difference(n, k):
    """Between vHeat's operator and HcNet's step with w = 1, in units of the slowest mode."""
    mode = torch.cos(math.pi * (torch.arange(n).double() + 0.5) / n)[:, None].expand(1, 1, n, n)
    decay = spectral_decay(torch.tensor(k, dtype=torch.float64), n, n)
    spectral = heat_spectral(mode.permute(0, 2, 3, 1), decay).permute(0, 3, 1, 2)
    stencil = heat_step(mode, torch.ones(1, 4, dtype=torch.float64), k)
    return (((spectral - stencil) * mode).sum() / mode.square().sum()).item()


def test_vheat_becomes_hcnets_stencil_for_small_k():
    # exp(-θ²k) against 1 - μk with θ = π / N and μ = 2 - 2 cos θ. To first order in k they differ
    # by (μ - θ²) k, the error of the differences; what is left falls as k².
    theta = math.pi / 8
    first = 2 - 2 * math.cos(theta) - theta**2
    assert difference(8, 1e-4) == pytest.approx(first * 1e-4, rel=1e-2)
    rates = (0.4, 0.2, 0.1, 0.05, 0.025)
    assert slope(rates, [difference(8, k) - first * k for k in rates]) == pytest.approx(2, abs=0.05)
    # μ - θ² is -θ⁴/12: with the size of the grid, at the same k, the difference falls as N^-4.
    sizes = (16, 24, 32, 48, 64)
    assert slope(sizes, [difference(n, 0.5) for n in sizes]) == pytest.approx(-4, abs=0.05)


def test_flux_is_the_derivative_of_vheats_operator():
    # At k = 0, for the modes of MODES on a fine grid, where θ⁴/12 is small against θ².
    n = 96
    u = fourier_solution(n, 0.0, 0.0, 0.0)
    k = torch.zeros((), dtype=torch.float64, requires_grad=True)

    def conduct(k):
        return heat_spectral(u.permute(0, 2, 3, 1), spectral_decay(k, n, n)).permute(0, 3, 1, 2)

    derivative = torch.autograd.functional.jvp(conduct, k, torch.ones_like(k))[1]
    flux = heat_flux(u, torch.ones(1, 4, dtype=torch.float64))
    torch.testing.assert_close(flux, derivative, rtol=0, atol=2e-3 * flux.abs().max().item())
