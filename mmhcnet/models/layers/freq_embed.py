from collections.abc import Sequence

import torch
import torch.fx
import torch.nn.functional as F
from mmengine.logging import print_log
from torch import Tensor, nn


@torch.fx.wrap
def _resize(embedding: Tensor, size: Sequence[int]) -> Tensor:
    size = tuple(size)
    if embedding.shape[:2] == size:
        return embedding
    embedding = embedding.permute(2, 0, 1)[None]  # (1, C, H, W)
    embedding = F.interpolate(embedding, size=size, mode='bicubic', align_corners=False)
    return embedding[0].permute(1, 2, 0)  # (H, W, C)


class FreqEmbed(nn.ParameterList):
    """vHeat's frequency value embeddings: a learned vector for every mode (n, m).

    One parameter (H, W, C) per stage, for maps of a nominal size. :meth:`at` gives it for any
    size, resized bicubically (``align_corners=False``), again in every call: a write to
    ``Parameter.data``, as an EMA hook makes, leaves no trace. For one size only,
    ``switch_to_deploy`` of the backbone saves it. A state dict with another H and W is resized
    while it is loaded, and the log says so. Parameters start from a truncated normal of standard
    deviation 0.02.

    Args:
        sizes (Sequence[tuple[int, int]]): Nominal H and W of each stage.
        channels (Sequence[int]): C of each stage.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]], channels: Sequence[int]):
        super().__init__([nn.Parameter(torch.empty(*size, c)) for size, c in zip(sizes, channels)])
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Gives the parameters their first values."""
        for parameter in self:
            nn.init.trunc_normal_(parameter, std=0.02)

    def at(self, stage: int, size: Sequence[int]) -> Tensor:
        """The embedding of a stage for maps of H, W = ``size``: (H, W, C)."""
        return _resize(self[stage], size)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay does not apply to, as timm's models say it."""
        return {name for name, _ in self.named_parameters()}

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        for i, parameter in enumerate(self):
            key = f'{prefix}{i}'
            found, here = state_dict.get(key), tuple(parameter.shape)
            if (
                found is not None
                and found.dim() == 3
                and found.shape[2] == here[2]
                and found.shape != here
            ):
                print_log(
                    f'{key}: resized from {found.shape[0]}x{found.shape[1]} of the checkpoint to '
                    f'the {here[0]}x{here[1]} that this model is built for',
                    logger='current',
                )
                state_dict[key] = _resize(found, here[:2])
        super()._load_from_state_dict(state_dict, prefix, *args)
