"""A model from a config and a checkpoint."""
import os
from pathlib import Path
from typing import Tuple

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmhcnet.checkpoints.fit import load_weights
from mmhcnet.cli.config import load_config, stock_config

# In place of a checkpoint: the weights that the model starts a training with.
UNTRAINED = 'none'


def load_model(config: str, checkpoint: str) -> Tuple[Config, nn.Module]:
    """The model of a config, in eval mode on the CPU.

    Args:
        config (str): A config file, or ``'package::path'``.
        checkpoint (str): Its checkpoint, or 'none' for the weights that a training starts with.

    Raises:
        FileNotFoundError: No such config or checkpoint.
        ValueError: A checkpoint of another model.
    """
    cfg = load_config(stock_config(config), None, work_dir=None)
    init_default_scope(cfg.default_scope)
    if cfg.get('data_preprocessor'):
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    if checkpoint != UNTRAINED and not os.path.isfile(checkpoint):
        raise FileNotFoundError(f"no checkpoint file '{checkpoint}'; '{UNTRAINED}' stands for "
                                'untrained weights')
    if (cfg.model.backbone.get('init_cfg') or {}).get('type') == 'Pretrained':
        cfg.model.backbone.init_cfg = None
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).eval()
    if checkpoint == UNTRAINED:
        model.init_weights()
    else:
        load_weights(model, checkpoint)
    return cfg, model


def model_name(config: str, checkpoint: str) -> str:
    """How a picture calls a model."""
    return Path(config).stem + (' (untrained)' if checkpoint == UNTRAINED else '')


def named_layer(model: nn.Module, name: str, known: list) -> nn.Module:
    """A layer by its name.

    Raises:
        ValueError: No such layer; the message lists ``known``.
    """
    layers = dict(model.named_modules())
    if not name or name not in layers:
        raise ValueError(f"the model has no layer '{name}'; choose one of: {', '.join(known)}")
    return layers[name]
