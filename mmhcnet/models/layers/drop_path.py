import torch
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

    def __init__(self, drop_prob: float = 0.0):
        super().__init__()
        if not 0 <= drop_prob < 1:
            raise ValueError(f'drop_path_rate must be in [0, 1), got {drop_prob}')
        self.drop_prob = drop_prob
        self.keep: Tensor | None = None

    def share_graphs(self, device: torch.device) -> None:
        """Holds the probability as a tensor, for layers on a device that are to be compiled.

        To a compiled graph the number is a constant, and the tensor an input: one graph then serves
        layers of all probabilities.
        """
        self.keep = torch.tensor(1 - self.drop_prob, device=device)

    def factors(self, x: Tensor) -> Tensor | None:
        """What the samples of x (B, ...) are multiplied by, (B,), or None for 1."""
        if not self.training:
            return None
        if self.keep is not None:
            return (torch.bernoulli(self.keep.expand(x.shape[0])) / self.keep).to(x.dtype)
        if self.drop_prob == 0:
            return None
        keep = 1 - self.drop_prob
        return x.new_empty(x.shape[0]).bernoulli_(keep) / keep

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, ...), any shape; returns the same shape and dtype."""
        factors = self.factors(x)
        return x if factors is None else x * factors.view(-1, *(1,) * (x.dim() - 1))

    def extra_repr(self) -> str:
        return f'drop_prob={self.drop_prob:.3f}'
