import torch
import torch.fx
from torch import Tensor, nn

from mmhcnet.tracing import is_symbolic


@torch.fx.wrap
def _ones(x: Tensor) -> Tensor:
    """One for each sample of x (B, ...): (B, 1, ...)."""
    return x.new_ones(x.shape[0], *(1,) * (x.dim() - 1))


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
        # torch's layer, because a graph of torch.fx calls torch's own layers only: they alone are
        # asked whether they are in training when it runs, not when it is made. Registered as None,
        # too, so that compiled blocks with and without it share a graph.
        self.register_module('dropout', nn.Dropout(drop_prob) if drop_prob > 0 else None)
        self.keep: Tensor | None = None

    def share_graphs(self, device: torch.device) -> None:
        """Holds the probability as a tensor, for layers on a device that are to be compiled.

        To a compiled graph the number is a constant, and the tensor an input: one graph then serves
        layers of all probabilities.
        """
        self.keep = torch.tensor(1 - self.drop_prob, device=device)
        self.dropout = None

    def factors(self, x: Tensor) -> Tensor | None:
        """What the samples of x (B, ...) are multiplied by, (B,), or None for 1."""
        if not self.training:
            return None
        if self.keep is not None:
            return (torch.bernoulli(self.keep.expand(x.shape[0])) / self.keep).to(x.dtype)
        return None if self.dropout is None else self.dropout(x.new_ones(x.shape[0]))

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, ...), any shape; returns the same shape and dtype."""
        if is_symbolic(x):
            return x if self.dropout is None else x * self.dropout(_ones(x))
        if not self.training and self.dropout is not None:
            # It gives back what it gets, and hooks on it are called.
            return self.dropout(x)
        factors = self.factors(x)
        return x if factors is None else x * factors.view(-1, *(1,) * (x.dim() - 1))

    def extra_repr(self) -> str:
        return f'drop_prob={self.drop_prob:.3f}'
