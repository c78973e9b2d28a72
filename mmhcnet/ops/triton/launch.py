"""What every fused operator does around its kernels."""

import contextlib
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mmhcnet.tracing import is_compiling

# Triton reads the variable when a kernel is defined, once for all.
INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'
_PLAIN = (Tensor, torch.nn.Parameter)
_HERE = contextlib.nullcontext()


def operator(name: str, mutates_args: Sequence[str] = ()) -> Callable:
    """Registers a function that launches kernels as the operator ``mmhcnet::name``.

    It is a ``torch.library.triton_op``: torch.compile sees the kernels in it, launches them itself
    and can record them in a CUDA graph. What takes the function's place calls the operator only
    where something watches, because the dispatcher's way through Python costs several times what
    the launch does; plain tensors go straight to the function. Autograd watches where it is asked
    to record: the operator has no formula for it and says so when it is differentiated.
    """

    def register(function: Callable) -> Callable:
        if INTERPRETED:
            op = torch.library.custom_op(f'mmhcnet::{name}', function, mutates_args=mutates_args)
            op.register_fake(function)
        else:
            op = torch.library.triton_op(f'mmhcnet::{name}', function, mutates_args=mutates_args)

        @functools.wraps(function)
        def call(x: Tensor, *args: Any) -> Any:
            watched = (
                is_compiling()
                or type(x) not in _PLAIN
                or torch._C._len_torch_dispatch_stack()
                or torch.is_grad_enabled()
                and any(isinstance(t, Tensor) and t.requires_grad for t in (x, *args))
            )
            return (op if watched else function)(x, *args)

        return call

    return register


class _Nothing:
    """In the interpreter's place where tensors have no data."""

    def __getitem__(self, grid: tuple) -> Callable:
        return lambda *args, **options: None


def wrap_triton(kernel: Any, x: Tensor) -> Any:
    """``torch.library.wrap_triton``, but the kernel itself where x is a plain tensor.

    torch finds the kernels of an operator by this name in its source.
    """
    if type(x) in _PLAIN:
        return kernel
    return _Nothing() if INTERPRETED else torch.library.wrap_triton(kernel)


def channels_last(x: Tensor) -> Tensor:
    """x itself where its memory is channels last, else a copy."""
    return x.contiguous(memory_format=torch.channels_last)


def empty_like(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A result, channels last whatever the layout of x: the fake and the real one agree."""
    return torch.empty_like(x, dtype=dtype, memory_format=torch.channels_last)


def on_device(x: Tensor) -> contextlib.AbstractContextManager:
    """Triton launches on the current device, which need not be that of x."""
    # Not initialised: x is a stand-in on a machine without a GPU.
    if (
        not x.is_cuda
        or not torch.cuda.is_initialized()
        or (x.device.index == torch.cuda.current_device())
    ):
        return _HERE
    return torch.cuda.device(x.device)


def known(x: Tensor) -> bool:
    """Whether B, H and W of x are numbers, not symbols that torch.compile keeps open."""
    batch, _, height, width = x.shape
    return type(batch) is type(height) is type(width) is int


def check_size(batch: int, *sample: int) -> None:
    """Offsets within a sample are 32-bit numbers in the kernels, between samples 64-bit ones.

    Raises:
        ValueError: A sample has 2³⁰ elements or more.
    """
    elements = 1
    for n in sample:
        elements *= n
    if elements >= 2**30:
        raise ValueError(
            'the fused kernels take samples of less than 2³⁰ elements, got '
            f"{(batch, *sample)}: use backend='torch'"
        )
