"""LayerNorm over the channels of a pixel, times SiLU of a gate.

Forward: one read of u and of the gate, one write of y, 6 bytes an element in 16 bits. Backward: one
read of dy, u and the gate, one write of du and of the gate's gradient, 10 bytes. The gate may be a
slice of the channels of a wider map, and so may the place for its gradient.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import on_device, operator, wrap_triton

# Elements that a program of 4 warps holds of each field: 16 a thread.
_TILE = 2048
# Programs of the backward at most: four for each of the 132 multiprocessors of a large GPU. Each
# leaves partial sums of two numbers a channel.
_PROGRAMS = 512


@triton.jit
def _load_rows(x, row, c, stride, rows, C: tl.constexpr):
    exists = (row < rows)[:, None] & (c < C)[None, :]
    return tl.load(x + row.to(tl.int64)[:, None] * stride + c[None, :], mask=exists, other=0).to(
        tl.float32
    )


@triton.jit
def _store_rows(x, row, c, stride, rows, C: tl.constexpr, values):
    exists = (row < rows)[:, None] & (c < C)[None, :]
    tl.store(
        x + row.to(tl.int64)[:, None] * stride + c[None, :],
        values.to(x.dtype.element_ty),
        mask=exists,
    )


@triton.jit
def _load_channels(t, c, C: tl.constexpr):
    return tl.load(t + c, mask=c < C, other=0).to(tl.float32)[None, :]


@triton.jit
def _sigmoid(g):
    # 1 / y as rsqrt(y)²: a division takes several times the instructions.
    root = tl.rsqrt(1 + tl.exp2(g * -1.442695))
    return root * root


@triton.jit(do_not_specialize=['rows'])
def _forward(
    u,
    gate,
    weight,
    bias,
    y,
    mean,
    rstd,
    eps,
    rows,
    gate_stride,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
):
    row = tl.program_id(0) * (TILE // BLOCK) + tl.arange(0, TILE // BLOCK)
    c = tl.arange(0, BLOCK)
    v = _load_rows(u, row, c, C, rows, C)
    m = tl.sum(v, 1) / C
    d = tl.where((c < C)[None, :], v - m[:, None], 0)
    r = tl.rsqrt(tl.sum(d * d, 1) / C + eps)
    out = d * r[:, None] * _load_channels(weight, c, C) + _load_channels(bias, c, C)
    if gate is not None:
        g = _load_rows(gate, row, c, gate_stride, rows, C)
        out *= g * _sigmoid(g)
    _store_rows(y, row, c, C, rows, C, out)
    tl.store(mean + row, m, mask=row < rows)
    tl.store(rstd + row, r, mask=row < rows)


@triton.jit(do_not_specialize=['rows', 'tiles'])
def _backward(
    dy,
    u,
    gate,
    weight,
    bias,
    mean,
    rstd,
    du,
    dgate,
    sums,
    rows,
    tiles,
    gate_stride,
    dgate_stride,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
):
    first = tl.program_id(0) * tiles
    c = tl.arange(0, BLOCK)
    w = _load_channels(weight, c, C)
    b = _load_channels(bias, c, C)
    w_sum = tl.zeros((TILE // BLOCK, BLOCK), tl.float32)
    b_sum = tl.zeros((TILE // BLOCK, BLOCK), tl.float32)
    for tile in range(first, first + tiles):
        row = tile * (TILE // BLOCK) + tl.arange(0, TILE // BLOCK)
        d = _load_rows(dy, row, c, C, rows, C)
        v = _load_rows(u, row, c, C, rows, C)
        m = tl.load(mean + row, mask=row < rows, other=0)[:, None]
        r = tl.load(rstd + row, mask=row < rows, other=0)[:, None]
        normalised = tl.where((c < C)[None, :], (v - m) * r, 0)
        if gate is not None:
            g = _load_rows(gate, row, c, gate_stride, rows, C)
            s = _sigmoid(g)
            # SiLU' = s (1 + g (1 - s)).
            _store_rows(
                dgate,
                row,
                c,
                dgate_stride,
                rows,
                C,
                d * (normalised * w + b) * s * (1 + g * (1 - s)),
            )
            d *= g * s
        b_sum += d
        w_sum += d * normalised
        d *= w
        shift = tl.sum(d, 1) / C
        slope = tl.sum(d * normalised, 1) / C
        _store_rows(du, row, c, C, rows, C, r * (d - shift[:, None] - normalised * slope[:, None]))
    sums += tl.program_id(0) * (2 * C) + c
    tl.store(sums, tl.sum(w_sum, 0), mask=c < C)
    tl.store(sums + C, tl.sum(b_sum, 0), mask=c < C)


def _row_stride(x: Tensor) -> int | None:
    """Elements from one pixel to the next, None where they are not evenly spaced."""
    _, height, width, channels = x.shape
    batch_stride, row_stride, stride, channel_stride = x.stride()
    even = row_stride == width * stride and batch_stride == height * row_stride
    return stride if even and channel_stride == 1 and stride >= channels else None


def _evenly_spaced(x: Tensor) -> tuple[Tensor, int]:
    stride = _row_stride(x)
    return (x.contiguous(), x.shape[-1]) if stride is None else (x, stride)


def _block(channels: int) -> tuple[int, int]:
    """Channels and elements of a tile."""
    block = triton.next_power_of_2(channels)
    return block, max(block, _TILE)


@operator('norm_gate_forward')
def norm_gate_forward(
    u: Tensor, gate: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`mmhcnet.ops.norm_gate_forward` as a fused kernel."""
    u = u.contiguous()
    channels = int(u.shape[-1])
    y = torch.empty_like(u)
    mean, rstd = (u.new_empty((*u.shape[:-1], 1), dtype=torch.float32) for _ in range(2))
    if u.numel() == 0:
        return y, mean.fill_(0), rstd.fill_(0)
    stride = 0
    if gate is not None:
        gate, stride = _evenly_spaced(gate)
    block, tile = _block(channels)
    rows = u.numel() // channels
    with on_device(u):
        wrap_triton(_forward, u)[(triton.cdiv(rows, tile // block),)](
            u,
            gate,
            weight.contiguous(),
            bias.contiguous(),
            y,
            mean,
            rstd,
            eps,
            rows,
            stride,
            channels,
            block,
            tile,
        )
    return y, mean, rstd


@operator('norm_gate_backward', mutates_args=('dgate',))
def _norm_gate_backward(
    dy: Tensor,
    u: Tensor,
    gate: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    rstd: Tensor,
    dgate: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """du, and the gradients of weight and bias, (2, C) in float32. Writes dgate."""
    dy, u = dy.contiguous(), u.contiguous()
    channels = int(u.shape[-1])
    du = torch.empty_like(u)
    if u.numel() == 0:
        return du, u.new_zeros((2, channels), dtype=torch.float32)
    stride = dgate_stride = 0
    if gate is not None:
        gate, stride = _evenly_spaced(gate)
        dgate_stride = _row_stride(dgate)
    block, tile = _block(channels)
    rows = u.numel() // channels
    tiles = triton.cdiv(rows, tile // block)
    programs = min(tiles, _PROGRAMS)
    tiles = triton.cdiv(tiles, programs)
    programs = triton.cdiv(rows, tiles * (tile // block))
    sums = u.new_empty((programs, 2, channels), dtype=torch.float32)
    with on_device(u):
        wrap_triton(_backward, u)[(programs,)](
            dy,
            u,
            gate,
            weight.contiguous(),
            bias.contiguous(),
            mean,
            rstd,
            du,
            dgate,
            sums,
            rows,
            tiles,
            stride,
            dgate_stride,
            channels,
            block,
            tile,
        )
    return du, sums.sum(0)


def norm_gate_backward(
    dy: Tensor,
    u: Tensor,
    gate: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    rstd: Tensor,
    dgate_out: Tensor | None,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """:func:`mmhcnet.ops.norm_gate_backward` as a fused kernel."""
    dgate = None
    if gate is not None:
        direct = dgate_out is not None and _row_stride(dgate_out) is not None
        dgate = (
            dgate_out if direct else torch.empty_like(gate, memory_format=torch.contiguous_format)
        )
    du, affine = _norm_gate_backward(dy, u, gate, weight, bias, mean, rstd, dgate)
    if dgate is not None and dgate_out is not None and dgate is not dgate_out:
        dgate = dgate_out.copy_(dgate)
    return du, dgate, affine[0], affine[1]
