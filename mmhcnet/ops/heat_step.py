"""One explicit finite-difference step of the heat equation du/dt = k Laplace(u).

Border: insulated (zero flux, homogeneous Neumann): a neighbour outside the field contributes
nothing. Grid spacing and time step are 1, so k is in pixels². The group that governs the scheme
is the mesh Fourier number k·Σw: for k·Σw <= 1 each new value is a convex combination of old ones
(maximum principle), beyond it the scheme can oscillate and grow.
"""
from typing import Optional, Union

import torch
import torch.nn.functional as F
from torch import Tensor

from .backend import use_triton


def heat_flux(z: Tensor, w: Optional[Tensor] = None) -> Tensor:
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


def _check_weights(z: Tensor, w: Optional[Tensor]) -> None:
    if w is not None and w.shape != (z.shape[1], 4):
        raise ValueError(f'w must be (C, 4) = ({z.shape[1]}, 4) for z of {tuple(z.shape)}, '
                         f'got {tuple(w.shape)}')


def _isotropic_flux(z: Tensor) -> Tensor:
    # avg_pool2d averages the n existing pixels of each 3x3 window, its centre included. The mean
    # without the centre, minus the centre, is n / (n - 1) times that average minus the centre.
    ones = z.new_ones(1, 1, z.shape[2], z.shape[3])
    n = F.conv2d(ones, z.new_ones(1, 1, 3, 3), padding=1)
    mean = F.avg_pool2d(z, 3, stride=1, padding=1, count_include_pad=False)
    # A 1x1 field has no neighbour: its n - 1 is 0 and its flux 0.
    return (mean - z) * (n / (n - 1).clamp(min=1))


def _anisotropic_flux(z: Tensor, w: Tensor) -> Tensor:
    # A replicated border makes the difference to a missing neighbour zero: no flux.
    w1, w2, w3, w4 = w.to(z.dtype).unbind(1)
    zero = torch.zeros_like(w1)
    kernel = torch.stack([zero, w2, zero, w4, -(w1 + w2 + w3 + w4), w3, zero, w1, zero], dim=1)
    padded = F.pad(z, (1, 1, 1, 1), mode='replicate')
    return F.conv2d(padded, kernel.view(-1, 1, 3, 3), groups=z.shape[1])


def heat_step_ref(z: Tensor, w: Optional[Tensor], k: Union[Tensor, float]) -> Tensor:
    """:func:`heat_step` in plain torch."""
    return z + k * heat_flux(z, w)


def heat_step(z: Tensor, w: Optional[Tensor], k: Union[Tensor, float],
              backend: str = 'auto') -> Tensor:
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
        ValueError: ``w`` is not (C, 4).
    """
    parameters = [t for t in (w, k) if isinstance(t, Tensor)]
    if use_triton(backend, z, *parameters):
        from .triton.heat_step import heat_step as fused
        _check_weights(z, w)
        return fused(z, w, k)
    flux = heat_flux(z, w)
    return torch.addcmul(z, k, flux) if isinstance(k, Tensor) else torch.add(z, flux, alpha=k)
