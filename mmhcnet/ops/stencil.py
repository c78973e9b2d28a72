"""One explicit finite-difference step of the heat equation du/dt = k Laplace(u).

Border: insulated (zero flux, homogeneous Neumann): a neighbour outside the field contributes
nothing. Grid spacing and time step are 1, so k is in pixels². The group that governs the scheme
is the mesh Fourier number k·Σw: for k·Σw <= 1 each new value is a convex combination of old ones
(maximum principle), beyond it the scheme can oscillate and grow.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mmhcnet.tracing import is_compiling

from .backend import check_offset, needs_gradient, use_triton
from .precision import cast_like


def heat_flux(z: Tensor, w: Tensor | None = None) -> Tensor:
    """Net heat flowing into every pixel per unit time and unit k.

    With ``w`` the anisotropic five-point stencil of HcNet (equations 4 and 6b)::

        h[i,j] = w1 (z[i+1,j] - z[i,j]) + w2 (z[i-1,j] - z[i,j])
               + w3 (z[i,j+1] - z[i,j]) + w4 (z[i,j-1] - z[i,j])

    without it the isotropic one of the published code: the mean of those of the 8 neighbours
    that exist, minus z. A constant field gives 0.

    Args:
        z (Tensor): Temperature, (B, C, H, W), floating point.
        w (Tensor, optional): (C, 4): w1..w4 of each channel, in the order down, up, right, left.

    Returns:
        Tensor: (B, C, H, W), dtype of ``z``.

    Raises:
        ValueError: ``w`` is not (C, 4).
    """
    _check_weights(z, w)
    return _isotropic_flux(z) if w is None else _anisotropic_flux(z, w)


def _check_weights(z: Tensor, w: Tensor | None) -> None:
    if w is not None and w.shape != (z.shape[1], 4):
        raise ValueError(
            f'w must be (C, 4) = ({z.shape[1]}, 4) for z of {tuple(z.shape)}, got {tuple(w.shape)}'
        )


def _isotropic_flux(z: Tensor) -> Tensor:
    # avg_pool2d averages the n existing pixels of each 3x3 window, its centre included. The mean
    # without the centre, minus the centre, is n / (n - 1) times that average minus the centre.
    n = _window_sizes(z)
    mean = F.avg_pool2d(z, 3, stride=1, padding=1, count_include_pad=False)
    # A 1x1 field has no neighbour: its n - 1 is 0 and its flux 0.
    return (mean - z) * (n / (n - 1).clamp(min=1))


def _window_sizes(z: Tensor) -> Tensor:
    """How many pixels of the field are in the 3x3 window around each: (1, 1, H, W)."""
    ones = z.new_ones(1, 1, z.shape[2], z.shape[3])
    return F.conv2d(ones, z.new_ones(1, 1, 3, 3), padding=1)


def _anisotropic_flux(z: Tensor, w: Tensor) -> Tensor:
    # A replicated border makes the difference to a missing neighbour zero: no flux.
    w1, w2, w3, w4 = w.to(z.dtype).unbind(1)
    zero = torch.zeros_like(w1)
    kernel = torch.stack([zero, w2, zero, w4, -(w1 + w2 + w3 + w4), w3, zero, w1, zero], dim=1)
    return F.conv2d(_with_border(z), kernel.view(-1, 1, 3, 3), groups=z.shape[1])


def _with_border(z: Tensor) -> Tensor:
    """z (B, C, H, W) with its outermost pixels repeated: (B, C, H + 2, W + 2)."""
    if is_compiling():
        # Inductor (2.10) expects the gradient of a replicating pad in another layout than it has
        # for a channels-last map.
        z = torch.cat([z[:, :, :1], z, z[:, :, -1:]], dim=2)
        return torch.cat([z[..., :1], z, z[..., -1:]], dim=3)
    return F.pad(z, (1, 1, 1, 1), mode='replicate')


def heat_step_ref(z: Tensor, w: Tensor | None, k: Tensor | float) -> Tensor:
    """:func:`heat_step` in plain torch."""
    return z + k * heat_flux(z, w)


def heat_step(z: Tensor, w: Tensor | None, k: Tensor | float, backend: str = 'auto') -> Tensor:
    """One explicit step: z' = z + k h(z), with h of :func:`heat_flux` (HcNet, equation 6c).

    Stable for k·Σw <= 1; the isotropic stencil has Σw = 1.

    Args:
        z (Tensor): Temperature, (B, C, H, W), floating point.
        w (Tensor, optional): (C, 4) for the anisotropic stencil, None for the isotropic one.
        k (Tensor or float): Conduction rate in pixels², broadcastable to (B, C, 1, 1).
        backend (str): 'auto', 'triton' or 'torch'; see :func:`~mmhcnet.ops.backend.use_triton`.

    Returns:
        Tensor: (B, C, H, W), dtype of ``z * k``.

    Raises:
        ValueError: ``w`` is not (C, 4), or ``k`` of another shape.
    """
    inputs = _checked(z, w, k)
    if needs_gradient(*inputs) and use_triton(backend, *inputs):
        return _HeatStep.apply(z, w, _as_tensor(k, z))  # pyright: ignore[reportReturnType]
    return heat_step_forward(z, w, k, backend=backend)


class _HeatStep(torch.autograd.Function):
    @staticmethod
    def forward(z: Tensor, w: Tensor | None, k: Tensor) -> Tensor:
        return heat_step_forward(z, w, k, backend='triton')

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, dout: Tensor) -> tuple[Tensor | None, ...]:
        z, w, k = ctx.saved_tensors
        dz = dk = dw = None
        if any(ctx.needs_input_grad[1:]):
            dk, dw = heat_step_sums(dout, z, w, k, backend='triton')
            dk = dk.sum_to_size(k.shape)
        if ctx.needs_input_grad[0]:
            dz = heat_step_transposed(dout, w, k, backend='triton')
        return tuple(cast_like([dz, dw, dk], [z, w, k]))


def _as_tensor(k: Tensor | float, z: Tensor) -> Tensor:
    return k if isinstance(k, Tensor) else z.new_full((), k, dtype=torch.float32)


def _check_rate(z: Tensor, k: Tensor | float) -> None:
    if not isinstance(k, Tensor):
        return
    shape = (z.shape[0], z.shape[1], 1, 1)
    if k.shape != shape and (
        k.dim() > 4 or any(n not in (1, size) for n, size in zip(k.shape[::-1], shape[::-1]))
    ):
        raise ValueError(f'k must broadcast to (B, C, 1, 1) = {shape}, got {tuple(k.shape)}')


def _checked(
    z: Tensor, w: Tensor | None, k: Tensor | float, offset: Tensor | None = None
) -> list[Tensor]:
    """The tensors among the inputs, once their shapes are known to fit."""
    _check_weights(z, w)
    _check_rate(z, k)
    check_offset(z, offset)
    return [t for t in (z, w, k, offset) if isinstance(t, Tensor)]


def heat_step_forward_ref(
    z: Tensor, w: Tensor | None, k: Tensor | float, offset: Tensor | None = None
) -> Tensor:
    """:func:`heat_step_forward` in plain torch."""
    flux = heat_flux(z, w)
    u = torch.addcmul(z, k, flux) if isinstance(k, Tensor) else torch.add(z, flux, alpha=k)
    return u if offset is None else u.add_(offset[:, :, None, None])


def heat_step_forward(
    z: Tensor,
    w: Tensor | None,
    k: Tensor | float,
    offset: Tensor | None = None,
    backend: str = 'auto',
) -> Tensor:
    """u = z + k h(z) + offset: :func:`heat_step`, and a number added to every channel.

    With the last bias of a block as offset, u is what the block's last product accumulates on.
    The kernel records no autograd: this is a piece of a function with a backward of its own.

    Args:
        z (Tensor): (B, C, H, W), floating point.
        w (Tensor, optional): (C, 4), or None for the isotropic stencil.
        k (Tensor or float): Broadcastable to (B, C, 1, 1).
        offset (Tensor, optional): (B, C) or (1, C).
        backend (str): See :func:`heat_step`.

    Returns:
        Tensor: (B, C, H, W), dtype of ``z * k``.

    Raises:
        ValueError: ``w`` is not (C, 4), or ``k`` or ``offset`` is of another shape.
    """
    if use_triton(backend, *_checked(z, w, k, offset)):
        from .triton.heat_step import heat_step_forward as fused

        return fused(z, w, _as_tensor(k, z), offset)
    return heat_step_forward_ref(z, w, k, offset)


def heat_step_sums_ref(
    dout: Tensor, z: Tensor, w: Tensor | None, k: Tensor
) -> tuple[Tensor, Tensor | None]:
    """:func:`heat_step_sums` in plain torch."""
    working = torch.promote_types(z.dtype, torch.float32)
    if w is None:
        return (dout * _isotropic_flux(z)).sum((2, 3), keepdim=True, dtype=working), None
    # What flows between two pixels is wanted twice, once from either side.
    vertical, horizontal = z[:, :, 1:] - z[:, :, :-1], z[..., 1:] - z[..., :-1]
    sums = torch.stack(
        [
            (dout[:, :, :-1] * vertical).sum((2, 3), dtype=working),
            -(dout[:, :, 1:] * vertical).sum((2, 3), dtype=working),
            (dout[..., :-1] * horizontal).sum((2, 3), dtype=working),
            -(dout[..., 1:] * horizontal).sum((2, 3), dtype=working),
        ],
        dim=2,
    )  # (B, C, 4)
    dk = (sums * w).sum(2)
    return dk[:, :, None, None], (sums * k.flatten(1)[:, :, None]).sum(0)


def heat_step_sums(
    dout: Tensor, z: Tensor, w: Tensor | None, k: Tensor, backend: str = 'auto'
) -> tuple[Tensor, Tensor | None]:
    """Gradients of k and w of :func:`heat_step`, for ``dout`` that of z'::

        dk[b,c]   = Σ_ij dout[b,c,i,j] h[b,c,i,j]
        dw_n[c]   = Σ_b k[b,c] Σ_ij dout[b,c,i,j] (z[neighbour n] - z[i,j])

    The sums are in float32 (float64 for float64). No autograd is recorded by the kernel.

    Args:
        dout (Tensor): (B, C, H, W).
        z (Tensor): (B, C, H, W).
        w (Tensor, optional): (C, 4), or None for the isotropic stencil.
        k (Tensor): Broadcastable to (B, C, 1, 1).
        backend (str): See :func:`heat_step`.

    Returns:
        tuple[Tensor, Tensor]: dk (B, C, 1, 1), dw (C, 4) or None.

    Raises:
        ValueError: ``w`` is not (C, 4), or ``k`` of another shape.
    """
    inputs = [*_checked(z, w, k), dout]
    k = k.expand(z.shape[0], z.shape[1], 1, 1)
    if use_triton(backend, *inputs):
        from .triton.heat_step import heat_step_sums as fused

        return fused(dout, z, w, k)
    return heat_step_sums_ref(dout, z, w, k)


def heat_step_transposed_ref(
    dout: Tensor, w: Tensor | None, k: Tensor | float, mean_grad: Tensor | None = None
) -> Tensor:
    """:func:`heat_step_transposed` in plain torch."""
    if w is None:
        # Each pixel took the mean of its n - 1 neighbours: it owes each of them the same share.
        n = _window_sizes(dout)
        share = dout / (n - 1).clamp(min=1)
        received = F.avg_pool2d(share, 3, stride=1, padding=1, divisor_override=1)
        flux = received - n * share
    else:
        w1, w2, w3, w4 = w.to(dout.dtype).unbind(1)
        zero = torch.zeros_like(w1)
        kernel = torch.stack([zero, w1, zero, w3, -(w1 + w2 + w3 + w4), w4, zero, w2, zero], dim=1)
        flux = F.conv2d(dout, kernel.view(-1, 1, 3, 3), padding=1, groups=dout.shape[1])
        # Nothing was taken from neighbours outside the field.
        for axis, pixel, taken in ((2, -1, w1), (2, 0, w2), (3, -1, w3), (3, 0, w4)):
            border = flux.select(axis, pixel)
            border.addcmul_(dout.select(axis, pixel), taken[:, None])
    dz = torch.addcmul(dout, k, flux) if isinstance(k, Tensor) else torch.add(dout, flux, alpha=k)
    return dz if mean_grad is None else dz.add_(mean_grad[:, :, None, None])


def heat_step_transposed(
    dout: Tensor,
    w: Tensor | None,
    k: Tensor | float,
    mean_grad: Tensor | None = None,
    backend: str = 'auto',
) -> Tensor:
    """Gradient of z of :func:`heat_step`: dz = dout + (k L)ᵀ dout + mean_grad, for h(z) = L z.

    ``mean_grad`` is what a rate k that depends on the mean of z adds to every pixel: the gradient
    of that mean over H·W. No autograd is recorded by the kernel.

    Args:
        dout (Tensor): (B, C, H, W), gradient of z'.
        w (Tensor, optional): (C, 4), or None for the isotropic stencil.
        k (Tensor or float): Broadcastable to (B, C, 1, 1).
        mean_grad (Tensor, optional): (B, C).
        backend (str): See :func:`heat_step`.

    Returns:
        Tensor: (B, C, H, W), dtype of ``dout``.

    Raises:
        ValueError: ``w`` is not (C, 4), or ``k`` or ``mean_grad`` is of another shape.
    """
    if use_triton(backend, *_checked(dout, w, k, mean_grad)):
        from .triton.heat_step import heat_step_transposed as fused

        return fused(dout, w, _as_tensor(k, dout), mean_grad)
    return heat_step_transposed_ref(dout, w, k, mean_grad).to(dout.dtype)
