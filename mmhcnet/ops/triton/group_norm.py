"""GroupNorm with one group.

Forward: one read of x for the statistics, one read of x and one write of y, 6 bytes an element in
16 bits. Backward: one read of dy and x for the sums, one read of both and one write of dx, 10
bytes. The second kernel of each pair takes the samples in reverse order: the last ones are those
still in the L2 cache. A sample is shared by several programs, so that a single large image keeps
the whole GPU busy.
"""

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import channels_last, check_size, empty_like, known, on_device, operator, wrap_triton

# Elements that a program of 4 warps holds at a time: 32 a thread for the statistics, else 8.
_STATISTICS_BLOCK = 4096
_TILE = 1024
# Pixels of a program: its partial sums, 8 bytes a channel, are 2 % of what it reads in 16 bits.
_PIXELS = 128
# Programs for the statistics: some 16 for each of the 132 multiprocessors of a large GPU.
_PROGRAMS = 2048
# Parts of a sample at most: every program of the second kernel combines those of its sample.
_PARTS = 512


@triton.jit
def _load(x, offset, index, exists, C: tl.constexpr):
    """x, less the offset of its channel, in float32; 0 where it does not exist."""
    v = tl.load(x + index, mask=exists, other=0).to(tl.float32)
    if offset is not None:
        v -= tl.load(offset + index % C, mask=exists, other=0).to(tl.float32)
    return v


@triton.jit
def _load_channels(t, c, C: tl.constexpr):
    return tl.load(t + c, mask=c < C, other=0).to(tl.float32)


@triton.jit(do_not_specialize=['area', 'blocks', 'parts', 'o_sample'])
def _statistics(
    x, offset, means, squares, area, blocks, parts, o_sample, C: tl.constexpr, BLOCK: tl.constexpr
):
    """Of every part of a sample: mean, less the sample's first element, and squared deviations.

    Blocks are combined by Chan's formula. No sum is larger than the deviations make it, so
    |mean| >> std costs no digits.
    """
    pid = tl.program_id(0)
    sample = pid // parts
    # C, a constant, tells how many of neighbouring elements exist together.
    size = area * C
    x += sample.to(tl.int64) * size
    if offset is not None:
        offset += sample * o_sample * C
    base = _load(x, offset, 0, True, C)
    first = pid % parts * blocks
    count = 0.0
    mean = 0.0
    square = 0.0
    for block in range(first, tl.minimum(first + blocks, tl.cdiv(size, BLOCK))):
        index = block * BLOCK + tl.arange(0, BLOCK)
        exists = index < size
        v = tl.where(exists, _load(x, offset, index, exists, C) - base, 0)
        n = tl.minimum(size - block * BLOCK, BLOCK).to(tl.float32)
        block_mean = tl.sum(v) / n
        d = tl.where(exists, v - block_mean, 0)
        shift = block_mean - mean
        share = n / (count + n)
        square += tl.sum(d * d) + shift * shift * count * share
        mean += shift * share
        count += n
    tl.store(means + pid, mean)
    tl.store(squares + pid, square)


@triton.jit
def _combine(base, means, squares, size, part, parts, eps, PARTS: tl.constexpr):
    """Mean and 1 / sqrt(variance + eps) of a sample, from those of its parts."""
    index = tl.arange(0, PARTS)
    exists = index < parts
    mean = tl.load(means + index, mask=exists, other=0)
    square = tl.load(squares + index, mask=exists, other=0)
    share = tl.minimum(size - index * part, part).to(tl.float32) / size
    share = tl.where(exists, share, 0)
    total = tl.sum(mean * share)
    d = mean - total
    variance = tl.sum(square) / size + tl.sum(d * d * share)
    return base + total, tl.rsqrt(variance + eps)


@triton.jit
def _place(batch, area, pixels, C: tl.constexpr, BLOCK: tl.constexpr, REVERSED: tl.constexpr):
    """Of this program: sample, its offset, part among those of all samples, pixel, channels."""
    pid = tl.program_id(0)
    blocks: tl.constexpr = (C + BLOCK - 1) // BLOCK
    parts = tl.cdiv(area, pixels)
    c = pid % blocks * BLOCK + tl.arange(0, BLOCK)
    part = pid // blocks % parts
    sample = pid // blocks // parts
    if REVERSED:
        sample = batch - 1 - sample
    return sample, sample.to(tl.int64) * area * C, sample * parts + part, part * pixels, c


@triton.jit(do_not_specialize=['batch', 'area', 'pixels', 'blocks', 'parts', 'o_sample'])
def _forward(
    x,
    weight,
    bias,
    offset,
    means,
    squares,
    y,
    mean,
    rstd,
    eps,
    batch,
    area,
    pixels,
    blocks,
    parts,
    o_sample,
    C: tl.constexpr,
    PARTS: tl.constexpr,
    STATISTICS_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
):
    sample, start, _, first, c = _place(batch, area, pixels, C, BLOCK, True)
    x += start
    y += start
    if offset is not None:
        offset += sample * o_sample * C
    base = _load(x, offset, 0, True, C)
    m, r = _combine(
        base,
        means + sample * parts,
        squares + sample * parts,
        area * C,
        blocks * STATISTICS_BLOCK,
        parts,
        eps,
        PARTS,
    )
    # All programs of a sample store the same numbers.
    tl.store(mean + sample, m)
    tl.store(rstd + sample, r)
    scale = _load_channels(weight, c, C) * r
    shift = _load_channels(bias, c, C)
    centre = tl.zeros((BLOCK,), tl.float32) + m
    if offset is not None:
        centre += _load_channels(offset, c, C)
    for p in range(first, tl.minimum(first + pixels, area), TILE // BLOCK):
        pixel = p + tl.arange(0, TILE // BLOCK)
        index = pixel[:, None] * C + c[None, :]
        exists = (pixel < area)[:, None] & (c < C)[None, :]
        v = tl.load(x + index, mask=exists, other=0).to(tl.float32)
        v = (v - centre[None, :]) * scale[None, :] + shift[None, :]
        tl.store(y + index, v.to(y.dtype.element_ty), mask=exists)


@triton.jit(do_not_specialize=['batch', 'area', 'pixels', 'o_sample'])
def _sums(
    dy,
    x,
    offset,
    mean,
    rstd,
    sums,
    batch,
    area,
    pixels,
    o_sample,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
):
    """Of every part of a sample and channel: sum of dy, sum of dy times the normalised x."""
    sample, start, part, first, c = _place(batch, area, pixels, C, BLOCK, False)
    dy += start
    x += start
    centre = tl.zeros((BLOCK,), tl.float32) + tl.load(mean + sample)
    if offset is not None:
        centre += _load_channels(offset + sample * o_sample * C, c, C)
    total = tl.zeros((TILE // BLOCK, BLOCK), tl.float32)
    product = tl.zeros((TILE // BLOCK, BLOCK), tl.float32)
    for p in range(first, tl.minimum(first + pixels, area), TILE // BLOCK):
        pixel = p + tl.arange(0, TILE // BLOCK)
        index = pixel[:, None] * C + c[None, :]
        exists = (pixel < area)[:, None] & (c < C)[None, :]
        d = tl.load(dy + index, mask=exists, other=0).to(tl.float32)
        v = tl.load(x + index, mask=exists, other=0).to(tl.float32)
        total += d
        product += d * (v - centre[None, :])
    sums += part.to(tl.int64) * 2 * C + c
    tl.store(sums, tl.sum(total, 0), mask=c < C)
    tl.store(sums + C, tl.sum(product, 0) * tl.load(rstd + sample), mask=c < C)


@triton.jit(do_not_specialize=['parts'])
def _combine_sums(
    sums,
    weight,
    combined,
    means,
    size,
    parts,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Of every sample: its sums (2, C), and their means over the channels, times weight."""
    sample = tl.program_id(0)
    sums += sample.to(tl.int64) * parts * (2 * C)
    combined += sample * (2 * C)
    shift = 0.0
    slope = 0.0
    for block in range(0, C, BLOCK):
        c = block + tl.arange(0, BLOCK)
        total = tl.zeros((ROWS, BLOCK), tl.float32)
        product = tl.zeros((ROWS, BLOCK), tl.float32)
        for first in range(0, parts, ROWS):
            row = first + tl.arange(0, ROWS)
            index = row[:, None] * (2 * C) + c[None, :]
            exists = (row < parts)[:, None] & (c < C)[None, :]
            total += tl.load(sums + index, mask=exists, other=0)
            product += tl.load(sums + C + index, mask=exists, other=0)
        w = _load_channels(weight, c, C)
        total_of_channel = tl.sum(total, 0)
        product_of_channel = tl.sum(product, 0)
        tl.store(combined + c, total_of_channel, mask=c < C)
        tl.store(combined + C + c, product_of_channel, mask=c < C)
        shift += tl.sum(total_of_channel * w)
        slope += tl.sum(product_of_channel * w)
    tl.store(means + 2 * sample, shift / size)
    tl.store(means + 2 * sample + 1, slope / size)


@triton.jit(do_not_specialize=['batch', 'area', 'pixels', 'o_sample'])
def _backward(
    dy,
    x,
    weight,
    offset,
    residual,
    mean,
    rstd,
    means,
    dx,
    batch,
    area,
    pixels,
    o_sample,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
):
    """dx = rstd (dy weight - mean(dy weight) - x̂ mean(dy weight x̂)), x̂ the normalised x."""
    sample, start, _, first, c = _place(batch, area, pixels, C, BLOCK, True)
    dy += start
    x += start
    dx += start
    if residual is not None:
        residual += start
    r = tl.load(rstd + sample)
    scale = _load_channels(weight, c, C) * r
    shift = tl.load(means + 2 * sample) * r
    slope = tl.load(means + 2 * sample + 1) * r * r
    centre = tl.zeros((BLOCK,), tl.float32) + tl.load(mean + sample)
    if offset is not None:
        centre += _load_channels(offset + sample * o_sample * C, c, C)
    for p in range(first, tl.minimum(first + pixels, area), TILE // BLOCK):
        pixel = p + tl.arange(0, TILE // BLOCK)
        index = pixel[:, None] * C + c[None, :]
        exists = (pixel < area)[:, None] & (c < C)[None, :]
        d = tl.load(dy + index, mask=exists, other=0).to(tl.float32)
        v = tl.load(x + index, mask=exists, other=0).to(tl.float32)
        d = d * scale[None, :] - shift - (v - centre[None, :]) * slope
        if residual is not None:
            d += tl.load(residual + index, mask=exists, other=0).to(tl.float32)
        tl.store(dx + index, d.to(dx.dtype.element_ty), mask=exists)


class Division(NamedTuple):
    """How a field is divided: for the statistics blocks of a part, parts of a sample and a bound on
    those; for the rest a grid, parts of all samples, pixels and channels of a program.
    """

    blocks: int
    parts: int
    bound: int
    grid: tuple[int]
    tiles: int
    pixels: int
    block: int


def _division(batch: int, channels: int, height: int, width: int, choose: bool = True) -> Division:
    check_size(batch, channels, height, width)
    size = channels * height * width
    blocks = triton.cdiv(size, _STATISTICS_BLOCK)
    at_most = min(blocks, _PARTS, triton.cdiv(_PROGRAMS, batch)) if choose else _PARTS
    blocks = triton.cdiv(blocks, at_most)
    parts = triton.cdiv(size, blocks * _STATISTICS_BLOCK)
    bound = triton.next_power_of_2(parts) if choose else _PARTS
    block = next(
        (n for n in (64, 32) if channels % n == 0), min(64, triton.next_power_of_2(channels))
    )
    pixels = max(_PIXELS, _TILE // block)
    tiles = batch * triton.cdiv(height * width, pixels)
    return Division(
        blocks, parts, bound, (tiles * triton.cdiv(channels, block),), tiles, pixels, block
    )


_cached_division = functools.lru_cache(maxsize=None)(_division)


def _divide(x: Tensor) -> Division:
    if known(x):
        return _cached_division(*x.shape)
    batch, channels, height, width = x.shape
    # A choice would hold for some sizes only, and make a graph of its own for them.
    return _division(batch, int(channels), height, width, choose=False)


def _samples(offset: Tensor | None) -> int:
    return 0 if offset is None or offset.shape[0] == 1 else 1


@operator('group_norm_1_forward')
def group_norm_1_forward(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, offset: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`mmhcnet.ops.group_norm_1_forward` as a fused kernel, channels last."""
    x = channels_last(x)
    batch, channels, height, width = x.shape
    y = empty_like(x, x.dtype)
    mean, rstd = (x.new_empty(batch, dtype=torch.float32) for _ in range(2))
    if x.numel() == 0:
        return y, mean.fill_(0), rstd.fill_(0)
    offset = None if offset is None else offset.contiguous()
    area = height * width
    cut = _divide(x)
    means, squares = (x.new_empty(batch * cut.parts, dtype=torch.float32) for _ in range(2))
    o_sample = _samples(offset)
    with on_device(x):
        wrap_triton(_statistics, x)[(batch * cut.parts,)](
            x,
            offset,
            means,
            squares,
            area,
            cut.blocks,
            cut.parts,
            o_sample,
            channels,
            _STATISTICS_BLOCK,
        )
        wrap_triton(_forward, x)[cut.grid](
            x,
            weight.contiguous(),
            bias.contiguous(),
            offset,
            means,
            squares,
            y,
            mean,
            rstd,
            eps,
            batch,
            area,
            cut.pixels,
            cut.blocks,
            cut.parts,
            o_sample,
            channels,
            cut.bound,
            _STATISTICS_BLOCK,
            cut.block,
            _TILE,
        )
    return y, mean, rstd


@operator('group_norm_1_backward')
def _group_norm_1_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    residual: Tensor | None,
    offset: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """dx, and the gradients of bias and weight, (2, C) in float32."""
    dy, x = channels_last(dy), channels_last(x)
    batch, channels, height, width = x.shape
    dx = empty_like(x, x.dtype)
    if x.numel() == 0:
        return dx, x.new_zeros((2, channels), dtype=torch.float32)
    residual = None if residual is None else channels_last(residual)
    offset = None if offset is None else offset.contiguous()
    area = height * width
    cut = _divide(x)
    sums = x.new_empty((cut.tiles, 2, channels), dtype=torch.float32)
    combined = x.new_empty((batch, 2, channels), dtype=torch.float32)
    means = x.new_empty((batch, 2), dtype=torch.float32)
    sizes = (batch, area, cut.pixels, _samples(offset), channels, cut.block, _TILE)
    weight = weight.contiguous()
    with on_device(x):
        wrap_triton(_sums, x)[cut.grid](dy, x, offset, mean, rstd, sums, *sizes)
        wrap_triton(_combine_sums, x)[(batch,)](
            sums,
            weight,
            combined,
            means,
            channels * area,
            cut.tiles // batch,
            channels,
            cut.block,
            _TILE // cut.block,
        )
        wrap_triton(_backward, x)[cut.grid](
            dy, x, weight, offset, residual, mean, rstd, means, dx, *sizes
        )
    return dx, combined.sum(0)


def group_norm_1_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    residual: Tensor | None,
    offset: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`mmhcnet.ops.group_norm_1_backward` as fused kernels, channels last."""
    dx, affine = _group_norm_1_backward(dy, x, weight, mean, rstd, residual, offset)
    return dx, affine[1], affine[0]
