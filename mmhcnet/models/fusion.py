"""Which of a block's two forms runs: its layers one by one, or one fused function.

The plain form calls every layer, so that whatever acts on modules sees and can swap it. The fused
form issues fewer operations and keeps less for the backward pass. It runs only where nobody can
tell the difference: where something hooks, wraps, replaces or differentiates a layer in a way that
needs it to be called, the plain form runs. :func:`plain_form` chooses it by hand.
"""

from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from mmhcnet.models.layers import (
    DropPath,
    GroupNorm1,
    HeatConduction,
    Mlp,
    Refinement,
    SpectralConduction,
)
from mmhcnet.tracing import (
    COMPILES_FUNCTIONS,
    is_compiling,
    is_exporting,
    is_symbolic,
    is_transforming,
)

_LAYERS = {
    nn.Conv2d,
    nn.Dropout,
    nn.GELU,
    nn.LayerNorm,
    nn.Linear,
    DropPath,
    GroupNorm1,
    HeatConduction,
    Mlp,
    Refinement,
    SpectralConduction,
}
_GLOBAL_HOOKS = [
    getattr(torch_module, name)
    for name in (
        '_global_forward_hooks',
        '_global_forward_pre_hooks',
        '_global_backward_hooks',
        '_global_backward_pre_hooks',
    )
]
_HOOKS = ('_forward_hooks', '_forward_pre_hooks', '_backward_hooks', '_backward_pre_hooks')


def may_fuse(block: nn.Module, x: Tensor) -> bool:
    """Whether the layers of a block are as they were built, and nothing needs them to be called.

    A hook on the block itself does not count: the block is called in either form.

    Args:
        block (nn.Module): The block.
        x (Tensor): What it is called with.
    """
    if not block.fused or is_exporting() or any(_GLOBAL_HOOKS):
        return False
    if is_compiling():
        if not COMPILES_FUNCTIONS:
            return False
    elif is_transforming() or is_symbolic(x):
        return False
    return (
        'forward' not in block.__dict__
        and _ordinary(block)
        and all(map(_untouched, block._modules.values()))
    )


def _untouched(layer: nn.Module) -> bool:
    if layer is None:
        return True
    return (
        type(layer) in _LAYERS
        and 'forward' not in layer.__dict__
        and not any(getattr(layer, hooks) for hooks in _HOOKS)
        and _as_built(layer)
        and _ordinary(layer)
        and all(map(_untouched, layer._modules.values()))
    )


def _ordinary(module: nn.Module) -> bool:
    """Whether parameters hold numbers themselves: a quantised or distributed tensor does not."""
    return not any(map(is_traceable_wrapper_subclass, module._parameters.values()))


def _as_built(layer: nn.Module) -> bool:
    """Whether a layer that has settings has those of the blocks."""
    if type(layer) is nn.Conv2d:
        groups, kernel_size, padding = (
            (1, (1, 1), (0, 0)) if layer.groups == 1 else (layer.in_channels, (3, 3), (1, 1))
        )
        return (
            layer.groups == groups
            and layer.kernel_size == kernel_size
            and layer.padding == padding
            and layer.stride == (1, 1)
            and layer.dilation == (1, 1)
            and layer.padding_mode == 'zeros'
        )
    if type(layer) is nn.GELU:
        return layer.approximate == 'none'
    if type(layer) is nn.LayerNorm:
        return layer.weight is not None and layer.bias is not None
    return True


def plain_form(model: nn.Module) -> nn.Module:
    """Makes all blocks in a model call their layers, whatever else holds. Returns the model."""
    for module in model.modules():
        if hasattr(module, 'fused'):
            module.fused = False
    return model
