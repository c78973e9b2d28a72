"""Whether the weights of a checkpoint fit a model, and loading them: one answer for all."""

import re
from typing import NamedTuple

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import CheckpointLoader, Runner
from torch import Tensor, nn

from mmhcnet.errors import UserError

from .reader import load_local

_BACKBONE = 'backbone.'


class Fit(NamedTuple):
    """How the weights of a state dict fit a model; names are those of the model's state dict."""

    # Loaded as they are, or resized by the model while it loaded them.
    matched: list[str]
    resized: list[str]
    # The model has them, and the state dict has not.
    missing: list[str]
    # The reverse.
    unexpected: list[str]
    # Name -> torch's message.
    other_shape: dict[str, str]
    # Why the model refuses the whole state dict; then nothing was loaded.
    refusal: str | None = None

    @property
    def fault(self) -> str | None:
        """What keeps the model from having all of its weights, and what to do; else None."""
        if self.refusal:
            return self.refusal
        if self.other_shape:
            fault = (
                f'{len(self.other_shape)} weights differ, the first: '
                f'{next(iter(self.other_shape.values()))}'
            )
        elif self.missing:
            fault = (
                f'{len(self.missing)} of {len(self.missing) + len(self.matched)} weights are '
                f'not in it, as {min(self.missing)}'
            )
        else:
            return None
        return f'{fault}. Give the config that it was trained with'


def weights_of(checkpoint: dict, ema: bool = False) -> dict[str, Tensor]:
    """The weights in a checkpoint, without the prefix ``module.`` of a distributed run.

    Args:
        checkpoint (dict): A state dict, or a dict that has one under ``state_dict`` (mmengine) or
            ``model`` (the papers' authors).
        ema (bool): Take the moving average that the authors' code keeps under ``model_ema``.
            mmengine's checkpoints have the average under ``state_dict``.

    Raises:
        ValueError: ``ema`` without ``model_ema``.
    """
    if ema:
        if not isinstance(checkpoint.get('model_ema'), dict):
            raise ValueError(
                "no averaged weights: the checkpoint has no 'model_ema'; its keys are "
                f'{list(checkpoint)[:5]}'
            )
        weights = checkpoint['model_ema']
    else:
        weights = next(
            (
                checkpoint[key]
                for key in ('state_dict', 'model')
                if isinstance(checkpoint.get(key), dict)
            ),
            checkpoint,
        )
    return {key.removeprefix('module.'): value for key, value in weights.items()}


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside the wrappers for several ranks and for test-time augmentation."""
    while isinstance(inner := getattr(model, 'module', None), nn.Module):
        model = inner
    return model


def fit(model: nn.Module, weights: dict[str, Tensor]) -> Fit:
    """Load weights into a model as far as they fit, and say what does not.

    The model's own loading decides, with what it resizes or refuses.

    Args:
        model (nn.Module): Changed in place.
        weights (dict): A state dict of its names, as :func:`weights_of` gives it.
    """
    model = unwrapped(model)
    own = {
        key: value.shape for key, value in model.state_dict().items() if isinstance(value, Tensor)
    }
    # Old checkpoints of BatchNorm lack that count, and it is used by none of the models here.
    missing = [key for key in own if key not in weights and not key.endswith('num_batches_tracked')]
    unexpected = [key for key in weights if key not in own]
    other_shape = {}
    try:
        model.load_state_dict(weights, strict=False)
    except ValueError as error:
        return Fit([], [], missing, unexpected, {}, str(error))
    except RuntimeError as error:
        # The first line is a title, each of the others names a weight.
        for line in str(error).splitlines()[1:]:
            match = re.match(
                r'\s*(?:size mismatch for |While copying the parameter named ")(.+?)[:"]', line
            )
            other_shape[match[1] if match else line] = line.strip()
    matched = [key for key in own if key in weights and key not in other_shape]
    resized = [key for key in matched if weights[key].shape != own[key]]
    return Fit(matched, resized, missing, unexpected, other_shape)


def load_weights(model: nn.Module, path: str) -> dict:
    """Load a checkpoint into a model; every weight of the model has to come from it.

    Args:
        model (nn.Module): Changed in place.
        path (str): Checkpoint file, as mmengine or our converter writes it; nothing in it is run.

    Returns:
        dict: The checkpoint's ``meta``, which holds class names as ``dataset_meta``.

    Raises:
        UserError: No such file, not a checkpoint, or one that holds more than weights.
        ValueError: A checkpoint without weights, or of another model.
    """
    checkpoint = load_local(path, map_location='cpu')
    if not isinstance(checkpoint.get('state_dict'), dict):
        raise ValueError(
            f"'{path}' has no 'state_dict': weights as the papers' authors publish "
            'them go through tools/model_converters/official_to_mmhcnet.py first'
        )
    fault = fit(model, weights_of(checkpoint)).fault
    if fault:
        raise ValueError(f"'{path}' is a checkpoint of another model than this config's: {fault}")
    return checkpoint.get('meta', {})


def use_pretrained(cfg: Config, checkpoint: str) -> None:
    """Let ``cfg.model.backbone`` start from the backbone of a checkpoint.

    The weights are tried on the backbone before anything is built for training, and what matched
    is logged; mmengine's ``init_cfg`` then loads them. A resumed run still takes its own weights.

    Args:
        cfg (Config): Changed in place: ``cfg.model.backbone.init_cfg``.
        checkpoint (str): File of a model of ours, with keys ``backbone.*``.

    Raises:
        UserError: No such file, or not a checkpoint.
        ValueError: No weight of the checkpoint fits the backbone.
    """
    loaded = weights_of(CheckpointLoader.load_checkpoint(checkpoint, map_location='cpu'))
    weights = {
        key[len(_BACKBONE) :]: value for key, value in loaded.items() if key.startswith(_BACKBONE)
    }
    backbone = dict(cfg.model.backbone, init_cfg=None)
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        found = fit(MODELS.build(backbone), weights)
    if not found.matched:
        found_keys = ', '.join(list(loaded)[:3])
        raise ValueError(
            f"nothing in '{checkpoint}' fits the backbone {backbone['type']} "
            f"(arch={backbone.get('arch')}): "
            + (
                found.refusal
                or (
                    f"it needs keys 'backbone.*' of the same shapes, the file has {found_keys}, "
                    "... Weights as the papers' authors publish them go through "
                    'tools/model_converters/official_to_mmhcnet.py first'
                )
            )
        )
    total = len(found.matched) + len(found.missing) + len(found.other_shape)
    print_log(
        f'--pretrained {checkpoint}: {len(found.matched)} of {total} weights of the '
        'backbone matched',
        logger='current',
    )
    for what, keys in (
        ('stay at their initial values', found.missing),
        ('differ in shape and are not loaded', found.other_shape.values()),
        ('of the checkpoint are not used', found.unexpected),
    ):
        if keys:
            print_log(f'  {len(keys)} {what}: {", ".join(keys)}', logger='current')
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=checkpoint, prefix=_BACKBONE)


class StrictLoadHook(Hook):
    """For testing: every weight of the model has to come from the checkpoint.

    mmengine only warns of those that do not, and goes on with random ones.
    """

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        fault = fit(runner.model, weights_of(checkpoint)).fault
        if fault:
            raise UserError(f"the checkpoint is of another model than this config's: {fault}")
