"""Fused kernels against their plain-torch references, and against a copy of the same bytes.

For the maps of HcNet-T's four stages and of vHeat-T's: time of a kernel, the ratio of its
reference's time to it, and the share of the measured copy bandwidth that it reaches. Bytes are
those that it reads and writes, each field once; a norm over a whole sample reads it twice. Sums
over pixels, and the kernels that add up partial ones, are in the time but not in the bytes. Written
for a GPU; on a CPU the references are compared with themselves.
"""

import argparse
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from mmhcnet import ops
from mmhcnet.inference.timing import timed

# C and H = W of the stages at 224x224.
HCNET_T = ((64, 56), (128, 28), (320, 14), (512, 7))
VHEAT_T = ((96, 56), (192, 28), (384, 14), (768, 7))


class Case(NamedTuple):
    """A kernel on a field of so many channels; ``passes``: fields that it reads and writes."""

    name: str
    channels: int
    passes: int
    inputs: tuple


def cases(batch: int, dtype: torch.dtype, device: str) -> Iterator[tuple[int, Case]]:
    """Size of a map, and what to run on it."""

    def field(channels: int, size: int) -> Tensor:
        x = torch.randn(batch, channels, size, size, device=device, dtype=dtype)
        return x.contiguous(memory_format=torch.channels_last)

    def parameter(*shape: int) -> Tensor:
        return torch.rand(shape, device=device, dtype=dtype)

    for c, size in HCNET_T:
        z, w, k = field(c, size), parameter(c, 4), parameter(batch, c, 1, 1)
        yield size, Case('heat_step_forward', c, 2, (z, w, k))
        yield size, Case('heat_step_sums', c, 2, (z, z, w, k))
        yield size, Case('heat_step_transposed', c, 2, (z, w, k))
        gamma, statistic = parameter(c), torch.ones(batch, device=device)
        yield size, Case('group_norm_1_forward', c, 3, (z, gamma, gamma, 1e-5))
        yield size, Case('group_norm_1_backward', c, 5, (z, z, gamma, statistic, statistic))
        p, taps = field(4 * c, size), parameter(4 * c, 1, 3, 3)
        yield size, Case('gelu_dwconv_forward', 4 * c, 2, (p, taps))
        yield size, Case('gelu_dwconv_backward', 4 * c, 3, (p, p, taps))
    for c, size in VHEAT_T:
        u, gamma = field(c, size).permute(0, 2, 3, 1), parameter(c)
        gate = field(2 * c, size).permute(0, 2, 3, 1)[..., c:]
        statistic = torch.ones(*u.shape[:3], 1, device=device)
        yield size, Case('norm_gate_forward', c, 3, (u, gate, gamma, gamma, 1e-5))
        yield (
            size,
            Case('norm_gate_backward', c, 5, (u, u, gate, gamma, gamma, statistic, statistic)),
        )


def seconds(function: Callable, inputs: tuple, device: str) -> float:
    """Median of five timings of about a tenth of a second each."""

    def step() -> None:
        function(*inputs)

    for _ in range(3):
        step()
    repeats = max(1, round(0.1 / timed(step, 3, device)))
    return sorted(timed(step, repeats, device) for _ in range(5))[2]


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--batch', type=int, default=128)
    parser.add_argument('--dtype', choices=['float32', 'float16', 'bfloat16'], default='bfloat16')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    args = parser.parse_args()
    dtype = getattr(torch, args.dtype)

    source = torch.empty(2**27 if args.device != 'cpu' else 2**25, device=args.device)
    target = torch.empty_like(source)
    moved = 2 * source.numel() * source.element_size()
    copy = moved / min(timed(lambda: target.copy_(source), 5, args.device) for _ in range(5))
    print(
        f'torch {torch.__version__}, {args.device}, {args.dtype}, batch {args.batch}; '
        f'copy: {copy / 1e9:.0f} GB/s\n'
    )
    print('| kernel | C, H = W | microseconds | reference / kernel | share of copy |')
    print('|' + ' --- |' * 5)
    for size, case in cases(args.batch, dtype, args.device):
        ours = seconds(getattr(ops, case.name), case.inputs, args.device)
        theirs = seconds(getattr(ops, f'{case.name}_ref'), case.inputs, args.device)
        field = case.passes * args.batch * case.channels * size**2 * dtype.itemsize
        print(
            f'| {case.name} | {case.channels}, {size} | {1e6 * ours:.1f} | {theirs / ours:.2f} | '
            f'{100 * field / ours / copy:.0f} % |',
            flush=True,
        )


if __name__ == '__main__':
    main()
