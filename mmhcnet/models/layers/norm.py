from torch import nn


class GroupNorm1(nn.GroupNorm):
    """GroupNorm with one group (eps 1e-5): each sample is normalised over (C, H, W)."""

    def __init__(self, num_channels: int):
        super().__init__(1, num_channels, eps=1e-5)
