import torch.fx
from torch import Tensor, nn

from mmhcnet.ops import group_norm_1

# Its checks of shapes are of the run, not of a trace.
torch.fx.wrap('group_norm_1')


class GroupNorm1(nn.GroupNorm):
    """GroupNorm with one group (eps 1e-5): each sample is normalised over (C, H, W)."""

    def __init__(self, num_channels: int):
        super().__init__(1, num_channels, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return group_norm_1(x, self.weight, self.bias, self.eps)


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of each pixel of a map.

    Args:
        num_channels (int): C.
        eps (float): Added to the variance.
    """

    def __init__(self, num_channels: int, eps: float = 1e-5):
        super().__init__(num_channels, eps=eps)
        self.num_channels = num_channels

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        x = x.permute(0, 2, 3, 1)  # (B, H, W, C)
        x = super().forward(x)
        return x.permute(0, 3, 1, 2)  # (B, C, H, W)
