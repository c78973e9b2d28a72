import torch
import torch.fx
from torch import Tensor, nn

from mmhcnet.ops import heat_step

from .drop_path import DropPath
from .rate import parse_k

# Its checks of shapes are of the run, not of a trace.
torch.fx.wrap('heat_step')

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

    def __init__(
        self,
        channels: int,
        stencil: str = 'anisotropic',
        k: str | float = 'input_dependent',
        drop_path: float = 0.0,
    ):
        super().__init__()
        if stencil not in STENCILS:
            raise ValueError(f'stencil must be one of {STENCILS}, got {stencil!r}')
        self.stencil = stencil
        self.w = nn.Parameter(torch.empty(channels, 4)) if stencil == 'anisotropic' else None

        k = parse_k(k, K_MODES)
        self.to_k = None
        if k == 'input_dependent':
            self.to_k = nn.Linear(channels, channels, bias=False)
            self.k = None
        else:
            self.k = nn.Parameter(torch.empty(1)) if k == 'learnable' else k
        self.drop_path = DropPath(drop_path)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Gives the parameters their first values."""
        if self.w is not None:
            nn.init.constant_(self.w, 0.25)
        if self.to_k is not None:
            nn.init.trunc_normal_(self.to_k.weight, std=0.02)
        elif isinstance(self.k, nn.Parameter):
            nn.init.zeros_(self.k)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay does not apply to, as timm's models say it."""
        return {'w', 'k'}

    def rate(self, z: Tensor) -> Tensor:
        """The conduction rate k for z (B, C, H, W): (B, C, 1, 1) or (B, 1, 1, 1)."""
        if self.to_k is not None:
            return torch.sigmoid(self.to_k(z.mean(dim=(2, 3))))[:, :, None, None]
        if isinstance(self.k, float):
            return z.new_full((z.shape[0], 1, 1, 1), self.k)
        return torch.sigmoid(self.k).view(1, 1, 1, 1).expand(z.shape[0], -1, -1, -1)

    def forward(self, z: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        # Dropping k h drops samples, so dropping k, which is small, is enough.
        return heat_step(z, self.w, self.drop_path(self.rate(z)))

    def extra_repr(self) -> str:
        return f'stencil={self.stencil}'
