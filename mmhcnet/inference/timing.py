"""A classifier of any backbone, and the time of what it does."""

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn


class Classifier(nn.Module):
    """Backbone, global average pooling, linear layer."""

    def __init__(self, backbone: nn.Module, classes: int = 1000):
        super().__init__()
        self.backbone = backbone
        # In a line of its own: eval() of mmpretrain's Swin returns None.
        backbone.eval()
        with torch.no_grad():
            channels = backbone(torch.zeros(1, 3, *self._size(backbone)))[-1].shape[1]
        self.head = nn.Linear(channels, classes)

    @staticmethod
    def _size(backbone: nn.Module) -> tuple:
        return getattr(backbone, 'deploy_size', None) or (64, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x)[-1].mean((2, 3)))


def synchronize(device: str) -> None:
    if device != 'cpu':
        torch.cuda.synchronize()


def timed(
    step: Callable[[], None],
    repeats: int,
    device: str,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Seconds per call, by a clock of Python's ``time``."""
    synchronize(device)
    start = clock()
    for _ in range(repeats):
        step()
    synchronize(device)
    return (clock() - start) / repeats
