"""Which implementation an operator runs: a fused Triton kernel or plain torch."""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from mmhcnet.tracing import is_compiling, is_exporting, is_transforming

BACKENDS = ('auto', 'triton', 'torch')
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


# The kernels use tuples, which are of Triton 3.3, the one of torch 2.7. Looked up once, not in a
# function: torch.compile could not trace it.
_INSTALLED = (
    tuple(int(part) for part in torch.__version__.split('.')[:2]) >= (2, 7)
    and importlib.util.find_spec('triton') is not None
)

_STANDS_FOR_GPU: ContextVar[bool] = ContextVar('standing_for_gpu', default=False)


def _interpreted() -> bool:
    return os.environ.get('TRITON_INTERPRET') == '1'


@contextmanager
def standing_for_gpu() -> Iterator[None]:
    """Within it every tensor counts as one on a GPU.

    For tensors without data, of ``torch._subclasses.FakeTensorMode``: nothing is launched, and what
    would be can be counted.
    """
    token = _STANDS_FOR_GPU.set(True)
    try:
        yield
    finally:
        _STANDS_FOR_GPU.reset(token)


def on_gpu(x: Tensor) -> bool:
    """Whether ``x`` is on a GPU, or stands for a tensor that is."""
    # torch.compile cannot trace a context variable.
    return x.is_cuda or not is_compiling() and _STANDS_FOR_GPU.get()


def use_triton(backend: str, x: Tensor, *parameters: Tensor) -> bool:
    """Whether to run the Triton kernel of an operator on ``x``.

    'auto' does for CUDA tensors in float32, float16 and bfloat16, where Triton is installed and
    nothing is being exported, or transformed by torch.func or forward-mode autograd. 'torch' never
    does.

    Args:
        backend (str): 'auto', 'triton' or 'torch'.
        x (Tensor): The operator's field.
        parameters (Tensor): The operator's other inputs. Their dtypes may differ.

    Raises:
        ValueError: Unknown ``backend``.
        RuntimeError: 'triton' where it cannot run; the message says why.
    """
    if backend not in BACKENDS:
        raise ValueError(f'backend must be one of {BACKENDS}, got {backend!r}')
    if backend == 'torch':
        return False
    on_device = on_gpu(x) or backend == 'triton' and _interpreted()
    others = [t.dtype for t in (x, *parameters) if t.dtype not in _DTYPES]
    if backend == 'auto':
        return (
            on_device
            and not others
            and _INSTALLED
            and not is_exporting()
            and (is_compiling() or not is_transforming())
        )
    if not _INSTALLED:
        raise RuntimeError(
            "backend='triton' needs torch 2.7 or newer and the package triton: "
            "install them, or use backend='auto'"
        )
    if not on_device:
        raise RuntimeError(
            f"backend='triton' needs a tensor on a GPU, got one on {x.device}: move "
            "it there, or use backend='auto' (TRITON_INTERPRET=1 runs the kernels "
            'on the CPU, slowly, for tests)'
        )
    if others:
        raise RuntimeError(
            f"backend='triton' works in {_DTYPES}, got {others[0]}: use backend='auto'"
        )
    return True


def needs_gradient(*inputs: Tensor) -> bool:
    """Whether autograd is to record what is computed from these."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in inputs)


def check_offset(x: Tensor, offset: Tensor | None) -> None:
    """Raises a ValueError unless ``offset`` is None, (B, C) or (1, C) for ``x`` (B, C, H, W)."""
    if offset is not None and (
        offset.dim() != 2 or offset.shape[1] != x.shape[1] or offset.shape[0] not in (1, x.shape[0])
    ):
        raise ValueError(
            f'a number per channel must be (B, C) = {tuple(x.shape[:2])} or (1, C), '
            f'got {tuple(offset.shape)}'
        )
