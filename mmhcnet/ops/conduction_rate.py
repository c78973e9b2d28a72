"""The input-dependent conduction rate of HcNet, from a field to the factor of its heat step."""

import torch
from torch import Tensor

from .backend import use_triton


def conduction_rate_forward_ref(
    z: Tensor, to_k: Tensor, keep: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`conduction_rate_forward` in plain torch."""
    mean = z.mean(dim=(2, 3), dtype=torch.promote_types(z.dtype, torch.float32))
    k = torch.sigmoid(mean @ to_k.t().to(mean.dtype))
    rate = k if keep is None else k * keep[:, None]
    return rate.to(z.dtype)[:, :, None, None], k, mean


def conduction_rate_forward(
    z: Tensor, to_k: Tensor, keep: Tensor | None = None, backend: str = 'auto'
) -> tuple[Tensor, Tensor, Tensor]:
    """r = s k with k = sigmoid(K GAP(z)) (HcNet, equation 6a), and what the backward pass needs.

    Records no autograd: this is a piece of a function with a backward of its own.

    Args:
        z (Tensor): (B, C, H, W), floating point.
        to_k (Tensor): K, (C, C).
        keep (Tensor, optional): s, (B,), the factors of stochastic depth.
        backend (str): 'auto', 'triton' or 'torch'; see :func:`~mmhcnet.ops.backend.use_triton`.

    Returns:
        tuple[Tensor, Tensor, Tensor]: r (B, C, 1, 1) in the dtype of ``z``; k and GAP(z), (B, C)
        in float32 (float64 for float64).

    Raises:
        ValueError: ``to_k`` is not (C, C).
    """
    if to_k.shape != (z.shape[1], z.shape[1]):
        raise ValueError(
            f'to_k must be (C, C) = ({z.shape[1]}, {z.shape[1]}) for z of '
            f'{tuple(z.shape)}, got {tuple(to_k.shape)}'
        )
    if use_triton(backend, z, to_k, *(() if keep is None else (keep,))):
        from .triton.conduction_rate import conduction_rate_forward as fused

        return fused(z, to_k, keep)
    return conduction_rate_forward_ref(z, to_k, keep)


def conduction_rate_backward(
    dr: Tensor, k: Tensor, mean: Tensor, to_k: Tensor, keep: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Gradients of :func:`conduction_rate_forward`: a few products of small matrices.

    Args:
        dr (Tensor): (B, C, 1, 1), in the dtype of ``k``.
        k (Tensor): (B, C), of the forward.
        mean (Tensor): (B, C), of the forward.
        to_k (Tensor): K, (C, C).
        keep (Tensor, optional): s, (B,).

    Returns:
        tuple[Tensor, Tensor]: Gradients of GAP(z), (B, C), and of K, (C, C), in the dtype of
        ``k``.
    """
    dk = dr.flatten(1) if keep is None else dr.flatten(1) * keep[:, None]
    da = torch.ops.aten.sigmoid_backward(dk.to(k.dtype), k)
    return da @ to_k.to(k.dtype), da.t() @ mean
