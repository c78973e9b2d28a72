"""GroupNorm with one group: every sample is normalised over all of its channels and pixels."""
import torch.nn.functional as F
from torch import Tensor

from .backend import use_triton


def group_norm_1_ref(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """:func:`group_norm_1` in plain torch."""
    return F.group_norm(x, 1, weight, bias, eps)


def group_norm_1(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5,
                 backend: str = 'auto') -> Tensor:
    """y = (x - μ) / sqrt(σ² + eps) · weight + bias, with μ and σ² of each sample over (C, H, W).

    Statistics are in float32, σ² from differences to the mean, so that |μ| >> σ costs no digits.

    Args:
        x (Tensor): (B, C, H, W), floating point.
        weight (Tensor): (C,).
        bias (Tensor): (C,).
        eps (float): Added to the variance.
        backend (str): 'auto', 'triton' or 'torch'; see :func:`~mmhcnet.ops.backend.use_triton`.

    Returns:
        Tensor: (B, C, H, W), dtype of ``x``.
    """
    if use_triton(backend, x, weight, bias):
        from .triton.group_norm import group_norm_1 as fused
        return fused(x, weight, bias, eps)
    return group_norm_1_ref(x, weight, bias, eps)
