"""GroupNorm with one group.

Forward: one read of x for the statistics, one read of x and one write of y, 6 bytes an element in
16 bits. Backward: one read of dy and x for the sums, one read of both and one write of dx, 10
bytes. The second kernel of each pair takes the samples in reverse order: the last ones are those
still in the L2 cache. A sample is shared by several programs, so that a single large image keeps
the whole GPU busy.
"""
from typing import Tuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import channels_last, check_size, empty_like, on_device

# Elements that a program of 4 warps holds at a time: 32 a thread for the statistics, else 8.
_STATISTICS_BLOCK = 4096
_TILE = 1024
# Pixels of a program: its partial sums, 8 bytes a channel, are 2 % of what it reads in 16 bits.
_PIXELS = 128
# Programs for the statistics: some 16 for each of the 132 multiprocessors of a large GPU.
_PROGRAMS = 2048
# Parts of a sample at most: every program of the second kernel combines those of its sample.
_PARTS = 512


@triton.jit(do_not_specialize=['blocks', 'parts'])
def _statistics(x, means, squares, size, blocks, parts, BLOCK: tl.constexpr):
    """Of every part of a sample: mean, less the sample's first element, and squared deviations.

    Blocks are combined by Chan's formula. No sum is larger than the deviations make it, so
    |mean| >> std costs no digits.
    """
    pid = tl.program_id(0)
    x += (pid // parts).to(tl.int64) * size
    base = tl.load(x)
    first = pid % parts * blocks
    count = 0.
    mean = 0.
    square = 0.
    for block in range(first, tl.minimum(first + blocks, tl.cdiv(size, BLOCK))):
        index = block * BLOCK + tl.arange(0, BLOCK)
        exists = index < size
        v = tl.load(x + index, mask=exists, other=base).to(tl.float32) - base.to(tl.float32)
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
def _combine(x, means, squares, size, part, parts, eps, PARTS: tl.constexpr):
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
    return tl.load(x).to(tl.float32) + total, tl.rsqrt(variance + eps)


@triton.jit
def _place(batch, area, C, pixels, BLOCK: tl.constexpr, REVERSED: tl.constexpr):
    """Of this program: sample, its offset, part among those of all samples, pixel, channels."""
    pid = tl.program_id(0)
    blocks = tl.cdiv(C, BLOCK)
    parts = tl.cdiv(area, pixels)
    c = pid % blocks * BLOCK + tl.arange(0, BLOCK)
    part = pid // blocks % parts
    sample = pid // blocks // parts
    if REVERSED:
        sample = batch - 1 - sample
    return sample, sample.to(tl.int64) * area * C, sample * parts + part, part * pixels, c


@triton.jit(do_not_specialize=['batch', 'area', 'pixels', 'blocks', 'parts'])
def _forward(x, weight, bias, means, squares, y, mean, rstd, eps, batch, area, C, pixels, blocks,
             parts, PARTS: tl.constexpr, STATISTICS_BLOCK: tl.constexpr, BLOCK: tl.constexpr,
             TILE: tl.constexpr):
    sample, offset, _, first, c = _place(batch, area, C, pixels, BLOCK, True)
    x += offset
    y += offset
    m, r = _combine(x, means + sample * parts, squares + sample * parts, area * C,
                    blocks * STATISTICS_BLOCK, parts, eps, PARTS)
    # All programs of a sample store the same numbers.
    tl.store(mean + sample, m)
    tl.store(rstd + sample, r)
    scale = tl.load(weight + c, mask=c < C, other=0).to(tl.float32) * r
    shift = tl.load(bias + c, mask=c < C, other=0).to(tl.float32)
    for p in range(first, tl.minimum(first + pixels, area), TILE // BLOCK):
        pixel = p + tl.arange(0, TILE // BLOCK)
        index = pixel[:, None] * C + c[None, :]
        exists = (pixel < area)[:, None] & (c < C)[None, :]
        v = tl.load(x + index, mask=exists, other=0).to(tl.float32)
        v = (v - m) * scale[None, :] + shift[None, :]
        tl.store(y + index, v.to(y.dtype.element_ty), mask=exists)


@triton.jit(do_not_specialize=['batch', 'area', 'pixels'])
def _sums(dy, x, mean, rstd, sums, batch, area, C, pixels, BLOCK: tl.constexpr,
          TILE: tl.constexpr):
    """Of every part of a sample and channel: sum of dy, sum of dy times the normalised x."""
    sample, offset, part, first, c = _place(batch, area, C, pixels, BLOCK, False)
    dy += offset
    x += offset
    m = tl.load(mean + sample)
    total = tl.zeros((TILE // BLOCK, BLOCK), tl.float32)
    product = tl.zeros((TILE // BLOCK, BLOCK), tl.float32)
    for p in range(first, tl.minimum(first + pixels, area), TILE // BLOCK):
        pixel = p + tl.arange(0, TILE // BLOCK)
        index = pixel[:, None] * C + c[None, :]
        exists = (pixel < area)[:, None] & (c < C)[None, :]
        d = tl.load(dy + index, mask=exists, other=0).to(tl.float32)
        v = tl.load(x + index, mask=exists, other=0).to(tl.float32)
        total += d
        product += d * (v - m)
    sums += part.to(tl.int64) * 2 * C + c
    tl.store(sums, tl.sum(total, 0), mask=c < C)
    tl.store(sums + C, tl.sum(product, 0) * tl.load(rstd + sample), mask=c < C)


@triton.jit(do_not_specialize=['batch', 'area', 'pixels'])
def _backward(dy, x, weight, mean, rstd, sums, dx, batch, area, C, pixels, BLOCK: tl.constexpr,
              TILE: tl.constexpr):
    """dx = rstd (dy weight - mean(dy weight) - x̂ mean(dy weight x̂)), x̂ the normalised x."""
    sample, offset, _, first, c = _place(batch, area, C, pixels, BLOCK, True)
    dy += offset
    x += offset
    dx += offset
    m = tl.load(mean + sample)
    r = tl.load(rstd + sample)
    scale = tl.load(weight + c, mask=c < C, other=0).to(tl.float32) * r
    size = (area * C).to(tl.float32)
    shift = tl.load(sums + 2 * sample) / size * r
    slope = tl.load(sums + 2 * sample + 1) / size * r * r
    for p in range(first, tl.minimum(first + pixels, area), TILE // BLOCK):
        pixel = p + tl.arange(0, TILE // BLOCK)
        index = pixel[:, None] * C + c[None, :]
        exists = (pixel < area)[:, None] & (c < C)[None, :]
        d = tl.load(dy + index, mask=exists, other=0).to(tl.float32)
        v = tl.load(x + index, mask=exists, other=0).to(tl.float32)
        d = d * scale[None, :] - shift - (v - m) * slope
        tl.store(dx + index, d.to(dx.dtype.element_ty), mask=exists)


def _tiles(x: Tensor) -> Tuple[Tuple[int], int, int, int]:
    """Grid; parts of all samples, pixels and channels of a program."""
    batch, channels, height, width = x.shape
    block = next((n for n in (64, 32) if channels % n == 0),
                 min(64, triton.next_power_of_2(channels)))
    pixels = max(_PIXELS, _TILE // block)
    parts = batch * triton.cdiv(height * width, pixels)
    return (parts * triton.cdiv(channels, block), ), parts, pixels, block


@torch.library.custom_op('mmhcnet::group_norm_1', mutates_args=())
def _group_norm_1(x: Tensor, weight: Tensor, bias: Tensor,
                  eps: float) -> Tuple[Tensor, Tensor, Tensor]:
    """y, and mean and 1 / sqrt(variance + eps) of every sample, (B,) in float32."""
    x = channels_last(x)
    batch, channels, height, width = x.shape
    y = empty_like(x, x.dtype)
    mean, rstd = (x.new_empty(batch, dtype=torch.float32) for _ in range(2))
    if x.numel() == 0:
        return y, mean.fill_(0), rstd.fill_(0)
    check_size(x)
    size = channels * height * width
    blocks = triton.cdiv(size, _STATISTICS_BLOCK)
    blocks = triton.cdiv(blocks, min(blocks, _PARTS, triton.cdiv(_PROGRAMS, batch)))
    parts = triton.cdiv(size, blocks * _STATISTICS_BLOCK)
    means, squares = (x.new_empty(batch * parts, dtype=torch.float32) for _ in range(2))
    grid, _, pixels, block = _tiles(x)
    with on_device(x):
        _statistics[(batch * parts, )](x, means, squares, size, blocks, parts, _STATISTICS_BLOCK)
        _forward[grid](x, weight.contiguous(), bias.contiguous(), means, squares, y, mean, rstd,
                       eps, batch, height * width, channels, pixels, blocks, parts,
                       triton.next_power_of_2(parts), _STATISTICS_BLOCK, block, _TILE)
    return y, mean, rstd


@_group_norm_1.register_fake
def _(x, weight, bias, eps):
    mean, rstd = (x.new_empty(x.shape[0], dtype=torch.float32) for _ in range(2))
    return empty_like(x, x.dtype), mean, rstd


@torch.library.custom_op('mmhcnet::group_norm_1_backward', mutates_args=())
def _group_norm_1_backward(dy: Tensor, x: Tensor, weight: Tensor, mean: Tensor,
                           rstd: Tensor) -> Tuple[Tensor, Tensor]:
    """dx, and the gradients of bias and weight, (2, C) in float32."""
    dy, x = channels_last(dy), channels_last(x)
    batch, channels, height, width = x.shape
    dx = empty_like(x, x.dtype)
    if x.numel() == 0:
        return dx, x.new_zeros((2, channels), dtype=torch.float32)
    grid, parts, pixels, block = _tiles(x)
    sums = x.new_empty((parts, 2, channels), dtype=torch.float32)
    sizes = (batch, height * width, channels, pixels, block, _TILE)
    with on_device(x):
        _sums[grid](dy, x, mean, rstd, sums, *sizes)
        sums = sums.view(batch, -1, 2, channels).sum(1)
        _backward[grid](dy, x, weight.contiguous(), mean, rstd, (sums * weight).sum(2), dx, *sizes)
    return dx, sums.sum(0)


@_group_norm_1_backward.register_fake
def _(dy, x, weight, mean, rstd):
    return empty_like(x, x.dtype), x.new_empty((2, x.shape[1]), dtype=torch.float32)


def _save(ctx, inputs, output):
    x, weight, bias, _ = inputs
    _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.save_for_backward(x, weight, mean, rstd)
    ctx.bias_dtype = bias.dtype


def _gradients(ctx, dy, dmean, drstd):
    x, weight, mean, rstd = ctx.saved_tensors
    dx, affine = torch.ops.mmhcnet.group_norm_1_backward(dy, x, weight, mean, rstd)
    return dx, affine[1].to(weight.dtype), affine[0].to(ctx.bias_dtype), None


_group_norm_1.register_autograd(_gradients, setup_context=_save)


def group_norm_1(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """:func:`mmhcnet.ops.group_norm_1` as a fused kernel, channels last."""
    if not weight.shape == bias.shape == x.shape[1:2]:
        raise ValueError(f'weight and bias must be (C,) = ({x.shape[1]},) for x of '
                         f'{tuple(x.shape)}, got {tuple(weight.shape)} and {tuple(bias.shape)}')
    return _group_norm_1(x, weight, bias, eps)[0]
