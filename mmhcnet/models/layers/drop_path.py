from typing import Optional

from torch import Tensor, nn


class DropPath(nn.Module):
    """Stochastic depth (Huang et al., ECCV 2016): zeroes whole samples during training.

    Each sample survives with probability 1 - ``drop_prob`` and is then divided by it, so that the
    expectation is unchanged.

    Args:
        drop_prob (float): Probability of dropping a sample, in [0, 1).

    Raises:
        ValueError: ``drop_prob`` is outside [0, 1).
    """

    def __init__(self, drop_prob: float = 0.):
        super().__init__()
        if not 0 <= drop_prob < 1:
            raise ValueError(f'drop_path_rate must be in [0, 1), got {drop_prob}')
        self.drop_prob = drop_prob

    def factors(self, x: Tensor) -> Optional[Tensor]:
        """What the samples of x (B, ...) are multiplied by, (B,), or None for 1."""
        if not self.training or self.drop_prob == 0:
            return None
        keep = 1 - self.drop_prob
        return x.new_empty(x.shape[0]).bernoulli_(keep) / keep

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, ...), any shape; returns the same shape and dtype."""
        factors = self.factors(x)
        return x if factors is None else x * factors.view(-1, *(1, ) * (x.dim() - 1))

    def extra_repr(self) -> str:
        return f'drop_prob={self.drop_prob:.3f}'
