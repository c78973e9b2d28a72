"""The backward pass of functions that have one written by hand, where that one does not serve."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mmhcnet.tracing import is_batched_gradient, is_compiling, is_transforming


def wants_plain_backward(dout: Tensor) -> bool:
    """Whether a backward pass is to be differentiated again, or takes many gradients at once."""
    return not is_compiling() and (
        torch.is_grad_enabled() or is_transforming() or is_batched_gradient(dout)
    )


def gradients(
    function: Callable[..., Tensor],
    inputs: Sequence[Tensor | None],
    wanted: Sequence[bool],
    dout: Tensor,
    autocast: torch.dtype | None,
) -> tuple[Tensor | None, ...]:
    """Gradients of a function by autograd, for where :func:`wants_plain_backward` says so.

    The plain form of the function is run once more. The gradients can be differentiated again if
    gradients are enabled where this is called.

    Args:
        function (Callable): Takes the inputs; built of differentiable operations.
        inputs (Sequence[Tensor, optional]): The saved inputs of the ``Function``.
        wanted (Sequence[bool]): For which of them a gradient is asked.
        dout (Tensor): Gradient of the function's output.
        autocast (torch.dtype, optional): Of the autocast that the forward pass ran under.

    Returns:
        tuple[Tensor, optional]: One for each input; None where it is not asked for.
    """
    asked = [t for t, is_asked in zip(inputs, wanted) if is_asked]
    again = torch.is_grad_enabled()
    with (
        torch.enable_grad(),
        torch.autocast(dout.device.type, autocast, autocast is not None),
    ):
        found = iter(torch.autograd.grad(function(*inputs), asked, dout, create_graph=again))
    return tuple(next(found) if is_asked else None for is_asked in wanted)
