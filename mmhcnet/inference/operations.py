"""How many operations a step issues on a GPU, counted without one."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from mmhcnet.ops.backend import standing_for_gpu

# They issue nothing.
_FREE = {
    'aten::detach',
    'aten::empty',
    'aten::empty_like',
    'aten::empty_strided',
    'aten::new_empty',
    'aten::new_empty_strided',
    'aten::_local_scalar_dense',
    'prim::device',
}


class _Counting(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.counts: Counter = Counter()

    def __torch_dispatch__(
        self, func: OpOverload, types: Sequence[type], args: tuple = (), kwargs: dict = None
    ) -> Any:
        schema = func._schema
        view = any(a.alias_info is not None and not a.alias_info.is_write for a in schema.arguments)
        if not view and schema.name not in _FREE:
            self.counts[schema.name] += 1
        return func(*args, **(kwargs or {}))


def count_operations(model: nn.Module, shape: Sequence[int], training: bool) -> Counter:
    """Operators that reach the dispatcher in a step, views and allocations not counted.

    Inference is that of a model and images in bfloat16; training is forward and backward under
    autocast to bfloat16, without the optimizer. Nothing is computed, and the model stays as it is.

    Args:
        model (nn.Module): Takes images, returns maps; in training mode if ``training``.
        shape (Sequence[int]): Of the images, (B, C, H, W).
        training (bool): Training or inference.

    Returns:
        Counter: How often each operator is called, by its name.
    """
    dtype = torch.float32 if training else torch.bfloat16
    counting = _Counting()
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, standing_for_gpu():
        weights = {}
        for name, weight in model.state_dict(keep_vars=True).items():
            kind = dtype if weight.is_floating_point() else weight.dtype
            weights[name] = fake.from_tensor(weight.detach().to(kind)).requires_grad_(
                training and weight.requires_grad
            )
        image = torch.empty(*shape, dtype=dtype)

        def step() -> None:
            with torch.set_grad_enabled(training):
                with torch.autocast('cpu', torch.bfloat16, enabled=training):
                    maps = functional_call(model, weights, (image,))
                if training:
                    means = [x.float().mean() for x in maps]
                    sum(means[1:], means[0]).backward()
            for weight in weights.values():
                weight.grad = None

        # What is made once and kept, as the tables of vHeat's DCT, is not of every step.
        step()
        with counting:
            step()
    return counting.counts
