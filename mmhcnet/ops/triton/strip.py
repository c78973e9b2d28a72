"""How the two 3x3 stencils, heat step and depthwise convolution, divide their work.

A program is one warp with two channels per thread. It walks down a strip of a few columns, and
every thread keeps the rows of the strip that the stencil needs, with one more column on either
side, in its own registers. So a pixel is read (COLUMNS + 2) / COLUMNS times, once from memory and
else from the caches, nothing is exchanged between threads, and sums over pixels need no reduction
in a program. How many columns: more cost registers, of which 96 a thread let 20 programs run on
a multiprocessor, fewer cost reads; maps of a 224² image are 56, 28, 14 and 7 wide.
"""
import functools
from typing import Tuple

import triton
import triton.language as tl
from torch import Tensor

from .launch import check_size

# Some three waves of 20 programs for each of the 132 multiprocessors of a large GPU.
_PROGRAMS = 8192


def strips(x: Tensor, columns: int) -> Tuple[Tuple[int], int, int, int]:
    """Cuts a field (B, C, H, W) into strips, as long as leaves work for the whole GPU.

    Returns:
        tuple: The grid; programs of each block of channels; rows and channels of a program.
    """
    # What torch.compile calls a size may be a symbol, which cannot be looked up.
    known = all(type(n) is int for n in x.shape)
    return (_cached_strips if known else _strips)(*x.shape, columns)


def _strips(batch: int, channels: int, height: int, width: int,
            columns: int) -> Tuple[Tuple[int], int, int, int]:
    check_size(batch, channels, height, width)
    block = min(64, triton.next_power_of_2(channels))
    blocks = triton.cdiv(channels, block)
    beside = triton.cdiv(width, columns)
    rows = height
    while rows >= 14 and batch * blocks * beside * triton.cdiv(height, rows) < _PROGRAMS:
        rows = triton.cdiv(rows, 2)
    partial = batch * beside * triton.cdiv(height, rows)
    return (partial * blocks, ), partial, rows, block


_cached_strips = functools.lru_cache(maxsize=None)(_strips)


@triton.jit
def place(H, W, C: tl.constexpr, rows, BLOCK: tl.constexpr, COLUMNS: tl.constexpr):
    """Of this program: sample, strip among those of all samples, first row, column, channels."""
    pid = tl.program_id(0)
    blocks: tl.constexpr = (C + BLOCK - 1) // BLOCK
    c = pid % blocks * BLOCK + tl.arange(0, BLOCK)
    strip = pid // blocks
    beside = tl.cdiv(W, COLUMNS)
    per_sample = beside * tl.cdiv(H, rows)
    i = strip % per_sample // beside * rows
    j = strip % beside * COLUMNS
    return (strip // per_sample).to(tl.int64), strip.to(tl.int64), i, j, c


@triton.jit
def inside(j, c, W, C: tl.constexpr, N: tl.constexpr):
    """Masks: which channels c of columns j, ... j + N - 1 exist."""
    masks = ()
    for n in tl.static_range(N):
        masks = masks + ((c < C) & (j + n >= 0) & (j + n < W), )
    return masks


@triton.jit
def load_row(x, i, j, c, masks, H, W, C: tl.constexpr):
    """x[i, j:j + len(masks)] of channels c in float32, one tensor a column; 0 outside."""
    left = x + (i * W + j) * C + c
    exists = (i >= 0) & (i < H)
    row = ()
    for n in tl.static_range(len(masks)):
        # n * C is added last: a constant, which costs no instruction.
        row = row + (tl.load(left + n * C, mask=masks[n] & exists, other=0).to(tl.float32), )
    return row


@triton.jit
def store_row(x, i, j, c, masks, W, C: tl.constexpr, row):
    """x[i, j:j + len(row)] of channels c = row, where masks say so."""
    left = x + (i * W + j) * C + c
    for n in tl.static_range(len(row)):
        tl.store(left + n * C, row[n].to(x.dtype.element_ty), mask=masks[n])
