"""The dtype that a whole-block function computes in, and one operation for many casts."""

import contextlib
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from mmhcnet.tracing import is_compiling


def autocast_dtype(device: str) -> torch.dtype | None:
    """The dtype of the autocast that is on for a type of device, else None."""
    if device == 'meta':
        return None
    if hasattr(torch, 'get_autocast_dtype'):  # torch 2.4
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    if device == 'cuda':
        return torch.get_autocast_gpu_dtype() if torch.is_autocast_enabled() else None
    return torch.get_autocast_cpu_dtype() if torch.is_autocast_cpu_enabled() else None


def no_autocast(device: str) -> contextlib.AbstractContextManager:
    """Where dtypes are what the code says; tensors without data know no autocast."""
    return contextlib.nullcontext() if device == 'meta' else torch.autocast(device, enabled=False)


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype of matrix products on x: autocast's where it is on and casts x, else x's own."""
    autocast = autocast_dtype(x.device.type)
    return x.dtype if autocast is None or x.dtype == torch.float64 else autocast


_Tensor = TypeVar('_Tensor', Tensor, Tensor | None)


def cast(tensors: Sequence[_Tensor], dtype: torch.dtype) -> list[_Tensor]:
    """Every tensor in a dtype: itself where it has it, else copies, made by one operation."""
    return _cast(tensors, [dtype] * len(tensors))


def cast_like(tensors: Sequence[_Tensor], others: Sequence[Tensor | None]) -> list[_Tensor]:
    """As :func:`cast`, every tensor in the dtype of its counterpart."""
    dtypes = [None if other is None else other.dtype for other in others]
    return _cast(tensors, dtypes)


def _cast(tensors: Sequence, dtypes: Sequence[torch.dtype | None]) -> list:
    result = list(tensors)
    changes = [
        (i, t, dtype)
        for i, (t, dtype) in enumerate(zip(tensors, dtypes))
        if t is not None and t.dtype != dtype
    ]
    if len(changes) < 2 or is_compiling() or not hasattr(torch, '_foreach_copy_'):
        for i, t, dtype in changes:
            result[i] = t.to(dtype)
        return result
    copies = [torch.empty_like(t, dtype=dtype) for _, t, dtype in changes]
    torch._foreach_copy_(copies, [t for _, t, _ in changes])
    for (i, *_), copy in zip(changes, copies):
        result[i] = copy
    return result
