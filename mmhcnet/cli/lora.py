"""Whether LoRA's targets name layers of a backbone, before a run."""

import re
from collections.abc import Iterator
from typing import Any

import torch
from mmengine.config import Config
from torch import nn

from mmhcnet.errors import UserError
from mmhcnet.registry import MODELS

from .config import is_type


def _lora_models(settings: Any) -> Iterator[dict]:
    if isinstance(settings, dict):
        if 'type' in settings and is_type(settings, 'LoRAModel'):
            yield settings
        settings = list(settings.values())
    if isinstance(settings, (list, tuple)):
        for inner in settings:
            yield from _lora_models(inner)


def check_lora(cfg: Config) -> None:
    """Look at the targets of mmpretrain's LoRAModel around backbones of this package.

    LoRAModel adapts linear layers whose names match or end with a target. Around other models its
    own check, which names no layer, decides.

    Raises:
        UserError: No target matches; the message lists what there is.
    """
    for settings in _lora_models(cfg.model):
        module, targets = settings.get('module'), settings.get('targets') or []
        if not isinstance(module, dict) or not str(module.get('type')).startswith('mmhcnet.'):
            continue
        with torch.device('meta'):
            built = MODELS.build(module)
        layers = [name for name, part in built.named_modules() if isinstance(part, nn.Linear)]
        wanted = [target['type'] for target in targets]
        if not any(re.fullmatch(w, name) or name.endswith(w) for w in wanted for name in layers):
            ends = sorted({name.rpartition('.')[2] for name in layers})
            raise UserError(
                f'no linear layer of {type(built).__name__} matches the targets of LoRAModel '
                f'({", ".join(wanted) or "none are given"}): there are {", ".join(ends) or "none"}'
            )
