"""Weights of a checkpoint file for a whole model, with an error where they do not fit."""
import re
from typing import Dict, Optional

from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor, nn

from mmhcnet.errors import UserError

from .reader import load_local


def read_checkpoint(path: str) -> dict:
    """A checkpoint as mmengine or our converter writes it, on the CPU; nothing in it is run.

    Raises:
        UserError: No such file, not a checkpoint, or one that holds more than weights.
        ValueError: A checkpoint without weights.
    """
    checkpoint = load_local(path, map_location='cpu')
    if not isinstance(checkpoint.get('state_dict'), dict):
        raise ValueError(f"'{path}' has no 'state_dict': weights as the papers' authors publish "
                         'them go through tools/model_converters/official_to_mmhcnet.py first')
    return checkpoint


def misfit(model: nn.Module, weights: Dict[str, Tensor]) -> Optional[str]:
    """Loads weights into a model as far as they fit, and says what does not; else None.

    mmengine only warns about it, and goes on with random weights.
    """
    wanted = set(model.state_dict())
    # Old checkpoints of BatchNorm lack that count, and it is used by none of the models here.
    missing = sorted(key for key in wanted - set(weights)
                     if not key.endswith('num_batches_tracked'))
    try:
        model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        # The first line is a title, each of the others a weight of another shape.
        lines = [line.strip() for line in str(error).splitlines()[1:]]
        return f'{len(lines)} weights differ, the first: {lines[0]}'
    if missing:
        return f'{len(missing)} of {len(wanted)} weights are not in it, as {missing[0]}'
    return None


def load_weights(model: nn.Module, path: str) -> dict:
    """Loads a checkpoint into a model; every weight of the model has to come from it.

    Args:
        model (nn.Module): Changed in place.
        path (str): Checkpoint file.

    Returns:
        dict: The checkpoint's ``meta``, which holds class names as ``dataset_meta``.

    Raises:
        UserError: No such file, not a checkpoint, or one that holds more than weights.
        ValueError: A checkpoint without weights, or of another model.
    """
    checkpoint = read_checkpoint(path)
    problem = misfit(model, checkpoint['state_dict'])
    if problem:
        raise ValueError(f"'{path}' is a checkpoint of another model than this config's: {problem}")
    return checkpoint.get('meta', {})


class WholeCheckpoint(Hook):
    """For testing: every weight of the model has to come from the checkpoint."""

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        model = runner.model
        # Of several ranks, and of test-time augmentation.
        while isinstance(getattr(model, 'module', None), nn.Module):
            model = model.module
        weights = {re.sub(r'^module\.', '', key): value
                   for key, value in checkpoint.get('state_dict', checkpoint).items()}
        problem = misfit(model, weights)
        if problem:
            raise UserError("the checkpoint is of another model than this config's: "
                            f'{problem}. Give the config that it was trained with')
