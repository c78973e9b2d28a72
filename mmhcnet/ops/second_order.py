"""Derivatives of the derivatives of functions whose backward is written by hand."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def gradients(
    function: Callable[..., Tensor],
    inputs: Sequence[Tensor | None],
    wanted: Sequence[bool],
    dout: Tensor,
) -> tuple[Tensor | None, ...]:
    """Gradients of a function that can be differentiated again.

    For the backward pass of a ``torch.autograd.Function`` when it is called with
    ``create_graph=True``: the plain form of the function is run and left to autograd.

    Args:
        function (Callable): Takes the inputs; built of differentiable operations.
        inputs (Sequence[Tensor, optional]): The saved inputs of the ``Function``.
        wanted (Sequence[bool]): For which of them a gradient is asked.
        dout (Tensor): Gradient of the function's output.

    Returns:
        tuple[Tensor, optional]: One for each input; None where it is not asked for.
    """
    asked = [t for t, is_asked in zip(inputs, wanted) if is_asked]
    found = iter(torch.autograd.grad(function(*inputs), asked, dout, create_graph=True))
    return tuple(next(found) if is_asked else None for is_asked in wanted)
