"""GELU and depthwise 3x3 convolution in one pass.

Forward: one read of x, one write of y, 4 bytes an element in 16 bits. Backward: one read of dy,
one of x, one write of dx, 6 bytes, with GELU and its derivative computed again from x. GELU costs
more instructions than the nine taps: it is evaluated once per pixel of a strip and its margins,
(COLUMNS + 2) / COLUMNS times an element in the forward, exactly once in the backward, where only
dy is needed on the margins.
"""
from typing import Optional, Tuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import channels_last, empty_like, on_device, operator, wrap_triton
from .strip import inside, load_row, place, store_row, strips

# On compute capability 9.0 in bfloat16 72 registers a thread and 31 instructions an element for
# the forward, 155 and 47 for the backward.
_COLUMNS = 7


@triton.jit
def _tail(t):
    """1 - Φ(t) for t >= 0, Φ the normal distribution function.

    2 to a polynomial fitted to log2(1 - Φ). With it GELU in float32 is off by at most 2.8e-7 for
    |x| <= 12, plain torch by 3.8e-7, and its tail keeps four digits down to 1e-7. It takes a
    third of the instructions of the library's erf, with which the kernel would be bound by them.
    """
    p = t * -8.1683726e-07 + 1.4119111e-05
    p = p * t - 6.2555286e-05
    p = p * t - 4.3832336e-04
    p = p * t + 7.4512819e-03
    p = p * t - 5.2753828e-02
    p = p * t - 4.5912838e-01
    p = p * t - 1.1511142
    p = p * t - 0.9999998
    return tl.exp2(p)


@triton.jit
def _load_taps(w, scale, sample, c, C: tl.constexpr):
    """The nine taps of channels c, times the sample's scale."""
    factor = 1.
    if scale is not None:
        factor = tl.load(scale + sample).to(tl.float32)
    taps = ()
    for t in tl.static_range(9):
        taps = taps + (tl.load(w + c * 9 + t, mask=c < C, other=0).to(tl.float32) * factor, )
    return taps


@triton.jit(do_not_specialize=['H', 'W', 'rows'])
def _forward(x, w, scale, y, H, W, rows, C: tl.constexpr, BLOCK: tl.constexpr,
             COLUMNS: tl.constexpr):
    sample, _, i0, j0, c = place(H, W, C, rows, BLOCK, COLUMNS)
    x += sample * (H * W * C)
    y += sample * (H * W * C)
    w = _load_taps(w, scale, sample, c, C)
    # Row i of GELU(x) completes row i - 1 of y, and starts and continues two others.
    above = ()
    here = ()
    for _ in tl.static_range(COLUMNS):
        above = above + (tl.zeros((BLOCK, ), tl.float32), )
        here = here + (tl.zeros((BLOCK, ), tl.float32), )
    masks = inside(j0, c, W, C, COLUMNS)
    wide = inside(j0 - 1, c, W, C, COLUMNS + 2)
    for i in range(i0 - 1, tl.minimum(i0 + rows, H) + 1):
        v = load_row(x, i, j0 - 1, c, wide, H, W, C)
        g = ()
        for n in tl.static_range(COLUMNS + 2):
            g = g + (tl.maximum(v[n], 0) - tl.abs(v[n]) * _tail(tl.abs(v[n])), )
        done = ()
        next_above = ()
        next_here = ()
        kept = ()
        for n in tl.static_range(COLUMNS):
            done = done + (above[n] + w[6] * g[n] + w[7] * g[n + 1] + w[8] * g[n + 2], )
            next_above = next_above + (
                here[n] + w[3] * g[n] + w[4] * g[n + 1] + w[5] * g[n + 2], )
            kept = kept + (masks[n] & (i > i0), )
            next_here = next_here + (w[0] * g[n] + w[1] * g[n + 1] + w[2] * g[n + 2], )
        above = next_above
        here = next_here
        store_row(y, i - 1, j0, c, kept, W, C, done)


@triton.jit(do_not_specialize=['H', 'W', 'rows'])
def _backward(dy, x, w, scale, dx, sums, H, W, rows, C: tl.constexpr, BLOCK: tl.constexpr,
              COLUMNS: tl.constexpr):
    sample, strip, i0, j0, c = place(H, W, C, rows, BLOCK, COLUMNS)
    dy += sample * (H * W * C)
    x += sample * (H * W * C)
    dx += sample * (H * W * C)
    w = _load_taps(w, scale, sample, c, C)
    tap_sums = ()
    for _ in tl.static_range(9):
        tap_sums = tap_sums + (tl.zeros((BLOCK, ), tl.float32), )
    total = tl.zeros((BLOCK, ), tl.float32)
    masks = inside(j0, c, W, C, COLUMNS)
    wide = inside(j0 - 1, c, W, C, COLUMNS + 2)
    up = load_row(dy, i0 - 1, j0 - 1, c, wide, H, W, C)
    mid = load_row(dy, i0, j0 - 1, c, wide, H, W, C)
    for i in range(i0, tl.minimum(i0 + rows, H)):
        down = load_row(dy, i + 1, j0 - 1, c, wide, H, W, C)
        centre = load_row(x, i, j0, c, masks, H, W, C)
        result = ()
        for n in tl.static_range(COLUMNS):
            v = centre[n]
            tail = _tail(tl.abs(v))
            cdf = tl.where(v > 0, 1 - tail, tail)
            slope = cdf + v * tl.exp2(v * v * -0.72134752 - 1.32574806)
            # The outputs that took x[i, j] by tap 0, 1, ... 8.
            took = (down[n + 2], down[n + 1], down[n], mid[n + 2], mid[n + 1], mid[n], up[n + 2],
                    up[n + 1], up[n])
            d = w[0] * took[0]
            for t in tl.static_range(1, 9):
                d += w[t] * took[t]
            d *= slope
            total += tl.where(masks[n], d, 0)
            result = result + (d, )
            new_sums = ()
            for t in tl.static_range(9):
                new_sums = new_sums + (tap_sums[t] + v * cdf * took[t], )
            tap_sums = new_sums
        store_row(dx, i, j0, c, masks, W, C, result)
        up = mid
        mid = down
    factor = 1.
    if scale is not None:
        factor = tl.load(scale + sample).to(tl.float32)
    sums += strip * (10 * C) + c
    for t in tl.static_range(9):
        tl.store(sums + t * C, tap_sums[t] * factor, mask=c < C)
    tl.store(sums + 9 * C, total, mask=c < C)


@operator('gelu_dwconv_forward')
def gelu_dwconv_forward(p: Tensor, weight: Tensor, scale: Optional[Tensor]) -> Tensor:
    """:func:`mmhcnet.ops.gelu_dwconv_forward` as a fused kernel, channels last."""
    p = channels_last(p)
    g = empty_like(p, p.dtype)
    if p.numel() == 0:
        return g
    _, channels, height, width = p.shape
    grid, _, rows, block = strips(p, _COLUMNS)
    with on_device(p):
        wrap_triton(_forward, p)[grid](p, weight.contiguous(), scale, g, height, width, rows,
                                       channels, block, _COLUMNS, num_warps=1)
    return g


@operator('gelu_dwconv_backward')
def _gelu_dwconv_backward(dg: Tensor, p: Tensor, weight: Tensor,
                          scale: Optional[Tensor]) -> Tuple[Tensor, Tensor]:
    """dp, and the sums over pixels: the gradients of the nine taps and of the bias, (10, C)."""
    dg, p = channels_last(dg), channels_last(p)
    dp = empty_like(p, p.dtype)
    _, channels, height, width = p.shape
    if p.numel() == 0:
        return dp, p.new_zeros((10, channels), dtype=torch.float32)
    grid, partial, rows, block = strips(p, _COLUMNS)
    sums = p.new_empty((partial, 10, channels), dtype=torch.float32)
    with on_device(p):
        wrap_triton(_backward, p)[grid](dg, p, weight.contiguous(), scale, dp, sums, height, width,
                                        rows, channels, block, _COLUMNS, num_warps=1)
    return dp, sums.sum(0)


def gelu_dwconv_backward(dg: Tensor, p: Tensor, weight: Tensor,
                         scale: Optional[Tensor]) -> Tuple[Tensor, Tensor, Tensor]:
    """:func:`mmhcnet.ops.gelu_dwconv_backward` as a fused kernel, channels last."""
    dp, sums = _gelu_dwconv_backward(dg, p, weight, scale)
    return dp, sums[:9].t().view(weight.shape), sums[9]
