"""The heat step and its gradients, a pass each, both stencils.

Forward: one read of z, one write of z', 4 bytes an element in 16 bits. Gradients of w and k: one
read of dz', one of z, 4 bytes. Gradient of z: one read of dz', one write of dz, 4 bytes. They are
apart because the rate k may depend on z: its gradient is needed before that of z can be written.

The gradients of w and k are combinations of S[b, c, n] = Σ_ij dz'[i, j] (z[neighbour n] - z[i, j]):
dw[c, n] = Σ_b k[b, c] S[b, c, n] and dk[b, c] = Σ_n w[c, n] S[b, c, n]; with the isotropic stencil
dk[b, c] = Σ_ij dz'[i, j] h[i, j].
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import channels_last, empty_like, on_device, operator, wrap_triton
from .strip import Strips, load_row, place, store_row, strips

# In bfloat16 on compute capability 9.0, with the anisotropic stencil and 7 columns: 154 registers a
# thread and 11 instructions an element in the forward, 155 and 13 for the sums, 167 and 13 for the
# gradient of z, nothing spilled. So a multiprocessor runs 12 programs; 15 are asked for on 132.
_COLUMNS = (7, 8)
_PROGRAMS = 2048
_LEAST_ROWS = 4
# Strips of a sample that one program adds up.
_STRIPS = 64


@triton.jit
def _centre(row):
    centre = ()
    for n in tl.static_range(len(row) - 2):
        centre = centre + (row[n + 1],)
    return centre


@triton.jit
def _load_replicated(z, i, j, c, last, W, C: tl.constexpr, N: tl.constexpr, WHOLE: tl.constexpr):
    """As load_row with a margin of 1, but with the nearest pixel outside the map.

    Below row ``last`` it is a pixel of that row.
    """
    z += tl.minimum(tl.maximum(i, 0), last) * W * C
    inner = z + j * C
    row = ()
    for n in tl.static_range(N):
        if (not WHOLE or n == 0) or n == N - 1:  # In pairs, as in load_row.
            pixel = z + tl.minimum(tl.maximum(j + n, 0), W - 1) * C
        else:
            pixel = inner + n * C
        row = row + (tl.load(pixel, mask=c < C, other=0).to(tl.float32),)
    return row


@triton.jit
def _load_weights(w, k, c, C: tl.constexpr):
    """Of channels c: the four weights, times k."""
    weights = ()
    for n in tl.static_range(4):
        weights = weights + (tl.load(w + c * 4 + n, mask=c < C, other=0).to(tl.float32) * k,)
    return weights


@triton.jit
def _load_added(added, sample, a_sample, c, C: tl.constexpr):
    """What is added to every pixel of channels c."""
    if added is None:
        return 0.0
    else:
        return tl.load(added + sample * a_sample + c, mask=c < C, other=0).to(tl.float32)


@triton.jit(do_not_specialize=['H', 'W', 'rows', 'k_sample', 'k_channel', 'a_sample'])
def _anisotropic_forward(
    z,
    w,
    k,
    added,
    out,
    H,
    W,
    rows,
    k_sample,
    k_channel,
    a_sample,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    SAMPLES: tl.constexpr,
    COLUMNS: tl.constexpr,
    WHOLE: tl.constexpr,
):
    sample, _, i0, j0, c = place(H, W, rows, C, BLOCK, SAMPLES, COLUMNS)
    z += sample * (H * W * C) + c
    out += sample * (H * W * C) + c
    k = tl.load(k + sample * k_sample + c * k_channel, mask=c < C, other=0).to(tl.float32)
    w = _load_weights(w, k, c, C)
    rest = 1 - (w[0] + w[1] + w[2] + w[3])
    added = _load_added(added, sample, a_sample, c, C)
    end = tl.minimum(i0 + rows, H)
    last = tl.minimum(end, H - 1)
    # Replicated pixels: no difference to a neighbour that is not there, no flux.
    up = _centre(_load_replicated(z, i0 - 1, j0 - 1, c, last, W, C, COLUMNS + 2, WHOLE))
    mid = _load_replicated(z, i0, j0 - 1, c, last, W, C, COLUMNS + 2, WHOLE)
    down = _load_replicated(z, i0 + 1, j0 - 1, c, last, W, C, COLUMNS + 2, WHOLE)
    for i in range(i0, end):
        following = _load_replicated(z, i + 2, j0 - 1, c, last, W, C, COLUMNS + 2, WHOLE)
        result = ()
        for n in tl.static_range(COLUMNS):
            result = result + (
                added
                + rest * mid[n + 1]
                + w[0] * down[n + 1]
                + w[1] * up[n]
                + w[2] * mid[n + 2]
                + w[3] * mid[n],
            )
        store_row(out, i, j0, c, True, W, C, result, WHOLE)
        up = _centre(mid)
        mid = down
        down = following


@triton.jit(do_not_specialize=['H', 'W', 'rows'])
def _anisotropic_sums(
    dout,
    z,
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
    sample, strip, i0, j0, c = place(H, W, rows, C, BLOCK, SAMPLES, COLUMNS)
    dout += sample * (H * W * C) + c
    z += sample * (H * W * C) + c
    end = tl.minimum(i0 + rows, H)
    last = tl.minimum(end, H - 1)
    down_sum = tl.zeros((SAMPLES * BLOCK,), tl.float32)
    up_sum = down_sum
    right_sum = down_sum
    left_sum = down_sum
    mid = _load_replicated(z, i0 - 1, j0 - 1, c, last, W, C, COLUMNS + 2, WHOLE)
    down = _load_replicated(z, i0, j0 - 1, c, last, W, C, COLUMNS + 2, WHOLE)
    # Differences to the pixel below: also those of the row below to this one, but for the sign.
    steps = ()
    for n in tl.static_range(COLUMNS):
        steps = steps + (down[n + 1] - mid[n + 1],)
    mid = down
    for i in range(i0, end):
        down = _load_replicated(z, i + 1, j0 - 1, c, last, W, C, COLUMNS + 2, WHOLE)
        d = load_row(dout, i, j0, c, end, W, C, COLUMNS, 0, WHOLE)
        left = mid[1] - mid[0]
        next_steps = ()
        for n in tl.static_range(COLUMNS):
            right = mid[n + 2] - mid[n + 1]
            step = down[n + 1] - mid[n + 1]
            next_steps = next_steps + (step,)
            down_sum += d[n] * step
            up_sum -= d[n] * steps[n]
            right_sum += d[n] * right
            left_sum -= d[n] * left
            left = right
        steps = next_steps
        mid = down
    sums += strip * (4 * C) + c
    tl.store(sums, down_sum, mask=c < C)
    tl.store(sums + C, up_sum, mask=c < C)
    tl.store(sums + 2 * C, right_sum, mask=c < C)
    tl.store(sums + 3 * C, left_sum, mask=c < C)


@triton.jit(do_not_specialize=['H', 'W', 'rows', 'k_sample', 'k_channel', 'a_sample'])
def _anisotropic_transposed(
    dout,
    w,
    k,
    added,
    dz,
    H,
    W,
    rows,
    k_sample,
    k_channel,
    a_sample,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    SAMPLES: tl.constexpr,
    COLUMNS: tl.constexpr,
    WHOLE: tl.constexpr,
):
    sample, _, i0, j0, c = place(H, W, rows, C, BLOCK, SAMPLES, COLUMNS)
    dout += sample * (H * W * C) + c
    dz += sample * (H * W * C) + c
    k = tl.load(k + sample * k_sample + c * k_channel, mask=c < C, other=0).to(tl.float32)
    w = _load_weights(w, k, c, C)
    rest = 1 - (w[0] + w[1] + w[2] + w[3])
    added = _load_added(added, sample, a_sample, c, C)
    end = tl.minimum(i0 + rows, H)
    stop = tl.minimum(end + 1, H)
    up = _centre(load_row(dout, i0 - 1, j0 - 1, c, stop, W, C, COLUMNS + 2, 1, WHOLE))
    mid = load_row(dout, i0, j0 - 1, c, stop, W, C, COLUMNS + 2, 1, WHOLE)
    down = load_row(dout, i0 + 1, j0 - 1, c, stop, W, C, COLUMNS + 2, 1, WHOLE)
    for i in range(i0, end):
        following = load_row(dout, i + 2, j0 - 1, c, stop, W, C, COLUMNS + 2, 1, WHOLE)
        # From neighbours that are not there, nothing was taken.
        kept_in_row = rest + tl.where(i == H - 1, w[0], 0) + tl.where(i == 0, w[1], 0)
        result = ()
        for n in tl.static_range(COLUMNS):
            kept = kept_in_row
            if not WHOLE or n == COLUMNS - 1:
                kept += tl.where(j0 + n == W - 1, w[2], 0)
            if n == 0:
                kept += tl.where(j0 == 0, w[3], 0)
            result = result + (
                added
                + kept * mid[n + 1]
                + w[0] * up[n]
                + w[1] * down[n + 1]
                + w[2] * mid[n]
                + w[3] * mid[n + 2],
            )
        store_row(dz, i, j0, c, True, W, C, result, WHOLE)
        up = _centre(mid)
        mid = down
        down = following


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
        pixels = pixels + (tl.where(edge, narrow, wide),)
        inverse = inverse + (tl.where(edge, narrow_inverse, wide_inverse),)
    return pixels, inverse


@triton.jit
def _shares(d, i, j, c, H, stop, W, C: tl.constexpr, N: tl.constexpr, WHOLE: tl.constexpr):
    """As load_row with a margin of 1, over the number of neighbours of each pixel."""
    row = load_row(d, i, j, c, stop, W, C, N, 1, WHOLE)
    _, inverse = _window(i, j, H, W, N)
    shares = ()
    for n in tl.static_range(N):
        shares = shares + (row[n] * inverse[n],)
    return shares


@triton.jit
def _threes(row):
    """Sums of each pixel and its left and right neighbours."""
    sums = ()
    for n in tl.static_range(len(row) - 2):
        sums = sums + (row[n] + row[n + 1] + row[n + 2],)
    return sums


@triton.jit(do_not_specialize=['H', 'W', 'rows', 'k_sample', 'k_channel', 'a_sample'])
def _isotropic_forward(
    z,
    k,
    added,
    out,
    H,
    W,
    rows,
    k_sample,
    k_channel,
    a_sample,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    SAMPLES: tl.constexpr,
    COLUMNS: tl.constexpr,
    WHOLE: tl.constexpr,
):
    sample, _, i0, j0, c = place(H, W, rows, C, BLOCK, SAMPLES, COLUMNS)
    z += sample * (H * W * C) + c
    out += sample * (H * W * C) + c
    k = tl.load(k + sample * k_sample + c * k_channel, mask=c < C, other=0).to(tl.float32)
    added = _load_added(added, sample, a_sample, c, C)
    end = tl.minimum(i0 + rows, H)
    stop = tl.minimum(end + 1, H)
    up = _threes(load_row(z, i0 - 1, j0 - 1, c, stop, W, C, COLUMNS + 2, 1, WHOLE))
    row = load_row(z, i0, j0 - 1, c, stop, W, C, COLUMNS + 2, 1, WHOLE)
    mid = _threes(row)
    here = _centre(row)
    row = load_row(z, i0 + 1, j0 - 1, c, stop, W, C, COLUMNS + 2, 1, WHOLE)
    for i in range(i0, end):
        following = load_row(z, i + 2, j0 - 1, c, stop, W, C, COLUMNS + 2, 1, WHOLE)
        down = _threes(row)
        pixels, inverse = _window(i, j0, H, W, COLUMNS)
        result = ()
        for n in tl.static_range(COLUMNS):
            flux = (up[n] + mid[n] + down[n] - pixels[n] * here[n]) * inverse[n]
            result = result + (here[n] + k * flux + added,)
        store_row(out, i, j0, c, True, W, C, result, WHOLE)
        up = mid
        mid = down
        here = _centre(row)
        row = following


@triton.jit(do_not_specialize=['H', 'W', 'rows'])
def _isotropic_sums(
    dout,
    z,
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
    sample, strip, i0, j0, c = place(H, W, rows, C, BLOCK, SAMPLES, COLUMNS)
    dout += sample * (H * W * C) + c
    z += sample * (H * W * C) + c
    end = tl.minimum(i0 + rows, H)
    stop = tl.minimum(end + 1, H)
    total = tl.zeros((SAMPLES * BLOCK,), tl.float32)
    up = _threes(load_row(z, i0 - 1, j0 - 1, c, stop, W, C, COLUMNS + 2, 1, WHOLE))
    row = load_row(z, i0, j0 - 1, c, stop, W, C, COLUMNS + 2, 1, WHOLE)
    mid = _threes(row)
    here = _centre(row)
    for i in range(i0, end):
        row = load_row(z, i + 1, j0 - 1, c, stop, W, C, COLUMNS + 2, 1, WHOLE)
        d = load_row(dout, i, j0, c, end, W, C, COLUMNS, 0, WHOLE)
        down = _threes(row)
        pixels, inverse = _window(i, j0, H, W, COLUMNS)
        for n in tl.static_range(COLUMNS):
            flux = (up[n] + mid[n] + down[n] - pixels[n] * here[n]) * inverse[n]
            total += d[n] * flux
        up = mid
        mid = down
        here = _centre(row)
    tl.store(sums + strip * C + c, total, mask=c < C)


@triton.jit(do_not_specialize=['H', 'W', 'rows', 'k_sample', 'k_channel', 'a_sample'])
def _isotropic_transposed(
    dout,
    k,
    added,
    dz,
    H,
    W,
    rows,
    k_sample,
    k_channel,
    a_sample,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    SAMPLES: tl.constexpr,
    COLUMNS: tl.constexpr,
    WHOLE: tl.constexpr,
):
    sample, _, i0, j0, c = place(H, W, rows, C, BLOCK, SAMPLES, COLUMNS)
    dout += sample * (H * W * C) + c
    dz += sample * (H * W * C) + c
    k = tl.load(k + sample * k_sample + c * k_channel, mask=c < C, other=0).to(tl.float32)
    added = _load_added(added, sample, a_sample, c, C)
    end = tl.minimum(i0 + rows, H)
    stop = tl.minimum(end + 1, H)
    # What each neighbour of a pixel gets of its dz', but for k.
    up = _threes(_shares(dout, i0 - 1, j0 - 1, c, H, stop, W, C, COLUMNS + 2, WHOLE))
    row = _shares(dout, i0, j0 - 1, c, H, stop, W, C, COLUMNS + 2, WHOLE)
    mid = _threes(row)
    here = _centre(row)
    for i in range(i0, end):
        row = _shares(dout, i + 1, j0 - 1, c, H, stop, W, C, COLUMNS + 2, WHOLE)
        down = _threes(row)
        pixels, inverse = _window(i, j0, H, W, COLUMNS)
        result = ()
        for n in tl.static_range(COLUMNS):
            flux = up[n] + mid[n] + down[n] - pixels[n] * here[n]
            whole = here[n] * tl.maximum(pixels[n] - 1, 1)
            result = result + (whole + k * flux + added,)
        store_row(dz, i, j0, c, True, W, C, result, WHOLE)
        up = mid
        mid = down
        here = _centre(row)


@triton.jit(do_not_specialize=['strips', 'k_sample', 'k_channel'])
def _combine(
    sums,
    w,
    k,
    dk,
    of_w,
    strips,
    k_sample,
    k_channel,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Of a sample: dk (C,), and what it adds to dw, (C, 4), from the sums of its strips."""
    sample = tl.program_id(0).to(tl.int64)
    sums += sample * strips * (4 * C)
    for block in range(0, C, BLOCK):
        c = block + tl.arange(0, BLOCK)
        rate = tl.load(k + sample * k_sample + c * k_channel, mask=c < C, other=0).to(tl.float32)
        conducted = tl.zeros((BLOCK,), tl.float32)
        for n in tl.static_range(4):
            total = tl.zeros((ROWS, BLOCK), tl.float32)
            for first in range(0, strips, ROWS):
                strip = first + tl.arange(0, ROWS)
                exists = (strip < strips)[:, None] & (c < C)[None, :]
                total += tl.load(
                    sums + (strip[:, None] * 4 + n) * C + c[None, :], mask=exists, other=0
                )
            s = tl.sum(total, 0)
            conducted += s * tl.load(w + c * 4 + n, mask=c < C, other=0).to(tl.float32)
            tl.store(of_w + (sample * C + c) * 4 + n, s * rate, mask=c < C)
        tl.store(dk + sample * C + c, conducted, mask=c < C)


def _sizes(x: Tensor, k: Tensor, added: Tensor | None, cut: Strips) -> tuple:
    _, channels, height, width = x.shape
    a_sample = 0 if added is None or added.shape[0] == 1 else channels
    return height, width, cut.rows, k.stride(0), k.stride(1), a_sample, channels, *cut.layout


@operator('heat_step_forward')
def heat_step_forward(z: Tensor, w: Tensor | None, k: Tensor, offset: Tensor | None) -> Tensor:
    """:func:`mmhcnet.ops.heat_step_forward` as a fused kernel, channels last."""
    z = channels_last(z)
    out = empty_like(z, torch.result_type(z, k))
    if z.numel() == 0:
        return out
    k = k.expand(z.shape[0], z.shape[1], 1, 1)
    offset = None if offset is None else offset.contiguous()
    cut = strips(z, _COLUMNS, _PROGRAMS, _LEAST_ROWS)
    sizes = _sizes(z, k, offset, cut)
    with on_device(z):
        if w is None:
            wrap_triton(_isotropic_forward, z)[cut.grid](z, k, offset, out, *sizes, num_warps=1)
        else:
            wrap_triton(_anisotropic_forward, z)[cut.grid](
                z, w.contiguous(), k, offset, out, *sizes, num_warps=1
            )
    return out


@operator('heat_step_sums')
def _heat_step_sums(dout: Tensor, z: Tensor, w: Tensor | None, k: Tensor) -> tuple[Tensor, Tensor]:
    """dk (B, C), and dw (C, 4), or (C, 0) without w."""
    dout, z = channels_last(dout), channels_last(z)
    batch, channels, height, width = z.shape
    terms = 1 if w is None else 4
    if z.numel() == 0:
        return tuple(
            z.new_zeros(shape, dtype=torch.float32)
            for shape in ((batch, channels), (channels, 0 if w is None else 4))
        )
    cut = strips(z, _COLUMNS, _PROGRAMS, _LEAST_ROWS)
    sums = z.new_empty((batch, cut.of_sample, terms, channels), dtype=torch.float32)
    sizes = (height, width, cut.rows, channels, *cut.layout)
    with on_device(z):
        if w is None:
            wrap_triton(_isotropic_sums, z)[cut.grid](dout, z, sums, *sizes, num_warps=1)
            return sums.sum(1).view(batch, channels), sums.new_empty((channels, 0))
        wrap_triton(_anisotropic_sums, z)[cut.grid](dout, z, sums, *sizes, num_warps=1)
        if cut.of_sample > _STRIPS:
            sums = sums.sum(1, keepdim=True)
        dk = z.new_empty((batch, channels), dtype=torch.float32)
        of_w = z.new_empty((batch, channels, 4), dtype=torch.float32)
        wrap_triton(_combine, z)[(batch,)](
            sums,
            w.contiguous(),
            k,
            dk,
            of_w,
            sums.shape[1],
            k.stride(0),
            k.stride(1),
            channels,
            64,
            16,
        )
    return dk, of_w.sum(0)


def heat_step_sums(
    dout: Tensor, z: Tensor, w: Tensor | None, k: Tensor
) -> tuple[Tensor, Tensor | None]:
    """:func:`mmhcnet.ops.heat_step_sums` as a fused kernel."""
    dk, dw = _heat_step_sums(dout, z, w, k)
    return dk[:, :, None, None], None if w is None else dw


@operator('heat_step_transposed')
def heat_step_transposed(
    dout: Tensor, w: Tensor | None, k: Tensor, mean_grad: Tensor | None
) -> Tensor:
    """:func:`mmhcnet.ops.heat_step_transposed` as a fused kernel, channels last."""
    dout = channels_last(dout)
    dz = empty_like(dout, dout.dtype)
    if dout.numel() == 0:
        return dz
    k = k.expand(dout.shape[0], dout.shape[1], 1, 1)
    mean_grad = None if mean_grad is None else mean_grad.contiguous()
    cut = strips(dout, _COLUMNS, _PROGRAMS, _LEAST_ROWS)
    sizes = _sizes(dout, k, mean_grad, cut)
    with on_device(dout):
        if w is None:
            wrap_triton(_isotropic_transposed, dout)[cut.grid](
                dout, k, mean_grad, dz, *sizes, num_warps=1
            )
        else:
            wrap_triton(_anisotropic_transposed, dout)[cut.grid](
                dout, w.contiguous(), k, mean_grad, dz, *sizes, num_warps=1
            )
    return dz
