"""The heat step and its gradients, a pass each, both stencils.

Forward: one read of z, one write of z', 4 bytes an element in 16 bits. Gradients of w and k: one
read of dz', one of z, 4 bytes. Gradient of z: one read of dz', one write of dz, 4 bytes. They are
apart because the rate k may depend on z: its gradient is needed before that of z can be written.

The gradients of w and k are combinations of S[b, c, n] = Σ_ij dz'[i, j] (z[neighbour n] - z[i, j]):
dw[c, n] = Σ_b k[b, c] S[b, c, n] and dk[b, c] = Σ_n w[c, n] S[b, c, n]; with the isotropic stencil
dk[b, c] = Σ_ij dz'[i, j] h[i, j].
"""
from typing import Optional, Tuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import channels_last, empty_like, on_device, operator, wrap_triton
from .strip import inside, load_row, place, store_row, strips

_COLUMNS = 7


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


@triton.jit
def _load_added(added, sample, a_sample, c, C: tl.constexpr):
    """What is added to every pixel of channels c."""
    if added is None:
        return 0.
    else:
        return tl.load(added + sample * a_sample + c, mask=c < C, other=0).to(tl.float32)


@triton.jit(do_not_specialize=['H', 'W', 'rows', 'k_sample', 'k_channel', 'a_sample'])
def _anisotropic_forward(z, w, k, added, out, H, W, rows, k_sample, k_channel, a_sample,
                         C: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr):
    sample, _, i0, j0, c = place(H, W, C, rows, BLOCK, COLUMNS)
    z += sample * (H * W * C)
    out += sample * (H * W * C)
    w = _load_weights(w, c, C)
    k = tl.load(k + sample * k_sample + c * k_channel, mask=c < C, other=0).to(tl.float32)
    added = _load_added(added, sample, a_sample, c, C)
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
            result = result + (here + k * flux + added, )
        store_row(out, i, j0, c, masks, W, C, result)
        up = _centre(mid, COLUMNS)
        mid = down


@triton.jit(do_not_specialize=['H', 'W', 'rows'])
def _anisotropic_sums(dout, z, sums, H, W, rows, C: tl.constexpr, BLOCK: tl.constexpr,
                      COLUMNS: tl.constexpr):
    sample, strip, i0, j0, c = place(H, W, C, rows, BLOCK, COLUMNS)
    dout += sample * (H * W * C)
    z += sample * (H * W * C)
    masks = inside(j0, c, W, C, COLUMNS)
    offsets = _nearest(j0 - 1, c, W, C, COLUMNS + 2)
    down_sum = tl.zeros((BLOCK, ), tl.float32)
    up_sum = down_sum
    right_sum = down_sum
    left_sum = down_sum
    up = _centre(_load_replicated(z, i0 - 1, offsets, c, H, W, C), COLUMNS)
    mid = _load_replicated(z, i0, offsets, c, H, W, C)
    for i in range(i0, tl.minimum(i0 + rows, H)):
        down = _load_replicated(z, i + 1, offsets, c, H, W, C)
        d = load_row(dout, i, j0, c, masks, H, W, C)
        for n in tl.static_range(COLUMNS):
            here = mid[n + 1]
            down_sum += d[n] * (down[n + 1] - here)
            up_sum += d[n] * (up[n] - here)
            right_sum += d[n] * (mid[n + 2] - here)
            left_sum += d[n] * (mid[n] - here)
        up = _centre(mid, COLUMNS)
        mid = down
    sums += strip * (4 * C) + c
    tl.store(sums, down_sum, mask=c < C)
    tl.store(sums + C, up_sum, mask=c < C)
    tl.store(sums + 2 * C, right_sum, mask=c < C)
    tl.store(sums + 3 * C, left_sum, mask=c < C)


@triton.jit(do_not_specialize=['H', 'W', 'rows', 'k_sample', 'k_channel', 'a_sample'])
def _anisotropic_transposed(dout, w, k, added, dz, H, W, rows, k_sample, k_channel, a_sample,
                            C: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr):
    sample, _, i0, j0, c = place(H, W, C, rows, BLOCK, COLUMNS)
    dout += sample * (H * W * C)
    dz += sample * (H * W * C)
    w = _load_weights(w, c, C)
    k = tl.load(k + sample * k_sample + c * k_channel, mask=c < C, other=0).to(tl.float32)
    added = _load_added(added, sample, a_sample, c, C)
    masks = inside(j0, c, W, C, COLUMNS)
    wide = inside(j0 - 1, c, W, C, COLUMNS + 2)
    up = load_row(dout, i0 - 1, j0, c, masks, H, W, C)
    mid = load_row(dout, i0, j0 - 1, c, wide, H, W, C)
    for i in range(i0, tl.minimum(i0 + rows, H)):
        down = load_row(dout, i + 1, j0 - 1, c, wide, H, W, C)
        taken_in_column = tl.where(i < H - 1, w[0], 0) + tl.where(i > 0, w[1], 0) + w[3]
        result = ()
        for n in tl.static_range(COLUMNS):
            d = mid[n + 1]
            # What the neighbours took from this pixel, less what it took from them.
            given = w[0] * up[n] + w[1] * down[n + 1] + w[2] * mid[n] + w[3] * mid[n + 2]
            taken = taken_in_column + tl.where(j0 + n < W - 1, 1., 0.) * w[2]
            if n == 0:
                taken -= tl.where(j0 == 0, 1., 0.) * w[3]
            result = result + (d + k * (given - taken * d) + added, )
        store_row(dz, i, j0, c, masks, W, C, result)
        up = _centre(mid, COLUMNS)
        mid = down


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


@triton.jit(do_not_specialize=['H', 'W', 'rows', 'k_sample', 'k_channel', 'a_sample'])
def _isotropic_forward(z, k, added, out, H, W, rows, k_sample, k_channel, a_sample,
                       C: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr):
    sample, _, i0, j0, c = place(H, W, C, rows, BLOCK, COLUMNS)
    z += sample * (H * W * C)
    out += sample * (H * W * C)
    k = tl.load(k + sample * k_sample + c * k_channel, mask=c < C, other=0).to(tl.float32)
    added = _load_added(added, sample, a_sample, c, C)
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
            result = result + (here[n] + k * flux + added, )
        store_row(out, i, j0, c, masks, W, C, result)
        up = mid
        mid = down
        here = _centre(row, COLUMNS)


@triton.jit(do_not_specialize=['H', 'W', 'rows'])
def _isotropic_sums(dout, z, sums, H, W, rows, C: tl.constexpr, BLOCK: tl.constexpr,
                    COLUMNS: tl.constexpr):
    sample, strip, i0, j0, c = place(H, W, C, rows, BLOCK, COLUMNS)
    dout += sample * (H * W * C)
    z += sample * (H * W * C)
    masks = inside(j0, c, W, C, COLUMNS)
    wide = inside(j0 - 1, c, W, C, COLUMNS + 2)
    total = tl.zeros((BLOCK, ), tl.float32)
    up = _threes(load_row(z, i0 - 1, j0 - 1, c, wide, H, W, C))
    row = load_row(z, i0, j0 - 1, c, wide, H, W, C)
    mid = _threes(row)
    here = _centre(row, COLUMNS)
    for i in range(i0, tl.minimum(i0 + rows, H)):
        row = load_row(z, i + 1, j0 - 1, c, wide, H, W, C)
        down = _threes(row)
        d = load_row(dout, i, j0, c, masks, H, W, C)
        pixels, inverse = _window(i, j0, H, W, COLUMNS)
        for n in tl.static_range(COLUMNS):
            flux = (up[n] + mid[n] + down[n] - pixels[n] * here[n]) * inverse[n]
            total += d[n] * flux
        up = mid
        mid = down
        here = _centre(row, COLUMNS)
    tl.store(sums + strip * C + c, total, mask=c < C)


@triton.jit(do_not_specialize=['H', 'W', 'rows', 'k_sample', 'k_channel', 'a_sample'])
def _isotropic_transposed(dout, k, added, dz, H, W, rows, k_sample, k_channel, a_sample,
                          C: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr):
    sample, _, i0, j0, c = place(H, W, C, rows, BLOCK, COLUMNS)
    dout += sample * (H * W * C)
    dz += sample * (H * W * C)
    k = tl.load(k + sample * k_sample + c * k_channel, mask=c < C, other=0).to(tl.float32)
    added = _load_added(added, sample, a_sample, c, C)
    masks = inside(j0, c, W, C, COLUMNS)
    wide = inside(j0 - 1, c, W, C, COLUMNS + 2)
    # What each neighbour of a pixel gets of its dz', but for k.
    up = _threes(_shares(dout, i0 - 1, j0 - 1, c, wide, H, W, C))
    row = _shares(dout, i0, j0 - 1, c, wide, H, W, C)
    mid = _threes(row)
    here = _centre(row, COLUMNS)
    for i in range(i0, tl.minimum(i0 + rows, H)):
        row = _shares(dout, i + 1, j0 - 1, c, wide, H, W, C)
        down = _threes(row)
        pixels, inverse = _window(i, j0, H, W, COLUMNS)
        result = ()
        for n in tl.static_range(COLUMNS):
            flux = up[n] + mid[n] + down[n] - pixels[n] * here[n]
            whole = here[n] * tl.maximum(pixels[n] - 1, 1)
            result = result + (whole + k * flux + added, )
        store_row(dz, i, j0, c, masks, W, C, result)
        up = mid
        mid = down
        here = _centre(row, COLUMNS)


def _sizes(x: Tensor, k: Tensor, added: Optional[Tensor], rows: int, block: int) -> tuple:
    _, channels, height, width = x.shape
    a_sample = 0 if added is None or added.shape[0] == 1 else channels
    return (height, width, rows, k.stride(0), k.stride(1), a_sample, channels, block, _COLUMNS)


@operator('heat_step_forward')
def heat_step_forward(z: Tensor, w: Optional[Tensor], k: Tensor,
                      offset: Optional[Tensor]) -> Tensor:
    """:func:`mmhcnet.ops.heat_step_forward` as a fused kernel, channels last."""
    z = channels_last(z)
    out = empty_like(z, torch.result_type(z, k))
    if z.numel() == 0:
        return out
    k = k.expand(z.shape[0], z.shape[1], 1, 1)
    offset = None if offset is None else offset.contiguous()
    grid, _, rows, block = strips(z, _COLUMNS)
    sizes = _sizes(z, k, offset, rows, block)
    with on_device(z):
        if w is None:
            wrap_triton(_isotropic_forward, z)[grid](z, k, offset, out, *sizes, num_warps=1)
        else:
            wrap_triton(_anisotropic_forward, z)[grid](z, w.contiguous(), k, offset, out, *sizes,
                                                       num_warps=1)
    return out


@operator('heat_step_sums')
def _heat_step_sums(dout: Tensor, z: Tensor, w: Optional[Tensor],
                    k: Tensor) -> Tuple[Tensor, Tensor]:
    """dk (B, C), and dw (C, 4), or (C, 0) without w."""
    dout, z = channels_last(dout), channels_last(z)
    batch, channels, height, width = z.shape
    terms = 1 if w is None else 4
    if z.numel() == 0:
        return tuple(z.new_zeros(shape, dtype=torch.float32)
                     for shape in ((batch, channels), (channels, 0 if w is None else 4)))
    grid, partial, rows, block = strips(z, _COLUMNS)
    sums = z.new_empty((partial, terms, channels), dtype=torch.float32)
    sizes = (height, width, rows, channels, block, _COLUMNS)
    with on_device(z):
        if w is None:
            wrap_triton(_isotropic_sums, z)[grid](dout, z, sums, *sizes, num_warps=1)
        else:
            wrap_triton(_anisotropic_sums, z)[grid](dout, z, sums, *sizes, num_warps=1)
    sums = sums.view(batch, partial // batch, terms, channels).sum(1)
    if w is None:
        return sums.view(batch, channels), sums.new_empty((channels, 0))
    return (sums * w.t()).sum(1), (sums * k.view(batch, 1, channels)).sum(0).t().contiguous()


def heat_step_sums(dout: Tensor, z: Tensor, w: Optional[Tensor],
                   k: Tensor) -> Tuple[Tensor, Optional[Tensor]]:
    """:func:`mmhcnet.ops.heat_step_sums` as a fused kernel."""
    dk, dw = _heat_step_sums(dout, z, w, k)
    return dk[:, :, None, None], None if w is None else dw


@operator('heat_step_transposed')
def heat_step_transposed(dout: Tensor, w: Optional[Tensor], k: Tensor,
                         mean_grad: Optional[Tensor]) -> Tensor:
    """:func:`mmhcnet.ops.heat_step_transposed` as a fused kernel, channels last."""
    dout = channels_last(dout)
    dz = empty_like(dout, dout.dtype)
    if dout.numel() == 0:
        return dz
    k = k.expand(dout.shape[0], dout.shape[1], 1, 1)
    mean_grad = None if mean_grad is None else mean_grad.contiguous()
    grid, _, rows, block = strips(dout, _COLUMNS)
    sizes = _sizes(dout, k, mean_grad, rows, block)
    with on_device(dout):
        if w is None:
            wrap_triton(_isotropic_transposed, dout)[grid](dout, k, mean_grad, dz, *sizes,
                                                           num_warps=1)
        else:
            wrap_triton(_anisotropic_transposed, dout)[grid](dout, w.contiguous(), k, mean_grad,
                                                             dz, *sizes, num_warps=1)
    return dz
