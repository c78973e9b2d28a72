"""GELU followed by a depthwise 3x3 convolution, the middle of HcNet's refinement layer."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .backend import needs_gradient, use_triton


def gelu_dwconv_ref(x: Tensor, weight: Tensor) -> Tensor:
    """:func:`gelu_dwconv` in plain torch."""
    return F.conv2d(F.gelu(x), weight, padding=1, groups=x.shape[1])


def gelu_dwconv(x: Tensor, weight: Tensor, backend: str = 'auto') -> Tensor:
    """y = DWConv3x3(GELU(x)), with zeros around the map (HcNet, refinement approximation layer).

    GELU is x Φ(x) with the error function, not the form with tanh; the kernel's is off by at most
    2.8e-7 in float32 and, before it is rounded, by 1.9e-5 in 16 bits. For the backward pass the
    kernel keeps ``x`` only, plain torch also GELU(x).

    Args:
        x (Tensor): (B, C, H, W), floating point.
        weight (Tensor): (C, 1, 3, 3).
        backend (str): 'auto', 'triton' or 'torch'; see :func:`~mmhcnet.ops.backend.use_triton`.

    Returns:
        Tensor: (B, C, H, W), dtype of ``x``.

    Raises:
        ValueError: ``weight`` is not (C, 1, 3, 3).
    """
    _check_shapes(x, weight, None)
    if needs_gradient(x, weight) and use_triton(backend, x, weight):
        return _GeluDwconv.apply(x, weight)  # pyright: ignore[reportReturnType]
    return gelu_dwconv_forward(x, weight, backend=backend)


class _GeluDwconv(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor) -> Tensor:
        return gelu_dwconv_forward(x, weight, backend='triton')

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, dy: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        dx, dweight, _ = gelu_dwconv_backward(dy, x, weight, backend='triton')
        return dx, dweight.to(weight.dtype)


def _check_shapes(p: Tensor, weight: Tensor, scale: Tensor | None) -> None:
    if weight.shape != (p.shape[1], 1, 3, 3):
        raise ValueError(
            f'weight must be (C, 1, 3, 3) = ({p.shape[1]}, 1, 3, 3) for x of '
            f'{tuple(p.shape)}, got {tuple(weight.shape)}'
        )
    if scale is not None and scale.shape != p.shape[:1]:
        raise ValueError(f'scale must be (B,) = ({p.shape[0]},), got {tuple(scale.shape)}')


def _gelu(p: Tensor) -> Tensor:
    # Elementwise functions are fastest on a tensor that is contiguous as it stands.
    return F.gelu(p.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def gelu_dwconv_forward_ref(p: Tensor, weight: Tensor, scale: Tensor | None = None) -> Tensor:
    """:func:`gelu_dwconv_forward` in plain torch."""
    g = F.conv2d(_gelu(p), weight, padding=1, groups=weight.shape[0])
    return g if scale is None else g.mul_(scale.view(-1, 1, 1, 1))


def gelu_dwconv_forward(
    p: Tensor, weight: Tensor, scale: Tensor | None = None, backend: str = 'auto'
) -> Tensor:
    """g = s DWConv3x3(GELU(p)): :func:`gelu_dwconv`, and a factor s for every sample.

    The factor is that of stochastic depth. The kernel records no autograd: this is a piece of a
    function with a backward of its own.

    Args:
        p (Tensor): (B, C, H, W), floating point.
        weight (Tensor): (C, 1, 3, 3).
        scale (Tensor, optional): s, (B,).
        backend (str): See :func:`gelu_dwconv`.

    Returns:
        Tensor: (B, C, H, W), dtype of ``p``.

    Raises:
        ValueError: ``weight`` is not (C, 1, 3, 3), or ``scale`` not (B,).
    """
    _check_shapes(p, weight, scale)
    if use_triton(backend, p, weight, *(() if scale is None else (scale,))):
        from .triton.gelu_dwconv import gelu_dwconv_forward as fused

        return fused(p, weight, scale)
    return gelu_dwconv_forward_ref(p, weight, scale)


def gelu_dwconv_backward_ref(
    dg: Tensor, p: Tensor, weight: Tensor, scale: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`gelu_dwconv_backward` in plain torch."""
    working = torch.promote_types(p.dtype, torch.float32)
    if scale is not None:
        dg = dg * scale.view(-1, 1, 1, 1).to(dg.dtype)
    dh, dweight, _ = torch.ops.aten.convolution_backward(
        dg,
        _gelu(p),
        weight.to(p.dtype),
        None,
        [1, 1],
        [1, 1],
        [1, 1],
        False,
        [0, 0],
        p.shape[1],
        [True, True, False],
    )
    dp = torch.ops.aten.gelu_backward(dh.permute(0, 2, 3, 1), p.permute(0, 2, 3, 1))
    return dp.permute(0, 3, 1, 2), dweight.to(working), dp.sum((0, 1, 2), dtype=working)


def gelu_dwconv_backward(
    dg: Tensor, p: Tensor, weight: Tensor, scale: Tensor | None = None, backend: str = 'auto'
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of :func:`gelu_dwconv_forward`, and of a bias that was added to p.

    Sums are in float32 (float64 for float64); the bias's is of dp before it is rounded to the
    dtype of ``p`` in the kernel, after in plain torch. No autograd is recorded by the kernel.

    Args:
        dg (Tensor): (B, C, H, W).
        p (Tensor): (B, C, H, W).
        weight (Tensor): (C, 1, 3, 3).
        scale (Tensor, optional): s, (B,).
        backend (str): See :func:`gelu_dwconv`.

    Returns:
        tuple[Tensor, Tensor, Tensor]: dp (B, C, H, W) in the dtype of ``p``; dweight
        (C, 1, 3, 3); dbias (C,) = Σ_bij dp[b,c,i,j].

    Raises:
        ValueError: ``weight`` is not (C, 1, 3, 3), or ``scale`` not (B,).
    """
    _check_shapes(p, weight, scale)
    if use_triton(backend, p, weight, dg, *(() if scale is None else (scale,))):
        from .triton.gelu_dwconv import gelu_dwconv_backward as fused

        return fused(dg, p, weight, scale)
    return gelu_dwconv_backward_ref(dg, p, weight, scale)
