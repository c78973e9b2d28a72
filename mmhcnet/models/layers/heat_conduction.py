import math
from typing import Union

import torch
from torch import Tensor, nn

from mmhcnet.ops import heat_step

from .drop_path import DropPath

STENCILS = ('anisotropic', 'isotropic')
K_MODES = ('input_dependent', 'learnable')


class HeatConduction(nn.Module):
    """HcNet's heat conduction layer: one explicit heat step per channel (equations 4 and 6)::

        k  = sigmoid(Linear(GAP(z)))    (6a)  one rate per sample and channel
        h  = stencil(z)                 (6b)  insulated border
        z' = z + DropPath(k h)          (6c)

    Grid spacing 1, k in pixels². The explicit scheme is stable for k·Σw <= 1; sigmoid keeps
    k < 1 and Σw starts at 1.

    Args:
        channels (int): C.
        stencil (str): 'anisotropic', the paper's: four weights per channel, parameter ``w``
            (C, 4), initialised to 1/4. 'isotropic', the published code's: mean of the existing
            8 neighbours, no parameters.
        k (str or float): 'input_dependent' (equation 6a, no bias); 'learnable': one number per
            layer, sigmoid of the parameter ``k``, which starts at 0.5 as the input-dependent one
            does; a float: fixed.
        drop_path (float): Probability of skipping the layer for a sample during training.

    Raises:
        ValueError: Unknown ``stencil`` or ``k``, or a ``k`` that is negative or not finite.
    """

    def __init__(self,
                 channels: int,
                 stencil: str = 'anisotropic',
                 k: Union[str, float] = 'input_dependent',
                 drop_path: float = 0.):
        super().__init__()
        if stencil not in STENCILS:
            raise ValueError(f'stencil must be one of {STENCILS}, got {stencil!r}')
        self.stencil = stencil
        self.w = nn.Parameter(torch.full((channels, 4), 0.25)) if stencil == 'anisotropic' else None

        self.to_k = None
        if k == 'input_dependent':
            self.to_k = nn.Linear(channels, channels, bias=False)
            nn.init.trunc_normal_(self.to_k.weight, std=0.02)
            self.k = None
        elif k == 'learnable':
            self.k = nn.Parameter(torch.zeros(1))
        elif (isinstance(k, (int, float)) and not isinstance(k, bool) and math.isfinite(k)
              and k >= 0):
            self.k = float(k)
        else:
            raise ValueError(f'k must be one of {K_MODES} or a number >= 0, got {k!r}')
        self.drop_path = DropPath(drop_path)

    def rate(self, z: Tensor) -> Tensor:
        """The conduction rate k for z (B, C, H, W): (B, C, 1, 1) or (B, 1, 1, 1)."""
        if self.to_k is not None:
            return torch.sigmoid(self.to_k(z.mean(dim=(2, 3))))[:, :, None, None]
        if isinstance(self.k, float):
            return z.new_full((z.shape[0], 1, 1, 1), self.k)
        return torch.sigmoid(self.k).view(1, 1, 1, 1).expand(z.shape[0], -1, -1, -1)

    def dropped_rate(self, z: Tensor) -> Tensor:
        """The rate k after DropPath: dropping k h drops samples, so k, which is small, is enough."""
        return self.drop_path(self.rate(z))

    def step(self, z: Tensor, k: Tensor) -> Tensor:
        """z + k h: (B, C, H, W) and (B, C, 1, 1) -> (B, C, H, W)."""
        return heat_step(z, self.w, k)

    def forward(self, z: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return self.step(z, self.dropped_rate(z))

    def extra_repr(self) -> str:
        return f'stencil={self.stencil}'
