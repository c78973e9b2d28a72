"""GELU and depthwise 3x3 convolution in one pass.

Forward: one read of x, one write of y, 4 bytes an element in 16 bits. Backward: one read of dy,
one of x, one write of dx, 6 bytes, with GELU and its derivative computed again from x. GELU costs
more instructions than the nine taps: it is evaluated once per pixel of a strip and its margins,
(COLUMNS + 2) / COLUMNS times an element in the forward, exactly once in the backward, where only
dy is needed on the margins.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import channels_last, empty_like, on_device, operator, wrap_triton
from .strip import load_row, place, store_row, strips

# In bfloat16 on compute capability 9.0, with 7 columns: the forward takes 168 registers a thread, 2
# more are spilled, and 24 instructions an element, the backward 234 and 43. So a multiprocessor
# runs 12 programs of the one and 8 of the other. Of a large GPU's 132, all together run 1584 and
# 1056: work for half as many again keeps those busy that end early, twice as many fill it twice.
_COLUMNS = (7, 8)
_PROGRAMS = 2304
_BACKWARD_COLUMNS = (7, 4)
_BACKWARD_PROGRAMS = 2048
# Less, and GELU of the two rows above and below would count for too much.
_LEAST_ROWS = 7


@triton.jit
def _tail(t, EXACT: tl.constexpr):
    """1 - Φ(t) for t >= 0, Φ the normal distribution function.

    2 to a polynomial fitted to log2(1 - Φ). The one of degree 8 makes GELU in float32 off by at
    most 2.8e-7 for |x| <= 12, where plain torch is by 3.8e-7, and its tail keeps four digits down
    to 1e-7. The one of degree 5, for fields in 16 bits, makes GELU off by at most 1.9e-5, and its
    tail by 1.3e-4 of itself up to t = 3, 1.7e-3 up to 5.5; float16 rounds by up to 4.9e-4 of a
    number, bfloat16 by 3.9e-3. Either takes a third or less of the instructions of the library's
    erf, with which the kernel would be bound by them.
    """
    if EXACT:
        p = t * -8.1683726e-07 + 1.4119111e-05
        p = p * t - 6.2555286e-05
        p = p * t - 4.3832336e-04
        p = p * t + 7.4512819e-03
        p = p * t - 5.2753828e-02
        p = p * t - 4.5912838e-01
        p = p * t - 1.1511142
        p = p * t - 0.9999998
    else:
        p = t * -0.00027948452 + 0.0054269508
        p = p * t - 0.046889056
        p = p * t - 0.46594983
        p = p * t - 1.1483206
        p = p * t - 1.0001835
    return tl.exp2(p)


@triton.jit
def _gelu_row(row, EXACT: tl.constexpr):
    values = ()
    for n in tl.static_range(len(row)):
        t = tl.abs(row[n])
        values = values + (tl.maximum(row[n], 0) - t * _tail(t, EXACT),)
    return values


@triton.jit
def _load_taps(w, scale, sample, c, C: tl.constexpr):
    """The nine taps of channels c, times the sample's scale."""
    taps = ()
    for t in tl.static_range(9):
        tap = tl.load(w + c * 9 + t, mask=c < C, other=0).to(tl.float32)
        if scale is not None:
            tap *= tl.load(scale + sample).to(tl.float32)
        taps = taps + (tap,)
    return taps


@triton.jit(do_not_specialize=['H', 'W', 'rows'])
def _forward(
    x,
    w,
    scale,
    y,
    H,
    W,
    rows,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    SAMPLES: tl.constexpr,
    COLUMNS: tl.constexpr,
    WHOLE: tl.constexpr,
):
    EXACT: tl.constexpr = x.dtype.element_ty == tl.float32
    sample, _, i0, j0, c = place(H, W, rows, C, BLOCK, SAMPLES, COLUMNS)
    x += sample * (H * W * C) + c
    y += sample * (H * W * C) + c
    w = _load_taps(w, scale, sample, c, C)
    stop = tl.minimum(i0 + rows + 1, H)
    # Row i of GELU(x) completes row i - 1 of y, and starts and continues two others.
    above = ()
    here = ()
    for _ in tl.static_range(COLUMNS):
        above = above + (tl.zeros((SAMPLES * BLOCK,), tl.float32),)
        here = here + (tl.zeros((SAMPLES * BLOCK,), tl.float32),)
    row = load_row(x, i0 - 1, j0 - 1, c, stop, W, C, COLUMNS + 2, 1, WHOLE)
    for i in range(i0 - 1, tl.minimum(i0 + rows, H) + 1):
        following = load_row(x, i + 1, j0 - 1, c, stop, W, C, COLUMNS + 2, 1, WHOLE)
        g = _gelu_row(row, EXACT)
        done = ()
        next_above = ()
        next_here = ()
        for n in tl.static_range(COLUMNS):
            done = done + (above[n] + w[6] * g[n] + w[7] * g[n + 1] + w[8] * g[n + 2],)
            next_above = next_above + (here[n] + w[3] * g[n] + w[4] * g[n + 1] + w[5] * g[n + 2],)
            next_here = next_here + (w[0] * g[n] + w[1] * g[n + 1] + w[2] * g[n + 2],)
        store_row(y, i - 1, j0, c, i > i0, W, C, done, WHOLE)
        above = next_above
        here = next_here
        row = following


@triton.jit(do_not_specialize=['H', 'W', 'rows'])
def _backward(
    dy,
    x,
    w,
    scale,
    dx,
    sums,
    H,
    W,
    rows,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    SAMPLES: tl.constexpr,
    COLUMNS: tl.constexpr,
    WHOLE: tl.constexpr,
):
    EXACT: tl.constexpr = x.dtype.element_ty == tl.float32
    sample, strip, i0, j0, c = place(H, W, rows, C, BLOCK, SAMPLES, COLUMNS)
    dy += sample * (H * W * C) + c
    x += sample * (H * W * C) + c
    dx += sample * (H * W * C) + c
    w = _load_taps(w, scale, sample, c, C)
    total = tl.zeros((SAMPLES * BLOCK,), tl.float32)
    tap_sums = ()
    for _ in tl.static_range(9):
        tap_sums = tap_sums + (total,)
    end = tl.minimum(i0 + rows, H)
    stop = tl.minimum(end + 1, H)
    up = load_row(dy, i0 - 1, j0 - 1, c, stop, W, C, COLUMNS + 2, 1, WHOLE)
    mid = load_row(dy, i0, j0 - 1, c, stop, W, C, COLUMNS + 2, 1, WHOLE)
    for i in range(i0, end):
        down = load_row(dy, i + 1, j0 - 1, c, stop, W, C, COLUMNS + 2, 1, WHOLE)
        centre = load_row(x, i, j0, c, stop, W, C, COLUMNS, 0, WHOLE)
        result = ()
        for n in tl.static_range(COLUMNS):
            v = centre[n]
            t = tl.abs(v)
            tail = _tail(t, EXACT)
            g = tl.maximum(v, 0) - t * tail
            # GELU' = Φ + v φ at v, one less that at -v.
            slope = tail - t * tl.exp2(v * v * -0.72134752 - 1.32574806)
            slope = tl.where(v > 0, 1 - slope, slope)
            # The outputs that took x[i, j] by tap 0, 1, ... 8.
            took = (
                down[n + 2],
                down[n + 1],
                down[n],
                mid[n + 2],
                mid[n + 1],
                mid[n],
                up[n + 2],
                up[n + 1],
                up[n],
            )
            d = w[0] * took[0]
            for k in tl.static_range(1, 9):
                d += w[k] * took[k]
            d *= slope
            result = result + (d,)
            if not WHOLE:
                d = tl.where(j0 + n < W, d, 0)
            total += d
            new_sums = ()
            for k in tl.static_range(9):
                new_sums = new_sums + (tap_sums[k] + g * took[k],)
            tap_sums = new_sums
        store_row(dx, i, j0, c, True, W, C, result, WHOLE)
        up = mid
        mid = down
    sums += strip * (10 * C) + c
    for k in tl.static_range(9):
        tap_sum = tap_sums[k]
        if scale is not None:
            tap_sum *= tl.load(scale + sample).to(tl.float32)
        tl.store(sums + k * C, tap_sum, mask=c < C)
    tl.store(sums + 9 * C, total, mask=c < C)


@operator('gelu_dwconv_forward')
def gelu_dwconv_forward(p: Tensor, weight: Tensor, scale: Tensor | None) -> Tensor:
    """:func:`mmhcnet.ops.gelu_dwconv_forward` as a fused kernel, channels last."""
    p = channels_last(p)
    g = empty_like(p, p.dtype)
    if p.numel() == 0:
        return g
    _, channels, height, width = p.shape
    cut = strips(p, _COLUMNS, _PROGRAMS, _LEAST_ROWS)
    with on_device(p):
        wrap_triton(_forward, p)[cut.grid](
            p,
            weight.contiguous(),
            scale,
            g,
            height,
            width,
            cut.rows,
            channels,
            *cut.layout,
            num_warps=1,
        )
    return g


@operator('gelu_dwconv_backward')
def _gelu_dwconv_backward(
    dg: Tensor, p: Tensor, weight: Tensor, scale: Tensor | None
) -> tuple[Tensor, Tensor]:
    """dp, and the sums over pixels: the gradients of the nine taps and of the bias, (10, C)."""
    dg, p = channels_last(dg), channels_last(p)
    dp = empty_like(p, p.dtype)
    batch, channels, height, width = p.shape
    if p.numel() == 0:
        return dp, p.new_zeros((10, channels), dtype=torch.float32)
    cut = strips(p, _BACKWARD_COLUMNS, _BACKWARD_PROGRAMS, _LEAST_ROWS)
    sums = p.new_empty((batch * cut.of_sample, 10, channels), dtype=torch.float32)
    with on_device(p):
        wrap_triton(_backward, p)[cut.grid](
            dg,
            p,
            weight.contiguous(),
            scale,
            dp,
            sums,
            height,
            width,
            cut.rows,
            channels,
            *cut.layout,
            num_warps=1,
        )
    return dp, sums.sum(0)


def gelu_dwconv_backward(
    dg: Tensor, p: Tensor, weight: Tensor, scale: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`mmhcnet.ops.gelu_dwconv_backward` as a fused kernel, channels last."""
    dp, sums = _gelu_dwconv_backward(dg, p, weight, scale)
    return dp, sums[:9].t().view(weight.shape), sums[9]
