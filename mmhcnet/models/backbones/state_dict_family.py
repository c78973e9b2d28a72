import re
from typing import NamedTuple

from torch import Tensor

# One norm of C channels per block, by the name that it has in each family.
_BLOCK_NORMS = {
    'HcNet': r'stages\.(\d+)\.(\d+)\.refinement\.norm\.weight',
    'VHeat': r'stages\.(\d+)\.(\d+)\.norm1\.weight',
    "the authors' HcNet": r'layers\.(\d+)\.blocks\.(\d+)\.norm2\.weight',
    "the authors' vHeat": r'layers\.(\d+)\.(\d+)\.norm1\.weight',
}


class WeightsError(ValueError):
    """Weights that are not for the model; the message names both and says how to fix it."""


class Weights(NamedTuple):
    """What a state dict of a backbone is of."""

    family: str
    embed_dims: list[int]
    depths: list[int]

    def __str__(self) -> str:
        return f'{self.family} with embed_dims {self.embed_dims} and depths {self.depths}'


def describe(state_dict: dict[str, Tensor]) -> Weights | None:
    """Family and size by the names and shapes in a state dict, whose keys have no prefix.

    Returns:
        Weights, optional: None for neither HcNet nor vHeat, in our names or the authors'.
    """
    for family, pattern in _BLOCK_NORMS.items():
        blocks = {
            tuple(map(int, match.groups())): state_dict[match[0]].numel()
            for match in map(re.compile(pattern).fullmatch, state_dict)
            if match
        }
        if blocks:
            stages = 1 + max(stage for stage, _ in blocks)
            depths = [
                1 + max((j for i, j in blocks if i == stage), default=-1) for stage in range(stages)
            ]
            return Weights(family, [blocks.get((i, 0), 0) for i in range(stages)], depths)
    return None


def check_fit(found: Weights | None, here: Weights) -> None:
    """Make sure that weights belong to a backbone; either may have fewer stages than the other.

    Args:
        found (Weights, optional): Of the checkpoint. None is let through: a state dict may hold
            other parts of a model only.
        here (Weights): Of the model.

    Raises:
        WeightsError: Another family, another size, or the authors' names.
    """
    if found is None:
        return
    n = min(len(found.depths), len(here.depths))
    if (
        found.family == here.family
        and found.embed_dims[:n] == here.embed_dims[:n]
        and found.depths[:n] == here.depths[:n]
    ):
        return
    cure = 'give a checkpoint of this model, or the config of that one'
    if 'authors' in found.family:
        cure = 'convert it with tools/model_converters/official_to_mmhcnet.py'
    raise WeightsError(f'the checkpoint is of {found}, the model is {here}: {cure}')
