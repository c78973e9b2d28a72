"""Whether the code is being compiled or exported, asked in a way that both stacks have."""
import torch

# torch.compiler has it from 2.3 on. torch._dynamo had it before too, but takes a second to import.
is_compiling = getattr(torch.compiler, 'is_compiling', None) or torch._utils.is_compiling


def is_exporting() -> bool:
    """Whether a graph is being made to be run elsewhere: TorchScript, ONNX or torch.export."""
    # The flag behind torch.compiler.is_exporting is read, because torch.compile (2.10) takes that
    # function itself to be always true.
    return (torch.jit.is_tracing() or torch.jit.is_scripting() or torch.onnx.is_in_onnx_export()
            or getattr(torch.compiler, '_is_exporting_flag', False))
