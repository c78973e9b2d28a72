"""GELU and depthwise 3x3 convolution in one pass.

Forward: one read of x, one write of y, 4 bytes an element in 16 bits. Backward: one read of dy,
one of x, one write of dx, 6 bytes, with GELU and its derivative computed again from x. GELU costs
more instructions than the nine taps: it is evaluated once per pixel of a strip and its margins,
(COLUMNS + 2) / COLUMNS times an element in the forward, exactly once in the backward, where only
dy is needed on the margins.
"""
from typing import Tuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import channels_last, empty_like, on_device
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
def _load_taps(w, c, C: tl.constexpr):
    taps = ()
    for t in tl.static_range(9):
        taps = taps + (tl.load(w + c * 9 + t, mask=c < C, other=0).to(tl.float32), )
    return taps


@triton.jit(do_not_specialize=['H', 'W', 'rows'])
def _forward(x, w, y, H, W, rows, C: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr):
    sample, _, i0, j0, c = place(H, W, C, rows, BLOCK, COLUMNS)
    x += sample * (H * W * C)
    y += sample * (H * W * C)
    w = _load_taps(w, c, C)
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
def _backward(dy, x, w, dx, dw, H, W, rows, C: tl.constexpr, BLOCK: tl.constexpr,
              COLUMNS: tl.constexpr):
    sample, strip, i0, j0, c = place(H, W, C, rows, BLOCK, COLUMNS)
    dy += sample * (H * W * C)
    x += sample * (H * W * C)
    dx += sample * (H * W * C)
    w = _load_taps(w, c, C)
    sums = ()
    for _ in tl.static_range(9):
        sums = sums + (tl.zeros((BLOCK, ), tl.float32), )
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
            total = w[0] * took[0]
            for t in tl.static_range(1, 9):
                total += w[t] * took[t]
            result = result + (slope * total, )
            new_sums = ()
            for t in tl.static_range(9):
                new_sums = new_sums + (sums[t] + v * cdf * took[t], )
            sums = new_sums
        store_row(dx, i, j0, c, masks, W, C, result)
        up = mid
        mid = down
    dw += strip * (9 * C)
    for t in tl.static_range(9):
        tl.store(dw + t * C + c, sums[t], mask=c < C)


@torch.library.custom_op('mmhcnet::gelu_dwconv', mutates_args=())
def _gelu_dwconv(x: Tensor, weight: Tensor) -> Tensor:
    x = channels_last(x)
    y = empty_like(x, x.dtype)
    if x.numel() == 0:
        return y
    _, channels, height, width = x.shape
    grid, _, rows, block = strips(x, _COLUMNS)
    with on_device(x):
        _forward[grid](x, weight.contiguous(), y, height, width, rows, channels, block, _COLUMNS,
                       num_warps=1)
    return y


@_gelu_dwconv.register_fake
def _(x, weight):
    return empty_like(x, x.dtype)


@torch.library.custom_op('mmhcnet::gelu_dwconv_backward', mutates_args=())
def _gelu_dwconv_backward(dy: Tensor, x: Tensor, weight: Tensor) -> Tuple[Tensor, Tensor]:
    dy, x = channels_last(dy), channels_last(x)
    dx = empty_like(x, x.dtype)
    if x.numel() == 0:
        return dx, weight.new_zeros(weight.shape)
    _, channels, height, width = x.shape
    grid, partial, rows, block = strips(x, _COLUMNS)
    dw = x.new_empty((partial, 9, channels), dtype=torch.float32)
    with on_device(x):
        _backward[grid](dy, x, weight.contiguous(), dx, dw, height, width, rows, channels, block,
                        _COLUMNS, num_warps=1)
    return dx, dw.sum(0).t().to(weight.dtype).contiguous().view(weight.shape)


@_gelu_dwconv_backward.register_fake
def _(dy, x, weight):
    return empty_like(x, x.dtype), weight.new_empty(weight.shape)


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _gradients(ctx, dy):
    return torch.ops.mmhcnet.gelu_dwconv_backward(dy, *ctx.saved_tensors)


_gelu_dwconv.register_autograd(_gradients, setup_context=_save)


def gelu_dwconv(x: Tensor, weight: Tensor) -> Tensor:
    """:func:`mmhcnet.ops.gelu_dwconv` as a fused kernel, channels last."""
    return _gelu_dwconv(x, weight)
