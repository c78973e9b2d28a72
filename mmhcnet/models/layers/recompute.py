from typing import Any, Callable

import torch
from torch.utils.checkpoint import checkpoint


def recompute(part: Callable, *inputs: Any) -> Any:
    """``part(*inputs)``, which keeps its inputs for the backward pass and computes the rest again.

    Meant for a few cheap operations before a matrix product: the product's input is what takes
    memory, and the product itself is not repeated, because the second forward pass stops as soon
    as all that the backward pass needs is there (non-reentrant checkpointing). ``part`` has to be
    deterministic. Where no gradient is asked for, and in a traced graph, it is simply called.

    Args:
        part (Callable): Takes and returns tensors.
        inputs (Any): Its arguments.
    """
    # Tensors without data have no memory to save, and torch 2.1 cannot checkpoint them.
    without_data = any(isinstance(x, torch.Tensor) and x.is_meta for x in inputs)
    if not torch.is_grad_enabled() or torch.jit.is_tracing() or without_data:
        return part(*inputs)
    return checkpoint(part, *inputs, use_reentrant=False, preserve_rng_state=False)
