"""How the two 3x3 stencils, heat step and depthwise convolution, divide their work.

A program is one warp with four channels per thread: 8 bytes at a time in 16 bits. Where a block of
channels is less than a warp takes, it works on several samples at once, at the same pixels: all
that concerns pixels is then the same for all threads. The warp walks down a strip of a few
columns, and every thread keeps the rows of the strip that the stencil needs, with one more column
on either side, in its own registers. So a pixel is read (COLUMNS + 2) / COLUMNS times, once from
memory and else from the caches, nothing is exchanged between threads, and sums over pixels need no
reduction in a program. The next row is on its way while one is worked on. How many columns: more
cost registers, fewer cost reads; maps of a 224² image are 56, 28, 14 and 7 wide.
"""

import functools
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from .launch import check_size, known

_LANES = 128


class Strips(NamedTuple):
    """How a field (B, C, H, W) is cut into strips.

    ``of_sample`` strips of so many ``rows`` cover a block of channels of a sample. ``layout`` are
    the constants of a kernel: channels of a block, samples of a program, columns of a strip, and
    whether all strips have as many.
    """

    grid: tuple[int]
    of_sample: int
    rows: int
    layout: tuple[int, int, int, bool]


def _strips(
    batch: int,
    channels: int,
    height: int,
    width: int,
    columns: tuple[int, ...],
    programs: int,
    least_rows: int,
) -> Strips:
    check_size(batch, channels, height, width)
    block = min(_LANES, channels & -channels)
    samples = _LANES // block
    if block < 32 or batch % samples:
        block, samples = min(_LANES, triton.next_power_of_2(channels)), 1
    columns = min(columns, key=lambda n: triton.cdiv(width, n) * n)
    beside = triton.cdiv(width, columns) * triton.cdiv(channels, block) * (batch // samples)
    rows = height
    while triton.cdiv(rows, 2) >= least_rows and beside * triton.cdiv(height, rows) < programs:
        rows = triton.cdiv(rows, 2)
    below = triton.cdiv(height, rows)
    return Strips(
        (beside * below,),
        triton.cdiv(width, columns) * below,
        rows,
        (block, samples, columns, width % columns == 0),
    )


_cached_strips = functools.lru_cache(maxsize=None)(_strips)


def strips(x: Tensor, columns: tuple[int, ...], programs: int, least_rows: int) -> Strips:
    """Cuts a field (B, C, H, W) into strips.

    Args:
        x (Tensor): The field.
        columns (tuple[int]): Widths of a strip that a kernel can have, the best one first. The
            one that fits W best is taken.
        programs (int): Strips are shortened until there is work for so many,
        least_rows (int): or they would have less rows than this.
    """
    batch, channels, height, width = x.shape
    if known(x):
        return _cached_strips(batch, channels, height, width, columns, programs, least_rows)
    # A choice would hold for some sizes only, and make a graph of its own for them.
    check_size(batch, channels, height, width)
    channels = int(channels)
    block, rows = min(_LANES, triton.next_power_of_2(channels)), 2 * least_rows
    of_sample = triton.cdiv(width, columns[0]) * triton.cdiv(height, rows)
    return Strips(
        (of_sample * triton.cdiv(channels, block) * batch,),
        of_sample,
        rows,
        (block, 1, columns[0], False),
    )


@triton.jit
def place(
    H, W, rows, C: tl.constexpr, BLOCK: tl.constexpr, SAMPLES: tl.constexpr, COLUMNS: tl.constexpr
):
    """Of this program: samples, strips among those of all samples, first row, column, channels.

    Samples, strips and channels are those of every lane.
    """
    pid = tl.program_id(0)
    lane = tl.arange(0, SAMPLES * BLOCK)
    blocks: tl.constexpr = (C + BLOCK - 1) // BLOCK
    c = pid % blocks * BLOCK + lane % BLOCK
    beside = tl.cdiv(W, COLUMNS)
    of_sample = beside * tl.cdiv(H, rows)
    strip = pid // blocks
    sample = (strip // of_sample * SAMPLES + lane // BLOCK).to(tl.int64)
    strip = strip % of_sample
    return sample, sample * of_sample + strip, strip // beside * rows, strip % beside * COLUMNS, c


@triton.jit
def load_row(
    x, i, j, c, stop, W, C: tl.constexpr, N: tl.constexpr, MARGIN: tl.constexpr, WHOLE: tl.constexpr
):
    """x[i, j:j + N] of channels c in float32, one tensor a column; 0 outside and from row stop on.

    N includes a MARGIN on either side. With WHOLE strips only the margins can be outside.
    """
    first = x + (i * W + j) * C
    exists = (i >= 0) & (i < stop) & (c < C)
    row = ()
    for n in tl.static_range(N):
        mask = exists
        # In pairs: Triton 3.3 takes no longer chain.
        if (not WHOLE or n < MARGIN) or n >= N - MARGIN:
            mask = exists & (j + n >= 0) & (j + n < W)
        # n * C is added last: a constant, which costs no instruction.
        row = row + (tl.load(first + n * C, mask=mask, other=0).to(tl.float32),)
    return row


@triton.jit
def store_row(x, i, j, c, exists, W, C: tl.constexpr, row, WHOLE: tl.constexpr):
    """x[i, j:j + len(row)] of channels c = row, if the row exists."""
    first = x + (i * W + j) * C
    for n in tl.static_range(len(row)):
        mask = exists & (c < C)
        if not WHOLE:
            mask = mask & (j + n < W)
        tl.store(first + n * C, row[n].to(x.dtype.element_ty), mask=mask)
