"""LayerNorm times a gate, the end of vHeat's heat conduction operator."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .backend import use_triton


def _check_shapes(u: Tensor, gate: Tensor | None, *affine: Tensor) -> None:
    for t in affine:
        if t.shape != u.shape[-1:]:
            raise ValueError(
                f'weight and bias must be (C,) = ({u.shape[-1]},) for u of '
                f'{tuple(u.shape)}, got {tuple(t.shape)}'
            )
    if gate is not None and gate.shape != u.shape:
        raise ValueError(
            f'gate must be of the shape of u, {tuple(u.shape)}, got {tuple(gate.shape)}'
        )


def norm_gate_forward_ref(
    u: Tensor, gate: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`norm_gate_forward` in plain torch."""
    if u.is_cuda:
        weight, bias = weight.to(u.dtype), bias.to(u.dtype)
    y, mean, rstd = torch.ops.aten.native_layer_norm(u, u.shape[-1:], weight, bias, eps)
    return y if gate is None else y.mul_(F.silu(gate)), mean, rstd


def norm_gate_forward(
    u: Tensor,
    gate: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    backend: str = 'auto',
) -> tuple[Tensor, Tensor, Tensor]:
    """y = LayerNorm(u) · SiLU(gate) in one pass (vHeat, heat conduction operator).

    LayerNorm is over the channels of each pixel. The kernel records no autograd: this is a piece
    of a function with a backward of its own.

    Args:
        u (Tensor): (B, H, W, C), floating point.
        gate (Tensor, optional): (B, H, W, C), also a slice of the channels of a wider map;
            without it y = LayerNorm(u).
        weight (Tensor): (C,).
        bias (Tensor): (C,).
        eps (float): Added to the variance.
        backend (str): 'auto', 'triton' or 'torch'; see :func:`~mmhcnet.ops.backend.use_triton`.

    Returns:
        tuple[Tensor, Tensor, Tensor]: y (B, H, W, C) in the dtype of ``u``; mean and
        1 / sqrt(variance + eps) of every pixel, (B, H, W, 1), in float32 from the kernel, as aten
        gives them otherwise.

    Raises:
        ValueError: ``weight`` or ``bias`` is not (C,), or ``gate`` of another shape than ``u``.
    """
    _check_shapes(u, gate, weight, bias)
    if use_triton(backend, u, weight, bias, *(() if gate is None else (gate,))):
        from .triton.norm_gate import norm_gate_forward as fused

        return fused(u, gate, weight, bias, eps)
    return norm_gate_forward_ref(u, gate, weight, bias, eps)


def norm_gate_backward_ref(
    dy: Tensor,
    u: Tensor,
    gate: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    rstd: Tensor,
    dgate_out: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """:func:`norm_gate_backward` in plain torch."""
    working = torch.promote_types(u.dtype, torch.float32)
    if u.is_cuda:
        weight, bias = weight.to(u.dtype), bias.to(u.dtype)
    dgate = None
    if gate is not None:
        n = torch.addcmul(bias, (u - mean) * rstd, weight).to(dy.dtype)
        dgate = torch.ops.aten.silu_backward(dy * n, gate)
        if dgate_out is not None:
            dgate = dgate_out.copy_(dgate)
        dy = dy * F.silu(gate)
    du, dweight, dbias = torch.ops.aten.native_layer_norm_backward(
        dy, u, u.shape[-1:], mean, rstd, weight, bias, [True, True, True]
    )
    return du, dgate, dweight.to(working), dbias.to(working)


def norm_gate_backward(
    dy: Tensor,
    u: Tensor,
    gate: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    rstd: Tensor,
    backend: str = 'auto',
    dgate_out: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Gradients of :func:`norm_gate_forward`.

    Sums are in float32 (float64 for float64). No autograd is recorded by the kernel.

    Args:
        dy (Tensor): (B, H, W, C).
        u (Tensor): (B, H, W, C).
        gate (Tensor, optional): (B, H, W, C), of the forward.
        weight (Tensor): (C,).
        bias (Tensor): (C,).
        mean (Tensor): (B, H, W, 1), of the forward.
        rstd (Tensor): (B, H, W, 1), of the forward.
        backend (str): See :func:`norm_gate_forward`.
        dgate_out (Tensor, optional): (B, H, W, C), where dgate is written, also a slice of the
            channels of a wider map.

    Returns:
        tuple[Tensor, Tensor, Tensor, Tensor]: du (B, H, W, C) in the dtype of ``u``; dgate, which
        is ``dgate_out`` where given, None without a gate; dweight and dbias, both (C,).

    Raises:
        ValueError: A shape is not that of the forward.
    """
    _check_shapes(u, gate, weight, bias)
    others = [t for t in (gate, weight, bias, dy) if t is not None]
    if use_triton(backend, u, *others):
        from .triton.norm_gate import norm_gate_backward as fused

        return fused(dy, u, gate, weight, bias, mean, rstd, dgate_out)
    return norm_gate_backward_ref(dy, u, gate, weight, bias, mean, rstd, dgate_out)
