from collections.abc import Callable

from torch import Tensor, nn


class Downsample(nn.Module):
    """Between two stages: Conv3x3/2 without bias - norm.

    Args:
        in_channels (int): Channels of the stage before.
        out_channels (int): Channels of the next stage.
        norm (Callable): Makes the norm layer of a number of channels.
    """

    def __init__(self, in_channels: int, out_channels: int, norm: Callable[[int], nn.Module]):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1, bias=False)
        self.norm = norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', ceil(H/2), ceil(W/2))."""
        return self.norm(self.conv(x))
