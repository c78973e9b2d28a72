"""Products of (M, K) with a weight (N, K), the 1x1 convolutions of a channels-last map.

In float32 on a CPU they go through oneDNN, as convolutions do, because torch's own products go
through MKL there, which leaves AVX-512 unused on processors of other makers than its own: oneDNN
took half to a quarter of the time on one of AMD's. ``torch.ops.mkldnn._linear_pointwise`` is what
torch.compile calls for it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mmhcnet.tracing import COMPILES_FUNCTIONS, is_compiling

from .backend import on_gpu


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, 'none', [], '')


if COMPILES_FUNCTIONS:
    # In sight of torch.compile the operator would stand for the form into which it turns products
    # with weights that are constants.
    _opaque = torch.library.custom_op('mmhcnet::linear', _onednn, mutates_args=())

    @_opaque.register_fake
    def _(x, weight, bias=None):
        return x.new_empty(x.shape[0], weight.shape[0])


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return (_opaque if is_compiling() else _onednn)(x, weight, bias)


def _has_onednn() -> bool:
    try:
        return _onednn(torch.ones(1, 1), torch.ones(1, 1)).item() == 1
    except (AttributeError, RuntimeError):
        return False


_ONEDNN = _has_onednn()


def _through_onednn(x: Tensor) -> bool:
    # It takes no empty tensor.
    return (
        _ONEDNN
        and x.device.type == 'cpu'
        and x.dtype == torch.float32
        and x.shape[0] > 0
        and not on_gpu(x)
    )


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x weightᵀ + bias: (M, K) and (N, K) -> (M, N); records no autograd."""
    if _through_onednn(x):
        return _linear(x, weight, bias)
    return F.linear(x, weight, bias)


def product_backward(dy: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x and weight of :func:`product`: dy weight and dyᵀ x."""
    if _through_onednn(dy):
        return _linear(dy, weight.t()), _linear(dy.t(), x.t())
    return dy @ weight, dy.t() @ x


def column_sums(x: Tensor) -> Tensor:
    """Sum over the rows of (M, N): (N,), the gradient of a product's bias.

    A product on a GPU, where a reduction of half precision over rows runs far below the memory's
    bandwidth.
    """
    if on_gpu(x):
        return torch.mv(x.t(), x.new_ones(x.shape[0]))
    return x.sum(0)
