import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from mmhcnet.ops import heat_spectral, spectral_decay
from mmhcnet.ops.precision import no_autocast

from .rate import parse_k

# Their checks of shapes are of the run, not of a trace.
torch.fx.wrap('heat_spectral')
torch.fx.wrap('spectral_decay')

K_MODES = ('frequency', 'learnable')


class SpectralConduction(nn.Module):
    """vHeat's heat conduction operator, channels last, for a given frequency embedding::

        phi, gate = split(Linear(DWConv3x3(x)))
        k = ReLU(Linear(freq_embed))
        u = IDCT2(DCT2(phi) · exp(-(λ_n + λ_m) k)),   λ_n = (nπ / N)²
        y = Linear(LayerNorm(u) · SiLU(gate))

    (Wang et al., "Building Vision Models upon Heat Conduction", CVPR 2025.) Insulated border,
    grid spacing 1, k in pixels². The linear layers start from a truncated normal of standard
    deviation 0.02, their biases from 0.

    Args:
        channels (int): C.
        with_dwconv (bool): The depthwise convolution, which has a bias.
        with_gate (bool): The gate; without it the first linear layer has C outputs.
        k (str or float): 'frequency': as above, one number per mode and channel; 'learnable': one
            number per layer, softplus of the parameter ``k``, which starts at 0; a float: fixed.

    Raises:
        ValueError: Unknown ``k``, or a ``k`` that is negative or not finite.
    """

    def __init__(
        self,
        channels: int,
        with_dwconv: bool = True,
        with_gate: bool = True,
        k: str | float = 'frequency',
    ):
        super().__init__()
        self.dwconv = (
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels) if with_dwconv else None
        )
        self.with_gate = with_gate
        self.fc_in = nn.Linear(channels, 2 * channels if with_gate else channels)
        self.norm = nn.LayerNorm(channels)
        self.fc_out = nn.Linear(channels, channels)

        k = parse_k(k, K_MODES)
        self.to_k = None
        if k == 'frequency':
            self.to_k = nn.Linear(channels, channels)
            self.k = None
        else:
            self.k = nn.Parameter(torch.empty(1)) if k == 'learnable' else k
        self.register_buffer('decay', None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Gives the parameters of the linear layers, and k, their first values."""
        if isinstance(self.k, nn.Parameter):
            nn.init.zeros_(self.k)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay does not apply to, as timm's models say it."""
        return {'k'}

    def decay_table(self, height: int, width: int, freq_embed: Tensor | None) -> Tensor:
        """exp(-(λ_n + λ_m) k): (H, W, C), with C = 1 where k is one number; ``decay``, if folded.

        Args:
            height (int): H.
            width (int): W.
            freq_embed (Tensor, optional): (H, W, C); needed for ``k='frequency'`` only.
        """
        if self.decay is not None:
            return self.decay
        # Of no layer by its name: an adapter or a quantiser may stand in its place.
        weight = next(p for p in self.parameters() if p.is_floating_point())
        # λ_n + λ_m goes up to 2π²: an error of k in half precision shows in the decay.
        with no_autocast(weight.device.type):
            if self.to_k is not None:
                k = F.relu(self.to_k(freq_embed))
            elif isinstance(self.k, float):
                k = weight.new_full((1,), self.k)
            else:
                k = F.softplus(self.k)
            return spectral_decay(k, height, width)

    def forward(self, x: Tensor, freq_embed: Tensor | None) -> Tensor:
        """(B, H, W, C) and (H, W, C) -> (B, H, W, C).

        ``freq_embed`` is needed for ``k='frequency'`` only.
        """
        if self.dwconv is not None:
            x = x.permute(0, 3, 1, 2)  # (B, C, H, W)
            x = self.dwconv(x)
            x = x.permute(0, 2, 3, 1)  # (B, H, W, C)
        x = self.fc_in(x)
        phi, gate = x.chunk(2, dim=-1) if self.with_gate else (x, None)
        decay = self.decay_table(x.shape[1], x.shape[2], freq_embed)
        u = self.norm(heat_spectral(phi, decay))
        if gate is not None:
            u = u * F.silu(gate)
        return self.fc_out(u)

    @torch.no_grad()
    def switch_to_deploy(self, height: int, width: int, freq_embed: Tensor | None) -> None:
        """Replaces k by its decay table for one map size, the buffer ``decay`` (H, W, C)."""
        self.decay = self.decay_table(height, width, freq_embed)
        self.to_k = self.k = None
