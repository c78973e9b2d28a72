"""Models by their names, without configs, and in a folder of safetensors and JSON.

For code outside OpenMMLab: the names and arguments are timm's, the files are Hugging Face's.
"""

import json
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mmhcnet.checkpoints.files import write_file
from mmhcnet.checkpoints.fitting import fit, weights_of
from mmhcnet.checkpoints.reader import load_local
from mmhcnet.errors import UserError, nearest, require_packages
from mmhcnet.models import HcNet, VHeat

_FAMILIES = {'hcnet': HcNet, 'vheat': VHeat}
# Name: (backbone, its options)
MODELS = {
    **{
        f'{family}_{arch[0]}': (cls, dict(arch=arch))
        for family, cls in _FAMILIES.items()
        for arch in ('tiny', 'small', 'base')
    },
    **{family: (cls, {}) for family, cls in _FAMILIES.items()},
}
CONFIG, WEIGHTS = 'config.json', 'model.safetensors'


class LinearHead(nn.Module):
    """A linear layer on the mean of a map."""

    def __init__(self, channels: int, num_classes: int):
        super().__init__()
        self.fc = nn.Linear(channels, num_classes)
        nn.init.trunc_normal_(self.fc.weight, std=0.02)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, num_classes)."""
        return self.fc(x.mean(dim=(2, 3)))


class ImageClassifier(nn.Module):
    """Backbone and head; weights are called as in mmpretrain.

    Args:
        backbone (nn.Module): Returns one map, (B, C, H, W).
        num_classes (int): Outputs.
    """

    def __init__(self, backbone: HcNet | VHeat, num_classes: int):
        super().__init__()
        self.backbone = backbone
        self.head = LinearHead(backbone.out_channels[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, in_channels, H, W) -> logits (B, num_classes)."""
        return self.head(self.backbone(x)[-1])


def create_model(
    name: str,
    features_only: bool = False,
    num_classes: int = 1000,
    checkpoint: str | None = None,
    **options: Any,
) -> nn.Module:
    """A model by its name.

    Args:
        name (str): 'hcnet_t', 'hcnet_s', 'hcnet_b', 'vheat_t', 'vheat_s' or 'vheat_b'; or 'hcnet'
            or 'vheat', with ``arch`` among the options.
        features_only (bool): The backbone, which returns a tuple of maps and tells their
            ``out_channels`` and ``out_strides``, instead of a classifier, which returns logits.
        num_classes (int): Outputs of a classifier.
        checkpoint (str, optional): Weights of such a model as a training with mmpretrain, or
            :func:`save_pretrained`, writes them; of a detector or segmentor, too, for a backbone.
            Nothing in the file is run. Default: random weights.
        **options: Arguments of :class:`HcNet` or :class:`VHeat`; others are a TypeError.

    Returns:
        nn.Module: In training mode, with what it was made of as ``config``.

    Raises:
        UserError: Unknown name, or a checkpoint of another model.
    """
    if name not in MODELS:
        raise UserError(
            f"there is no model '{name}'{nearest(name, MODELS)} There are: {', '.join(MODELS)}"
        )
    cls, own = MODELS[name]
    if features_only:
        model = cls(**own, **options)
    else:
        arch = options.get('arch')
        stages = len(arch.get('depths', ())) if isinstance(arch, dict) else 4
        model = ImageClassifier(cls(**own, **options, out_indices=(stages - 1,)), num_classes)
    model.config = dict(name=name, features_only=features_only, num_classes=num_classes, **options)
    if checkpoint:
        _load(model, checkpoint, features_only)
    return model


def _load(model: nn.Module, path: str, features_only: bool) -> None:
    weights = weights_of(load_local(path, map_location='cpu'))
    inside = {
        key.removeprefix('backbone.'): value
        for key, value in weights.items()
        if key.startswith('backbone.')
    }
    fault = fit(model, inside if features_only and inside else weights).fault
    if fault:
        raise UserError(f"'{path}' is a checkpoint of another model: {fault}")


def save_pretrained(model: nn.Module, folder: str) -> None:
    """Write a model of :func:`create_model`: ``model.safetensors``, ``config.json`` next to it.

    Args:
        model (nn.Module): Its weights are written as they are.
        folder (str): Made where it is missing; files of an earlier model in it are replaced.

    Raises:
        UserError: The model is not of :func:`create_model`, or is folded for one image size.
    """
    require_packages('safetensors')
    from safetensors.torch import save

    if not isinstance(getattr(model, 'config', None), dict):
        raise UserError('save_pretrained() takes a model of mmhcnet.create_model()')
    if any(getattr(part, 'deploy_size', None) for part in model.modules()):
        raise UserError(
            'a vHeat that switch_to_deploy() has folded is no longer what config.json tells: '
            'save it before'
        )
    weights = {key: value.cpu().contiguous() for key, value in model.state_dict().items()}
    write_file(Path(folder, WEIGHTS), save(weights, metadata=dict(format='pt')))
    write_file(Path(folder, CONFIG), (json.dumps(model.config, indent=2) + '\n').encode())


def from_pretrained(folder: str) -> nn.Module:
    """The model that :func:`save_pretrained` wrote to a folder, in evaluation mode.

    Raises:
        UserError: There is none, or the files are damaged or do not belong together.
    """
    path = Path(folder, CONFIG)
    try:
        config = json.loads(path.read_text(encoding='utf-8'))
    except FileNotFoundError:
        raise UserError(
            f"'{folder}' has no {CONFIG}: give a folder that mmhcnet.save_pretrained() wrote"
        ) from None
    except ValueError as error:
        raise UserError(f"'{path}' is not complete JSON ({error}): copy it again") from None
    try:
        return create_model(**config, checkpoint=str(Path(folder, WEIGHTS))).eval()
    except TypeError as error:
        raise UserError(f"'{path}' is not the config of a model: {error}") from error
