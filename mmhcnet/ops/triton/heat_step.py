"""The heat step in one pass, both stencils.

Forward: one read of z, one write of z', 4 bytes an element in 16 bits. Backward: one read of dz',
one of z, one write of dz, 6 bytes. The gradients of w and k are combinations of
S[b, c, n] = Σ_ij dz'[i, j] (z[neighbour n] - z[i, j]): dw[c, n] = Σ_b k[b, c] S[b, c, n] and
dk[b, c] = Σ_n w[c, n] S[b, c, n]; with the isotropic stencil dk[b, c] = Σ_ij dz'[i, j] h[i, j].
"""
from typing import Optional, Tuple, Union

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import channels_last, empty_like, on_device
from .strip import inside, load_row, place, store_row, strips

# The backward holds rows of two fields: with 4 columns some 100 registers a thread.
_COLUMNS = 7
_BACKWARD_COLUMNS = 4


@triton.jit
def _centre(row, COLUMNS: tl.constexpr):
    centre = ()
    for n in tl.static_range(COLUMNS):
        centre = centre + (row[n + 1], )
    return centre


@triton.jit
def _nearest(j, c, W, C: tl.constexpr, N: tl.constexpr):
    """Offsets of channels c of columns j, ... j + N - 1, of the nearest column outside the map."""
    offsets = ()
    for n in tl.static_range(N):
        offsets = offsets + (tl.minimum(tl.maximum(j + n, 0), W - 1) * C + c, )
    return offsets


@triton.jit
def _load_replicated(z, i, offsets, c, H, W, C: tl.constexpr):
    """As load_row, but with the nearest pixel outside the map."""
    z += tl.minimum(tl.maximum(i, 0), H - 1) * W * C
    row = ()
    for n in tl.static_range(len(offsets)):
        row = row + (tl.load(z + offsets[n], mask=c < C, other=0).to(tl.float32), )
    return row


@triton.jit
def _load_weights(w, c, C: tl.constexpr):
    weights = ()
    for n in tl.static_range(4):
        weights = weights + (tl.load(w + c * 4 + n, mask=c < C, other=0).to(tl.float32), )
    return weights


@triton.jit(do_not_specialize=['H', 'W', 'rows', 'k_sample', 'k_channel'])
def _anisotropic_forward(z, w, k, out, H, W, rows, k_sample, k_channel, C: tl.constexpr,
                         BLOCK: tl.constexpr, COLUMNS: tl.constexpr):
    sample, _, i0, j0, c = place(H, W, C, rows, BLOCK, COLUMNS)
    z += sample * (H * W * C)
    out += sample * (H * W * C)
    w = _load_weights(w, c, C)
    k = tl.load(k + sample * k_sample + c * k_channel, mask=c < C, other=0).to(tl.float32)
    masks = inside(j0, c, W, C, COLUMNS)
    offsets = _nearest(j0 - 1, c, W, C, COLUMNS + 2)
    # Replicated pixels: no difference to a neighbour that is not there, no flux.
    up = _centre(_load_replicated(z, i0 - 1, offsets, c, H, W, C), COLUMNS)
    mid = _load_replicated(z, i0, offsets, c, H, W, C)
    for i in range(i0, tl.minimum(i0 + rows, H)):
        down = _load_replicated(z, i + 1, offsets, c, H, W, C)
        result = ()
        for n in tl.static_range(COLUMNS):
            here = mid[n + 1]
            flux = (w[0] * (down[n + 1] - here) + w[1] * (up[n] - here) +
                    w[2] * (mid[n + 2] - here) + w[3] * (mid[n] - here))
            result = result + (here + k * flux, )
        store_row(out, i, j0, c, masks, W, C, result)
        up = _centre(mid, COLUMNS)
        mid = down


@triton.jit(do_not_specialize=['H', 'W', 'rows', 'k_sample', 'k_channel'])
def _anisotropic_backward(dout, z, w, k, dz, sums, H, W, rows, k_sample, k_channel,
                          C: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr):
    sample, strip, i0, j0, c = place(H, W, C, rows, BLOCK, COLUMNS)
    dout += sample * (H * W * C)
    z += sample * (H * W * C)
    dz += sample * (H * W * C)
    w = _load_weights(w, c, C)
    k = tl.load(k + sample * k_sample + c * k_channel, mask=c < C, other=0).to(tl.float32)
    masks = inside(j0, c, W, C, COLUMNS)
    wide = inside(j0 - 1, c, W, C, COLUMNS + 2)
    offsets = _nearest(j0 - 1, c, W, C, COLUMNS + 2)
    zero = tl.zeros((BLOCK, ), tl.float32)
    down_sum = zero
    up_sum = zero
    right_sum = zero
    left_sum = zero
    up = _centre(_load_replicated(z, i0 - 1, offsets, c, H, W, C), COLUMNS)
    mid = _load_replicated(z, i0, offsets, c, H, W, C)
    d_up = load_row(dout, i0 - 1, j0, c, masks, H, W, C)
    d_mid = load_row(dout, i0, j0 - 1, c, wide, H, W, C)
    for i in range(i0, tl.minimum(i0 + rows, H)):
        down = _load_replicated(z, i + 1, offsets, c, H, W, C)
        d_down = load_row(dout, i + 1, j0 - 1, c, wide, H, W, C)
        taken_in_column = tl.where(i < H - 1, w[0], 0) + tl.where(i > 0, w[1], 0) + w[3]
        result = ()
        for n in tl.static_range(COLUMNS):
            here = mid[n + 1]
            d = d_mid[n + 1]
            down_sum += d * (down[n + 1] - here)
            up_sum += d * (up[n] - here)
            right_sum += d * (mid[n + 2] - here)
            left_sum += d * (mid[n] - here)
            # What the neighbours took from this pixel, less what it took from them.
            given = (w[0] * d_up[n] + w[1] * d_down[n + 1] + w[2] * d_mid[n] +
                     w[3] * d_mid[n + 2])
            taken = taken_in_column + tl.where(j0 + n < W - 1, 1., 0.) * w[2]
            if n == 0:
                taken -= tl.where(j0 == 0, 1., 0.) * w[3]
            flux = given - taken * d
            result = result + (d + k * flux, )
        store_row(dz, i, j0, c, masks, W, C, result)
        up = _centre(mid, COLUMNS)
        mid = down
        d_up = _centre(d_mid, COLUMNS)
        d_mid = d_down
    sums += strip * (4 * C) + c
    tl.store(sums, down_sum, mask=c < C)
    tl.store(sums + C, up_sum, mask=c < C)
    tl.store(sums + 2 * C, right_sum, mask=c < C)
    tl.store(sums + 3 * C, left_sum, mask=c < C)


@triton.jit
def _extent(i, N):
    """How many of i - 1, i and i + 1 are on an axis of N pixels."""
    return tl.where((i > 0) & (i < N - 1), 3, tl.minimum(N, 2))


@triton.jit
def _window(i, j, H, W, N: tl.constexpr):
    """For pixels (i, j), ... (i, j + N - 1): pixels in the 3x3 window, 1 / number of neighbours.

    Finite also for the pixel of a 1x1 map, which has no neighbour.
    """
    rows = _extent(i, H).to(tl.float32)
    wide = rows * 3
    narrow = rows * tl.minimum(W, 2)
    wide_inverse = 1 / tl.maximum(wide - 1, 1)
    narrow_inverse = 1 / tl.maximum(narrow - 1, 1)
    pixels = ()
    inverse = ()
    for n in tl.static_range(N):
        edge = (j + n <= 0) | (j + n >= W - 1)
        pixels = pixels + (tl.where(edge, narrow, wide), )
        inverse = inverse + (tl.where(edge, narrow_inverse, wide_inverse), )
    return pixels, inverse


@triton.jit
def _shares(d, i, j, c, masks, H, W, C: tl.constexpr):
    """d[i, j:j + len(masks)] over the number of neighbours of each pixel."""
    row = load_row(d, i, j, c, masks, H, W, C)
    _, inverse = _window(i, j, H, W, len(masks))
    shares = ()
    for n in tl.static_range(len(masks)):
        shares = shares + (row[n] * inverse[n], )
    return shares


@triton.jit
def _threes(row):
    """Sums of each pixel and its left and right neighbours."""
    sums = ()
    for n in tl.static_range(len(row) - 2):
        sums = sums + (row[n] + row[n + 1] + row[n + 2], )
    return sums


@triton.jit(do_not_specialize=['H', 'W', 'rows', 'k_sample', 'k_channel'])
def _isotropic_forward(z, k, out, H, W, rows, k_sample, k_channel, C: tl.constexpr,
                       BLOCK: tl.constexpr, COLUMNS: tl.constexpr):
    sample, _, i0, j0, c = place(H, W, C, rows, BLOCK, COLUMNS)
    z += sample * (H * W * C)
    out += sample * (H * W * C)
    k = tl.load(k + sample * k_sample + c * k_channel, mask=c < C, other=0).to(tl.float32)
    masks = inside(j0, c, W, C, COLUMNS)
    wide = inside(j0 - 1, c, W, C, COLUMNS + 2)
    up = _threes(load_row(z, i0 - 1, j0 - 1, c, wide, H, W, C))
    row = load_row(z, i0, j0 - 1, c, wide, H, W, C)
    mid = _threes(row)
    here = _centre(row, COLUMNS)
    for i in range(i0, tl.minimum(i0 + rows, H)):
        row = load_row(z, i + 1, j0 - 1, c, wide, H, W, C)
        down = _threes(row)
        pixels, inverse = _window(i, j0, H, W, COLUMNS)
        result = ()
        for n in tl.static_range(COLUMNS):
            flux = (up[n] + mid[n] + down[n] - pixels[n] * here[n]) * inverse[n]
            result = result + (here[n] + k * flux, )
        store_row(out, i, j0, c, masks, W, C, result)
        up = mid
        mid = down
        here = _centre(row, COLUMNS)


@triton.jit(do_not_specialize=['H', 'W', 'rows', 'k_sample', 'k_channel'])
def _isotropic_backward(dout, z, k, dz, sums, H, W, rows, k_sample, k_channel, C: tl.constexpr,
                        BLOCK: tl.constexpr, COLUMNS: tl.constexpr):
    sample, strip, i0, j0, c = place(H, W, C, rows, BLOCK, COLUMNS)
    dout += sample * (H * W * C)
    z += sample * (H * W * C)
    dz += sample * (H * W * C)
    k = tl.load(k + sample * k_sample + c * k_channel, mask=c < C, other=0).to(tl.float32)
    masks = inside(j0, c, W, C, COLUMNS)
    wide = inside(j0 - 1, c, W, C, COLUMNS + 2)
    total = tl.zeros((BLOCK, ), tl.float32)
    up = _threes(load_row(z, i0 - 1, j0 - 1, c, wide, H, W, C))
    row = load_row(z, i0, j0 - 1, c, wide, H, W, C)
    mid = _threes(row)
    here = _centre(row, COLUMNS)
    # What each neighbour of a pixel gets of its dz', but for k.
    d = _shares(dout, i0 - 1, j0 - 1, c, wide, H, W, C)
    d_up = _threes(d)
    d = _shares(dout, i0, j0 - 1, c, wide, H, W, C)
    d_mid = _threes(d)
    d_here = _centre(d, COLUMNS)
    for i in range(i0, tl.minimum(i0 + rows, H)):
        row = load_row(z, i + 1, j0 - 1, c, wide, H, W, C)
        down = _threes(row)
        d = _shares(dout, i + 1, j0 - 1, c, wide, H, W, C)
        d_down = _threes(d)
        pixels, _ = _window(i, j0, H, W, COLUMNS)
        result = ()
        for n in tl.static_range(COLUMNS):
            total += d_here[n] * (up[n] + mid[n] + down[n] - pixels[n] * here[n])
            flux = d_up[n] + d_mid[n] + d_down[n] - pixels[n] * d_here[n]
            whole = d_here[n] * tl.maximum(pixels[n] - 1, 1)
            result = result + (whole + k * flux, )
        store_row(dz, i, j0, c, masks, W, C, result)
        up = mid
        mid = down
        here = _centre(row, COLUMNS)
        d_up = d_mid
        d_mid = d_down
        d_here = _centre(d, COLUMNS)
    tl.store(sums + strip * C + c, total, mask=c < C)


@torch.library.custom_op('mmhcnet::heat_step', mutates_args=())
def _heat_step(z: Tensor, w: Optional[Tensor], k: Tensor) -> Tensor:
    z = channels_last(z)
    out = empty_like(z, torch.result_type(z, k))
    if z.numel() == 0:
        return out
    batch, channels, height, width = z.shape
    k = k.expand(batch, channels, 1, 1)
    grid, _, rows, block = strips(z, _COLUMNS)
    sizes = (height, width, rows, k.stride(0), k.stride(1), channels, block, _COLUMNS)
    with on_device(z):
        if w is None:
            _isotropic_forward[grid](z, k, out, *sizes, num_warps=1)
        else:
            _anisotropic_forward[grid](z, w.contiguous(), k, out, *sizes, num_warps=1)
    return out


@_heat_step.register_fake
def _(z, w, k):
    return empty_like(z, torch.result_type(z, k))


@torch.library.custom_op('mmhcnet::heat_step_backward', mutates_args=())
def _heat_step_backward(dout: Tensor, z: Tensor, w: Optional[Tensor],
                        k: Tensor) -> Tuple[Tensor, Tensor]:
    """dz, and the sums S of the module's docstring: (B, 4, C), or (B, 1, C) of dz' h."""
    dout, z = channels_last(dout), channels_last(z)
    batch, channels, height, width = z.shape
    terms = 1 if w is None else 4
    dz = empty_like(z, z.dtype)
    if z.numel() == 0:
        return dz, z.new_zeros((batch, terms, channels), dtype=torch.float32)
    k = k.expand(batch, channels, 1, 1)
    grid, partial, rows, block = strips(z, _BACKWARD_COLUMNS)
    sums = z.new_empty((partial, terms, channels), dtype=torch.float32)
    sizes = (height, width, rows, k.stride(0), k.stride(1), channels, block, _BACKWARD_COLUMNS)
    with on_device(z):
        if w is None:
            _isotropic_backward[grid](dout, z, k, dz, sums, *sizes, num_warps=1)
        else:
            _anisotropic_backward[grid](dout, z, w.contiguous(), k, dz, sums, *sizes, num_warps=1)
    return dz, sums.view(batch, -1, terms, channels).sum(1)


@_heat_step_backward.register_fake
def _(dout, z, w, k):
    sums = z.new_empty((z.shape[0], 1 if w is None else 4, z.shape[1]), dtype=torch.float32)
    return empty_like(z, z.dtype), sums


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _gradients(ctx, dout):
    z, w, k = ctx.saved_tensors
    dz, sums = torch.ops.mmhcnet.heat_step_backward(dout, z, w, k)
    batch, terms, channels = sums.shape
    dw = dk = None
    if ctx.needs_input_grad[1]:
        rate = k.expand(batch, channels, 1, 1).reshape(batch, 1, channels)
        dw = (sums * rate).sum(0).t().to(w.dtype)
    if ctx.needs_input_grad[2]:
        dk = (sums if w is None else sums * w.t()).sum(1)
        dk = dk.view(batch, channels, 1, 1).sum_to_size(k.shape).to(k.dtype)
    return dz, dw, dk


_heat_step.register_autograd(_gradients, setup_context=_save)


def heat_step(z: Tensor, w: Optional[Tensor], k: Union[Tensor, float]) -> Tensor:
    """:func:`mmhcnet.ops.heat_step` as a fused kernel, channels last.

    Raises:
        ValueError: ``k`` does not broadcast to (B, C, 1, 1).
    """
    if not isinstance(k, Tensor):
        k = z.new_full((), k, dtype=torch.float32)
    shape = (z.shape[0], z.shape[1], 1, 1)
    if k.dim() > 4 or any(n not in (1, size) for n, size in zip(k.shape[::-1], shape[::-1])):
        raise ValueError(f'k must broadcast to (B, C, 1, 1) = {shape}, got {tuple(k.shape)}')
    return _heat_step(z, w, k)
