"""What every fused operator does around its kernels."""
from contextlib import AbstractContextManager

import torch
from torch import Tensor


def channels_last(x: Tensor) -> Tensor:
    """x itself where its memory is channels last, else a copy."""
    return x.contiguous(memory_format=torch.channels_last)


def empty_like(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A result, channels last whatever the layout of x: the fake and the real one agree."""
    return torch.empty_like(x, dtype=dtype, memory_format=torch.channels_last)


def on_device(x: Tensor) -> AbstractContextManager:
    """Triton launches on the current device, which need not be that of x."""
    return torch.cuda.device_of(x)


def check_size(x: Tensor) -> None:
    """Offsets within a sample are 32-bit numbers in the kernels, between samples 64-bit ones.

    Raises:
        ValueError: A sample of x has 2³⁰ elements or more.
    """
    if x.numel() >= 2**30 * x.shape[0]:
        raise ValueError(f'the fused kernels take samples of less than 2³⁰ elements, got '
                         f"{tuple(x.shape)}: use backend='torch'")
