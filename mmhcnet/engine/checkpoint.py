"""Weights of a checkpoint file for a whole model, with an error where they do not fit."""
from torch import nn

from .safe_load import load_local


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


def load_weights(model: nn.Module, path: str) -> dict:
    """Loads a checkpoint into a model; every weight of the model has to come from it.

    mmengine's own ``load_checkpoint`` warns about what does not fit, and goes on with random
    weights.

    Args:
        model (nn.Module): Changed in place.
        path (str): Checkpoint file.

    Returns:
        dict: The checkpoint's ``meta``, which holds class names as ``dataset_meta``.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not a checkpoint, or one of another model.
    """
    checkpoint = read_checkpoint(path)
    weights, wanted = checkpoint['state_dict'], set(model.state_dict())
    missing = sorted(wanted - set(weights))
    try:
        model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        # The first line is a title, each of the others a weight of another shape.
        lines = [line.strip() for line in str(error).splitlines()[1:]]
        problem = f'{len(lines)} weights differ, the first: {lines[0]}'
    else:
        if not missing:
            return checkpoint.get('meta', {})
        problem = f'{len(missing)} of {len(wanted)} weights are not in it, as {missing[0]}'
    raise ValueError(f"'{path}' is a checkpoint of another model than this config's: {problem}")
