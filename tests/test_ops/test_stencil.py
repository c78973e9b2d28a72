"""The heat step against a loop that is written down from the equation, in float64."""

import math

import pytest
import torch

from mmhcnet.ops import heat_flux, heat_step

from ..old_torch import compiles

SIZES = [(7, 5), (4, 4), (1, 6), (6, 1), (1, 1), (2, 3)]
STENCILS = ['anisotropic', 'isotropic']
# Row and column offset of the neighbours that w1..w4 belong to.
FOUR = [(1, 0), (-1, 0), (0, 1), (0, -1)]
EIGHT = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)]


def field(size, channels=3, batch=2):
    return torch.rand(batch, channels, *size, dtype=torch.float64)


def weights(stencil, channels=3):
    if stencil == 'isotropic':
        return None
    return torch.rand(channels, 4, dtype=torch.float64) / 4


def loop_flux(z, w):
    """Sum over the neighbours inside the field, pixel by pixel."""
    h = torch.zeros_like(z)
    batch, channels, height, width = z.shape
    for b in range(batch):
        for c in range(channels):
            for i in range(height):
                for j in range(width):
                    offsets = EIGHT if w is None else FOUR
                    differences = [
                        ((z[b, c, i + di, j + dj] - z[b, c, i, j]).item(), n)
                        for n, (di, dj) in enumerate(offsets)
                        if 0 <= i + di < height and 0 <= j + dj < width
                    ]
                    if w is None:
                        total = sum(d for d, _ in differences) / max(len(differences), 1)
                    else:
                        total = sum(w[c, n].item() * d for d, n in differences)
                    h[b, c, i, j] = total
    return h


@pytest.mark.parametrize('stencil', STENCILS)
@pytest.mark.parametrize('size', SIZES)
def test_flux_equals_the_loop(size, stencil):
    z, w = field(size), weights(stencil)
    torch.testing.assert_close(heat_flux(z, w), loop_flux(z, w), rtol=0, atol=1e-14)


@pytest.mark.parametrize('stencil', STENCILS)
@pytest.mark.parametrize('k', [0.3, torch.rand(2, 3, 1, 1, dtype=torch.float64)])
def test_step_equals_the_loop(stencil, k):
    z, w = field((6, 7)), weights(stencil)
    torch.testing.assert_close(heat_step(z, w, k), z + k * loop_flux(z, w), rtol=0, atol=1e-14)


@pytest.mark.parametrize('stencil', STENCILS)
@pytest.mark.parametrize('dtype, atol', [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_lower_precision_keeps_dtype_and_value(stencil, dtype, atol):
    z, w = field((9, 8)), weights(stencil)
    low = heat_flux(z.to(dtype), w if w is None else w.to(dtype))
    assert low.dtype == dtype
    torch.testing.assert_close(low.double(), loop_flux(z, w), rtol=0, atol=atol)


def test_unit_impulse_returns_the_stencil():
    z = torch.zeros(1, 1, 5, 5, dtype=torch.float64)
    z[0, 0, 2, 2] = 1
    w = torch.tensor([[0.1, 0.2, 0.3, 0.4]], dtype=torch.float64)
    h = heat_flux(z, w)[0, 0]
    # The pixel above the impulse has it as its lower neighbour, i + 1: weight w1.
    assert h[1, 2] == pytest.approx(0.1)
    assert h[3, 2] == pytest.approx(0.2)
    assert h[2, 1] == pytest.approx(0.3)
    assert h[2, 3] == pytest.approx(0.4)
    assert h[2, 2] == pytest.approx(-1.0)
    assert h.count_nonzero() == 5


@pytest.mark.parametrize('stencil', STENCILS)
@pytest.mark.parametrize('size', SIZES)
def test_constant_field_is_fixed(size, stencil):
    z = torch.full((1, 3, *size), 7.25, dtype=torch.float64)
    torch.testing.assert_close(heat_step(z, weights(stencil), 0.9), z, rtol=0, atol=1e-14)


@pytest.mark.parametrize('size', SIZES)
def test_symmetric_stencil_conserves_heat(size):
    # What flows out of a pixel flows into its neighbour, and nothing leaves at the border.
    z = field(size)
    w = torch.rand(3, 2, dtype=torch.float64).repeat_interleave(2, dim=1)
    total = heat_step(z, w, 0.7).sum(dim=(2, 3))
    torch.testing.assert_close(total, z.sum(dim=(2, 3)), rtol=1e-13, atol=0)


def test_zero_flux_at_the_border():
    # A field that varies along the columns only, continued by its own mirror image, is what an
    # insulated border means: a pixel at the border sees the same flux as one next to its mirror.
    half = torch.rand(1, 1, 5, 4, dtype=torch.float64)
    mirrored = torch.cat([half.flip(3), half], dim=3)
    w = torch.full((1, 4), 0.25, dtype=torch.float64)
    torch.testing.assert_close(
        heat_flux(mirrored, w)[..., 4:], heat_flux(half, w), rtol=0, atol=1e-15
    )


@pytest.mark.parametrize('stencil', STENCILS)
@pytest.mark.parametrize('k', [0.1, 0.5, 1.0])
def test_maximum_principle_up_to_the_stability_limit(stencil, k):
    z = field((11, 9))
    w = None if stencil == 'isotropic' else torch.full((3, 4), 0.25, dtype=torch.float64)
    low, high = z.amin(dim=(2, 3)), z.amax(dim=(2, 3))
    for _ in range(50):
        z = heat_step(z, w, k)
        assert (z.amin(dim=(2, 3)) >= low - 1e-12).all()
        assert (z.amax(dim=(2, 3)) <= high + 1e-12).all()


@pytest.mark.parametrize('k, grows', [(0.98, False), (1.02, True)])
def test_stability_limit_of_the_anisotropic_stencil(k, grows):
    # The checkerboard is the mode that an explicit five-point step amplifies first: by |1 - 2k|
    # for Σw = 1, away from the border.
    i = torch.arange(64)
    board = ((-1.0) ** (i[:, None] + i[None, :])).double()[None, None]
    z, w = board, torch.full((1, 4), 0.25, dtype=torch.float64)
    for _ in range(20):
        z = heat_step(z, w, k)
    centre = z[0, 0, 32, 32].abs().item()
    assert centre == pytest.approx(abs(1 - 2 * k) ** 20, rel=1e-9)
    assert (centre > 1) == grows


@pytest.mark.parametrize('mode', [(1, 0), (0, 3), (2, 5)])
def test_cosine_mode_decays_by_its_eigenvalue(mode):
    # cos(π m (i + ½) / H) cos(π n (j + ½) / W) are the eigenvectors of the five-point stencil
    # with insulated borders.
    height, width, k = 12, 10, 0.6
    rows = torch.cos(math.pi * mode[0] * (torch.arange(height).double() + 0.5) / height)
    columns = torch.cos(math.pi * mode[1] * (torch.arange(width).double() + 0.5) / width)
    z = (rows[:, None] * columns[None, :])[None, None]
    w = torch.tensor([[0.3, 0.3, 0.1, 0.1]], dtype=torch.float64)
    eigenvalue = -2 * (
        0.3 * (1 - math.cos(math.pi * mode[0] / height))
        + 0.1 * (1 - math.cos(math.pi * mode[1] / width))
    )
    torch.testing.assert_close(heat_step(z, w, k), (1 + k * eigenvalue) * z, rtol=0, atol=1e-14)


@pytest.mark.parametrize('stencil', STENCILS)
def test_gradients(stencil):
    z = field((4, 3)).requires_grad_()
    k = torch.rand(2, 3, 1, 1, dtype=torch.float64).requires_grad_()
    w = weights(stencil)
    if w is None:
        assert torch.autograd.gradcheck(lambda z, k: heat_step(z, None, k), (z, k))
    else:
        assert torch.autograd.gradcheck(heat_step, (z, w.requires_grad_(), k))


def test_inputs_are_not_changed():
    z, w = field((5, 5)), weights('anisotropic')
    before = z.clone(), w.clone()
    heat_step(z, w, 0.5)
    assert torch.equal(z, before[0]) and torch.equal(w, before[1])


def test_wrong_weights_are_refused():
    with pytest.raises(ValueError, match=r'w must be \(C, 4\) = \(3, 4\)'):
        heat_flux(field((5, 5)), torch.zeros(4, 3, dtype=torch.float64))


@compiles
def test_a_compiled_step_of_training_pads_nothing():
    """Inductor (2.10) cannot run the gradient of a replicating pad on a channels-last map."""
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    operations = []

    def note(graph, inputs):
        operations.extend(str(node.target) for node in graph.graph.nodes)
        return make_boxed_func(graph.forward)

    z = field((5, 6)).contiguous(memory_format=torch.channels_last).requires_grad_()
    w = weights('anisotropic').requires_grad_()
    torch._dynamo.reset()
    compiled = torch.compile(heat_flux, backend=aot_autograd(fw_compiler=note), fullgraph=True)
    h = compiled(z, w)
    expected = heat_flux(z, w)
    torch.testing.assert_close(h, expected)
    for found, value in zip(
        torch.autograd.grad(h.pow(2).sum(), [z, w]),
        torch.autograd.grad(expected.pow(2).sum(), [z, w]),
    ):
        torch.testing.assert_close(found, value)
    assert any('convolution_backward' in name for name in operations)
    assert not any('pad' in name for name in operations)
