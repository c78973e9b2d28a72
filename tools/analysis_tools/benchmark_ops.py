"""Fused operators against their plain-torch references, and against a copy of the same bytes.

For the maps of HcNet-T's four stages: time of an operator, forward and forward plus backward, the
ratio of its reference's time to it, and the share of the measured copy bandwidth that it reaches.
Bytes are those that have to be read and written once: forward the field in and out (a norm reads it
twice), backward also the gradients. Written for a GPU; on a CPU the operators' plain-torch forms
are compared.
"""
import argparse
from typing import Callable, Dict, Tuple

import torch
from torch import Tensor

from mmhcnet import ops
from mmhcnet.inference.timing import timed

# C and H = W of HcNet-T's stages at 224x224.
STAGES = ((64, 56), (128, 28), (320, 14), (512, 7))
# Passes over the field: forward; forward and backward.
PASSES = dict(heat_step=(2, 5), gelu_dwconv=(2, 5), group_norm_1=(3, 8))


def operators(batch: int, channels: int, size: int, dtype: torch.dtype,
              device: str) -> Dict[str, Tuple[int, Callable, Callable, tuple]]:
    """Width, operator, reference and arguments of each operator for one stage."""
    def field(c: int) -> Tensor:
        x = torch.randn(batch, c, size, size, device=device, dtype=dtype)
        return x.contiguous(memory_format=torch.channels_last).requires_grad_()

    def parameter(*shape: int) -> Tensor:
        return torch.rand(shape, device=device, dtype=dtype).requires_grad_()

    return {
        'heat_step': (channels, ops.heat_step, ops.heat_step_ref, (
            field(channels), parameter(channels, 4), parameter(batch, channels, 1, 1))),
        'gelu_dwconv': (4 * channels, ops.gelu_dwconv, ops.gelu_dwconv_ref, (
            field(4 * channels), parameter(4 * channels, 1, 3, 3))),
        'group_norm_1': (channels, ops.group_norm_1, ops.group_norm_1_ref, (
            field(channels), parameter(channels), parameter(channels))),
    }


def seconds(function: Callable, inputs: tuple, backward: bool, device: str) -> float:
    """Median of five timings of about a tenth of a second each."""
    gradient = torch.ones_like(inputs[0])

    def step() -> None:
        if backward:
            torch.autograd.grad(function(*inputs), inputs, gradient)
        else:
            with torch.no_grad():
                function(*inputs)

    for _ in range(3):
        step()
    repeats = max(1, round(0.1 / timed(step, 3, device)))
    return sorted(timed(step, repeats, device) for _ in range(5))[2]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--batch', type=int, default=128)
    parser.add_argument('--dtype', choices=['float32', 'float16', 'bfloat16'], default='bfloat16')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    args = parser.parse_args()
    dtype = getattr(torch, args.dtype)

    source = torch.empty(2**27 if args.device != 'cpu' else 2**25, device=args.device)
    target = torch.empty_like(source)
    moved = 2 * source.numel() * source.element_size()
    copy = moved / min(timed(lambda: target.copy_(source), 5, args.device) for _ in range(5))
    print(f'torch {torch.__version__}, {args.device}, {args.dtype}, batch {args.batch}; '
          f'copy: {copy / 1e9:.0f} GB/s\n')
    print('| operator | C, H = W | pass | microseconds | reference / operator | share of copy |')
    print('|' + ' --- |' * 6)
    for channels, size in STAGES:
        for name, (width, function, reference, inputs) in operators(
                args.batch, channels, size, dtype, args.device).items():
            field = inputs[0].numel() * inputs[0].element_size()
            for backward, passes in zip((False, True), PASSES[name]):
                ours = seconds(function, inputs, backward, args.device)
                theirs = seconds(reference, inputs, backward, args.device)
                print(f'| {name} | {width}, {size} | {"both" if backward else "forward"} | '
                      f'{1e6 * ours:.1f} | {theirs / ours:.2f} | '
                      f'{100 * passes * field / ours / copy:.0f} % |', flush=True)


if __name__ == '__main__':
    main()
