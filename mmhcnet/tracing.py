"""Whether the code is being compiled or exported, asked in a way that both stacks have."""

import torch
import torch.fx
from torch import Tensor
from torch.autograd import forward_ad

# torch.compiler has it from 2.3 on. torch._dynamo had it before too, but takes a second to import.
is_compiling = getattr(torch.compiler, 'is_compiling', None) or torch._utils.is_compiling

# Whether torch.compile follows a torch.autograd.Function into its backward pass.
COMPILES_FUNCTIONS = tuple(int(part) for part in torch.__version__.split('.')[:2]) >= (2, 7)


def is_exporting() -> bool:
    """Whether a graph is being made to be run elsewhere: TorchScript, ONNX or torch.export."""
    # The flag behind torch.compiler.is_exporting is read, because torch.compile (2.10) takes that
    # function itself to be always true.
    return (
        torch.jit.is_tracing()
        or torch.jit.is_scripting()
        or torch.onnx.is_in_onnx_export()
        or getattr(torch.compiler, '_is_exporting_flag', False)
    )


def is_transforming() -> bool:
    """Whether vmap, grad, jvp or the like is at work, of torch.func or of forward-mode autograd."""
    return (
        torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0
    )


def is_symbolic(x: Tensor) -> bool:
    """Whether x stands for a tensor in a trace of torch.fx, where only the graph knows numbers."""
    return isinstance(x, torch.fx.Proxy)


# Of the batched tensors that torch.autograd makes; those of torch.func have another.
_BATCHED = torch._C._dispatch_key_parse('Batched')


def is_batched_gradient(dout: Tensor) -> bool:
    """Whether a backward pass takes many gradients at once.

    ``is_grads_batched=True`` of ``torch.autograd.grad`` does it, and ``vectorize=True`` of
    ``torch.autograd.functional.jacobian``.
    """
    return torch._C._dispatch_keys(dout).has(_BATCHED)
