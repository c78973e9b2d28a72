"""How the two 3x3 stencils, heat step and depthwise convolution, divide their work.

A program is one warp with two channels per thread. It walks down a strip of a few columns, and
every thread keeps the rows of the strip that the stencil needs, with one more column on either
side, in its own registers. So a pixel is read (COLUMNS + 2) / COLUMNS times, once from memory and
else from the caches, nothing is exchanged between threads, and sums over pixels need no reduction
in a program. How many columns: more cost registers, of which 96 a thread let 20 programs run on
a multiprocessor, fewer cost reads; maps of a 224² image are 56, 28, 14 and 7 wide.
"""
from typing import NamedTuple, Tuple

import triton
import triton.language as tl
from torch import Tensor

from .launch import check_size

# Some three waves of 20 programs for each of the 132 multiprocessors of a large GPU.
_PROGRAMS = 8192


class Strips(NamedTuple):
    """Programs that cover a field: ``grid`` in all, ``partial`` for each block of channels."""
    grid: Tuple[int]
    partial: int
    rows: int
    block: int


def strips(x: Tensor, columns: int) -> Strips:
    """Cuts a field (B, C, H, W) into strips, as long as leaves work for the whole GPU."""
    batch, channels, height, width = x.shape
    check_size(x)
    block = min(64, triton.next_power_of_2(channels))
    blocks = triton.cdiv(channels, block)
    beside = triton.cdiv(width, columns)
    rows = height
    while rows >= 14 and batch * blocks * beside * triton.cdiv(height, rows) < _PROGRAMS:
        rows = triton.cdiv(rows, 2)
    partial = batch * beside * triton.cdiv(height, rows)
    return Strips((partial * blocks, ), partial, rows, block)


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
