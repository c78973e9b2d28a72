from torch import Tensor, nn

from .drop_path import DropPath
from .norm import GroupNorm1


class Refinement(nn.Module):
    """HcNet's refinement approximation layer: adds the harmonics that conduction removes::

        z' = z + DropPath(Conv1x1(DWConv3x3(GELU(Conv1x1(GroupNorm_1(z))))))

    GELU is exact (erf); the depthwise convolution, the filter, has no bias. Convolutions start
    from a truncated normal of standard deviation 0.02, biases from 0.

    Args:
        channels (int): C.
        mlp_ratio (float): Hidden width over C.
        with_filter (bool): False drops the depthwise convolution and widens the hidden layer to
            the same number of parameters (table 6 of the paper), to within one hidden channel.
        drop_path (float): Probability of skipping the layer for a sample during training.
    """

    def __init__(
        self,
        channels: int,
        mlp_ratio: float = 4.0,
        with_filter: bool = True,
        drop_path: float = 0.0,
    ):
        super().__init__()
        hidden = int(channels * mlp_ratio)
        if not with_filter:
            # Per hidden channel: C + 1 (fc1), 9 (filter), C (fc2).
            hidden = round(hidden * (2 * channels + 10) / (2 * channels + 1))
        self.norm = GroupNorm1(channels)
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.act = nn.GELU()
        self.dwconv = (
            nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=False)
            if with_filter
            else None
        )
        self.fc2 = nn.Conv2d(hidden, channels, 1)
        self.drop_path = DropPath(drop_path)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Gives the parameters of the convolutions their first values."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, z: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        h = self.act(self.fc1(self.norm(z)))
        if self.dwconv is not None:
            h = self.dwconv(h)
        return z + self.drop_path(self.fc2(h))
