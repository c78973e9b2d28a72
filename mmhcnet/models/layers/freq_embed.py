from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from torch import Tensor, nn

from mmhcnet.tracing import is_compiling


def _resize(embedding: Tensor, size: tuple[int, int]) -> Tensor:
    if embedding.shape[:2] == size:
        return embedding
    embedding = embedding.permute(2, 0, 1)[None]  # (1, C, H, W)
    embedding = F.interpolate(embedding, size=size, mode='bicubic', align_corners=False)
    return embedding[0].permute(1, 2, 0)  # (H, W, C)


class FreqEmbed(nn.ParameterList):
    """vHeat's frequency value embeddings: a learned vector for every mode (n, m).

    One parameter (H, W, C) per stage, for maps of a nominal size. :meth:`at` gives it for any
    size, resized bicubically (``align_corners=False``). Where no gradient is asked for in eval
    mode the resized embedding is kept, until the parameter changes or ``train()`` or ``eval()``
    is called; it is not in the state dict. A state dict with another H and W is resized while it
    is loaded, and the log says so. Parameters start from a truncated normal of standard
    deviation 0.02.

    Args:
        sizes (Sequence[tuple[int, int]]): Nominal H and W of each stage.
        channels (Sequence[int]): C of each stage.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]], channels: Sequence[int]):
        super().__init__(
            [
                nn.Parameter(nn.init.trunc_normal_(torch.empty(*size, c), std=0.02))
                for size, c in zip(sizes, channels)
            ]
        )
        self._kept: dict[int, tuple] = {}

    def at(self, stage: int, size: tuple[int, int]) -> Tensor:
        """The embedding of a stage for maps of H, W = ``size``: (H, W, C)."""
        embedding = self[stage]
        if embedding.shape[:2] == size:
            return embedding
        # Kept, it would be computed in a first trace and a constant in the next.
        keep = not (
            self.training
            or is_compiling()
            or torch.jit.is_tracing()
            or torch.is_grad_enabled()
            and embedding.requires_grad
        )
        if not keep:
            return _resize(embedding, size)
        # A tensor made in inference mode is of no use outside of it.
        key = (
            size,
            id(embedding),
            embedding._version,
            embedding.device,
            embedding.dtype,
            torch.is_inference_mode_enabled(),
        )
        if self._kept.get(stage, (None,))[0] != key:
            self._kept[stage] = key, _resize(embedding.detach(), size)
        return self._kept[stage][1]

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay does not apply to, as timm's models say it."""
        return {name for name, _ in self.named_parameters()}

    def train(self, mode: bool = True) -> 'FreqEmbed':
        """Sets the mode and forgets the resized embeddings. Returns self."""
        # Also on eval(): a write to Parameter.data, as of an EMA hook, leaves no other trace.
        self._kept.clear()
        return super().train(mode)

    def __getstate__(self) -> dict:
        return dict(self.__dict__, _kept={})

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
