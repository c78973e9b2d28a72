"""A model from a config and a checkpoint."""

import copy
import os
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmhcnet.checkpoints.fitting import load_weights
from mmhcnet.checkpoints.reader import load_safely
from mmhcnet.cli.config import load_config, stock_config

# In place of a checkpoint: the weights that the model starts a training with.
UNTRAINED = 'none'


def build_model(cfg: Config, checkpoint: str | None = None) -> nn.Module:
    """The model of a config, in eval mode on the CPU.

    SyncBN becomes BN, because it runs on a GPU only. ``model.dataset_meta`` holds what the
    checkpoint says of its data set, class names among it, or is None.

    Args:
        cfg (Config): A config of mmpretrain, mmdet or mmseg.
        checkpoint (str, optional): Every weight has to come from it. Without one the weights are
            random; nothing that the config would start a training from is read.

    Raises:
        UserError: No such checkpoint, or not one that can be read.
        ValueError: A checkpoint of another model.
    """
    # An init_cfg of any part of the model may name a checkpoint, too.
    load_safely()
    init_default_scope(cfg.default_scope)
    settings = copy.deepcopy(cfg.model)
    if cfg.get('data_preprocessor'):
        settings.setdefault('data_preprocessor', cfg.data_preprocessor)
    if (settings.get('backbone', {}).get('init_cfg') or {}).get('type') == 'Pretrained':
        settings.backbone.init_cfg = None
    model = revert_sync_batchnorm(MODELS.build(settings)).eval()
    meta = load_weights(model, checkpoint) if checkpoint else {}
    model.dataset_meta = meta.get('dataset_meta')
    return model


def load_model(config: str, checkpoint: str) -> tuple[Config, nn.Module]:
    """The model of a config, in eval mode on the CPU.

    Args:
        config (str): A config file, or ``'package::path'``.
        checkpoint (str): Its checkpoint, or 'none' for the weights that a training starts with.

    Raises:
        FileNotFoundError: No such config or checkpoint.
        ValueError: A checkpoint of another model.
    """
    cfg = load_config(stock_config(config), None, work_dir=None)
    if checkpoint != UNTRAINED and not os.path.isfile(checkpoint):
        raise FileNotFoundError(
            f"no checkpoint file '{checkpoint}'; '{UNTRAINED}' stands for untrained weights"
        )
    torch.manual_seed(0)
    if checkpoint != UNTRAINED:
        return cfg, build_model(cfg, checkpoint)
    model = build_model(cfg)
    model.init_weights()
    return cfg, model


def input_channels(model: nn.Module) -> int:
    """Channels of the image that a model, or a part that begins with a backbone, takes."""
    return next(part.in_channels for part in model.modules() if isinstance(part, nn.Conv2d))


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
