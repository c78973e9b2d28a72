from torch import Tensor, nn


class Mlp(nn.Module):
    """Linear - GELU (exact) - Linear on the channels of every pixel, channels last.

    The linear layers start from a truncated normal of standard deviation 0.02, biases from 0.

    Args:
        channels (int): C.
        mlp_ratio (float): Hidden width over C.
    """

    def __init__(self, channels: int, mlp_ratio: float = 4.0):
        super().__init__()
        hidden = int(channels * mlp_ratio)
        self.fc1 = nn.Linear(channels, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Gives the parameters their first values."""
        for linear in (self.fc1, self.fc2):
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return self.fc2(self.act(self.fc1(x)))
