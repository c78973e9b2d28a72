"""GELU followed by a depthwise 3x3 convolution, the middle of HcNet's refinement layer."""
import torch.nn.functional as F
from torch import Tensor

from .backend import use_triton


def gelu_dwconv_ref(x: Tensor, weight: Tensor) -> Tensor:
    """:func:`gelu_dwconv` in plain torch."""
    return F.conv2d(F.gelu(x), weight, padding=1, groups=x.shape[1])


def gelu_dwconv(x: Tensor, weight: Tensor, backend: str = 'auto') -> Tensor:
    """y = DWConv3x3(GELU(x)), with zeros around the map (HcNet, refinement approximation layer).

    GELU is exact: x Φ(x) with the error function. For the backward pass the kernel keeps ``x``
    only, plain torch also GELU(x).

    Args:
        x (Tensor): (B, C, H, W), floating point.
        weight (Tensor): (C, 1, 3, 3).
        backend (str): 'auto', 'triton' or 'torch'; see :func:`~mmhcnet.ops.backend.use_triton`.

    Returns:
        Tensor: (B, C, H, W), dtype of ``x``.

    Raises:
        ValueError: ``weight`` is not (C, 1, 3, 3).
    """
    if weight.shape != (x.shape[1], 1, 3, 3):
        raise ValueError(f'weight must be (C, 1, 3, 3) = ({x.shape[1]}, 1, 3, 3) for x of '
                         f'{tuple(x.shape)}, got {tuple(weight.shape)}')
    if use_triton(backend, x, weight):
        from .triton.gelu_dwconv import gelu_dwconv as fused
        return fused(x, weight)
    # Elementwise functions are fastest on a tensor that is contiguous as it stands.
    x = F.gelu(x.permute(0, 2, 3, 1))  # (B, H, W, C)
    return F.conv2d(x.permute(0, 3, 1, 2), weight, padding=1, groups=weight.shape[0])
