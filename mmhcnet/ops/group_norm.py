"""GroupNorm with one group: every sample is normalised over all of its channels and pixels."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .backend import check_offset, needs_gradient, use_triton


def group_norm_1_ref(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """:func:`group_norm_1` in plain torch."""
    return F.group_norm(x, 1, weight, bias, eps)


def group_norm_1(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5, backend: str = 'auto'
) -> Tensor:
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

    Raises:
        ValueError: ``weight`` or ``bias`` is not (C,).
    """
    _check_affine(x, weight, bias)
    if not use_triton(backend, x, weight, bias):
        return group_norm_1_ref(x, weight, bias, eps)
    if needs_gradient(x, weight, bias):
        return _GroupNorm1.apply(x, weight, bias, eps)[0]  # pyright: ignore[reportOptionalSubscript]
    return group_norm_1_forward(x, weight, bias, eps, backend=backend)[0]


class _GroupNorm1(torch.autograd.Function):
    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        return group_norm_1_forward(x, weight, bias, eps, backend='triton')

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        x, weight, bias, _ = inputs
        _, mean, rstd = output
        ctx.mark_non_differentiable(mean, rstd)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight, mean, rstd)
        ctx.bias_dtype = bias.dtype

    @staticmethod
    def backward(ctx, dy: Tensor, dmean: None, drstd: None) -> tuple[Tensor | None, ...]:
        x, weight, mean, rstd = ctx.saved_tensors
        dx, dweight, dbias = group_norm_1_backward(dy, x, weight, mean, rstd, backend='triton')
        return dx, dweight.to(weight.dtype), dbias.to(ctx.bias_dtype), None


def _check_affine(x: Tensor, weight: Tensor, bias: Tensor) -> None:
    if not weight.shape == bias.shape == x.shape[1:2]:
        raise ValueError(
            f'weight and bias must be (C,) = ({x.shape[1]},) for x of '
            f'{tuple(x.shape)}, got {tuple(weight.shape)} and {tuple(bias.shape)}'
        )


def _dense(x: Tensor) -> Tensor:
    # What aten's norm takes without reading past it: on a CPU either layout, elsewhere only one.
    layout = (
        torch.channels_last
        if not x.is_cuda and x.is_contiguous(memory_format=torch.channels_last)
        else torch.contiguous_format
    )
    return x.contiguous(memory_format=layout)


def group_norm_1_forward_ref(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, offset: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`group_norm_1_forward` in plain torch."""
    if offset is not None:
        x = x - offset[:, :, None, None].to(x.dtype)
    batch, channels, height, width = x.shape
    if x.is_cuda:
        weight, bias = weight.to(x.dtype), bias.to(x.dtype)
    y, mean, rstd = torch.ops.aten.native_group_norm(
        _dense(x), weight, bias, batch, channels, height * width, 1, eps
    )
    return y, mean.view(batch), rstd.view(batch)


def group_norm_1_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    offset: Tensor | None = None,
    backend: str = 'auto',
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`group_norm_1` of x - offset, with what the backward pass needs.

    The offset takes back what :func:`~mmhcnet.ops.stencil.heat_step_forward` has added. The
    kernel records no autograd: this is a piece of a function with a backward of its own.

    Args:
        x (Tensor): (B, C, H, W), floating point.
        weight (Tensor): (C,).
        bias (Tensor): (C,).
        eps (float): Added to the variance.
        offset (Tensor, optional): (B, C) or (1, C).
        backend (str): See :func:`group_norm_1`.

    Returns:
        tuple[Tensor, Tensor, Tensor]: y (B, C, H, W) in the dtype of ``x``; μ and
        1 / sqrt(σ² + eps), both (B,), in float32 from the kernel, as aten gives them otherwise.

    Raises:
        ValueError: ``weight`` or ``bias`` is not (C,), or ``offset`` of another shape.
    """
    _check_affine(x, weight, bias)
    check_offset(x, offset)
    if use_triton(backend, x, weight, bias, *(() if offset is None else (offset,))):
        from .triton.group_norm import group_norm_1_forward as fused

        return fused(x, weight, bias, eps, offset)
    return group_norm_1_forward_ref(x, weight, bias, eps, offset)


def group_norm_1_backward_ref(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    residual: Tensor | None = None,
    offset: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`group_norm_1_backward` in plain torch."""
    if offset is not None:
        x = x - offset[:, :, None, None].to(x.dtype)
    if x.is_cuda:
        weight = weight.to(x.dtype)
    batch, channels, height, width = x.shape
    x = _dense(x)
    layout = torch.contiguous_format if x.is_contiguous() else torch.channels_last
    dx, dweight, dbias = torch.ops.aten.native_group_norm_backward(
        dy.contiguous(memory_format=layout),
        x,
        mean.view(batch, 1),
        rstd.view(batch, 1),
        weight,
        batch,
        channels,
        height * width,
        1,
        [True, True, True],
    )
    working = torch.promote_types(x.dtype, torch.float32)
    # It has this dtype already, but torch's tracing takes it for that of the weight.
    dx = dx.to(x.dtype)
    return dx if residual is None else dx.add_(residual), dweight.to(working), dbias.to(working)


def group_norm_1_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    residual: Tensor | None = None,
    offset: Tensor | None = None,
    backend: str = 'auto',
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of :func:`group_norm_1_forward`, with the one that skips the norm added to dx.

    With x̂ the normalised x and means over (C, H, W)::

        dx = rstd (dy weight - mean(dy weight) - x̂ mean(dy weight x̂)) + residual

    Sums are in float32 (float64 for float64). No autograd is recorded by the kernel.

    Args:
        dy (Tensor): (B, C, H, W).
        x (Tensor): (B, C, H, W).
        weight (Tensor): (C,).
        mean (Tensor): (B,), of the forward.
        rstd (Tensor): (B,), of the forward.
        residual (Tensor, optional): (B, C, H, W), the gradient that reaches x by a skip
            connection.
        offset (Tensor, optional): (B, C) or (1, C), of the forward.
        backend (str): See :func:`group_norm_1`.

    Returns:
        tuple[Tensor, Tensor, Tensor]: dx (B, C, H, W) in the dtype of ``x``; dweight and dbias,
        both (C,).
    """
    _check_affine(x, weight, weight)
    check_offset(x, offset)
    others = [t for t in (weight, dy, residual, offset) if t is not None]
    if use_triton(backend, x, *others):
        from .triton.group_norm import group_norm_1_backward as fused

        return fused(dy, x, weight, mean, rstd, residual, offset)
    return group_norm_1_backward_ref(dy, x, weight, mean, rstd, residual, offset)
