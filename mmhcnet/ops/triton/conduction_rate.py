"""The input-dependent conduction rate: one read of the field, then a product of small matrices."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import channels_last, check_size, on_device, operator, wrap_triton

# Elements that a program of 4 warps holds: 16 a thread.
_TILE = 2048
# Pixels of a program at least, and parts of a sample at most: the product adds the parts up one
# after the other.
_PIXELS = 512
_PARTS = 128
# Samples and channels of a program of the product: what the tensor cores take at least, and a row.
_SAMPLES = 16
_CHANNELS = 64


@triton.jit(do_not_specialize=['area', 'pixels', 'parts'])
def _sums(z, sums, area, pixels, parts, C: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr):
    """Of every part of a sample and channel: the sum of z."""
    pid = tl.program_id(0)
    blocks: tl.constexpr = (C + BLOCK - 1) // BLOCK
    c = pid % blocks * BLOCK + tl.arange(0, BLOCK)
    part = pid // blocks
    z += (part // parts).to(tl.int64) * area * C
    first = part % parts * pixels
    total = tl.zeros((TILE // BLOCK, BLOCK), tl.float32)
    for p in range(first, tl.minimum(first + pixels, area), TILE // BLOCK):
        pixel = p + tl.arange(0, TILE // BLOCK)
        exists = (pixel < area)[:, None] & (c < C)[None, :]
        total += tl.load(z + pixel[:, None] * C + c[None, :], mask=exists, other=0).to(tl.float32)
    tl.store(sums + part.to(tl.int64) * C + c, tl.sum(total, 0), mask=c < C)


@triton.jit(do_not_specialize=['batch', 'area', 'parts'])
def _rate(
    sums,
    to_k,
    keep,
    rate,
    k,
    mean,
    batch,
    area,
    parts,
    C: tl.constexpr,
    SAMPLES: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    blocks: tl.constexpr = (C + CHANNELS - 1) // CHANNELS
    block = tl.program_id(0) % blocks
    b = tl.program_id(0) // blocks * SAMPLES + tl.arange(0, SAMPLES)
    out = block * CHANNELS + tl.arange(0, CHANNELS)
    a = tl.zeros((SAMPLES, CHANNELS), tl.float32)
    for first in range(0, C, CHANNELS):
        c = first + tl.arange(0, CHANNELS)
        exists = (b < batch)[:, None] & (c < C)[None, :]
        m = tl.zeros((SAMPLES, CHANNELS), tl.float32)
        for part in range(parts):
            m += tl.load(sums + (b[:, None] * parts + part) * C + c[None, :], mask=exists, other=0)
        m /= area
        # All programs of a sample store the same numbers.
        tl.store(mean + b[:, None] * C + c[None, :], m, mask=exists)
        weight = tl.load(
            to_k + out[None, :] * C + c[:, None],
            mask=(c < C)[:, None] & (out < C)[None, :],
            other=0,
        ).to(tl.float32)
        a = tl.dot(m, weight, a, input_precision='ieee')
    exists = (b < batch)[:, None] & (out < C)[None, :]
    index = b[:, None] * C + out[None, :]
    value = tl.sigmoid(a)
    tl.store(k + index, value, mask=exists)
    if keep is not None:
        value *= tl.load(keep + b, mask=b < batch, other=0).to(tl.float32)[:, None]
    tl.store(rate + index, value.to(rate.dtype.element_ty), mask=exists)


@operator('conduction_rate_forward')
def conduction_rate_forward(
    z: Tensor, to_k: Tensor, keep: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`mmhcnet.ops.conduction_rate_forward` as fused kernels, channels last."""
    z = channels_last(z)
    batch, channels, height, width = z.shape
    check_size(batch, channels, height, width)
    rate = z.new_empty((batch, channels, 1, 1))
    k, mean = (z.new_empty((batch, channels), dtype=torch.float32) for _ in range(2))
    if z.numel() == 0:
        return rate, k, mean
    area = height * width
    block = min(64, triton.next_power_of_2(channels))
    # A multiple of the pixels of a tile: those of the last one are counted once.
    pixels = triton.cdiv(max(_PIXELS, triton.cdiv(area, _PARTS)), _TILE // block) * (_TILE // block)
    parts = triton.cdiv(area, pixels)
    sums = z.new_empty((batch * parts, channels), dtype=torch.float32)
    with on_device(z):
        wrap_triton(_sums, z)[(batch * parts * triton.cdiv(channels, block),)](
            z, sums, area, pixels, parts, channels, block, _TILE
        )
        wrap_triton(_rate, z)[(triton.cdiv(batch, _SAMPLES) * triton.cdiv(channels, _CHANNELS),)](
            sums,
            to_k.contiguous(),
            None if keep is None else keep.contiguous(),
            rate,
            k,
            mean,
            batch,
            area,
            parts,
            channels,
            _SAMPLES,
            _CHANNELS,
        )
    return rate, k, mean
