from collections.abc import Callable

from torch import Tensor, nn


class Stem(nn.Module):
    """Image to feature map at a quarter of its size.

    Conv3x3/2 (in_channels -> C/2) - norm - GELU - Conv3x3/2 (-> C) - norm.

    Args:
        in_channels (int): Channels of the image.
        embed_dims (int): C, even.
        norm (Callable): Makes the norm layer of a number of channels.
    """

    def __init__(self, in_channels: int, embed_dims: int, norm: Callable[[int], nn.Module]):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, embed_dims // 2, 3, stride=2, padding=1)
        self.norm1 = norm(embed_dims // 2)
        self.act = nn.GELU()
        self.conv2 = nn.Conv2d(embed_dims // 2, embed_dims, 3, stride=2, padding=1)
        self.norm2 = norm(embed_dims)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, C, ceil(H/4), ceil(W/4))."""
        x = self.act(self.norm1(self.conv1(x)))
        return self.norm2(self.conv2(x))
