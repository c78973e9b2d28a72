"""Where classifiers look: Grad-CAM of several models side by side on one photo."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor, nn

from mmhcnet.inference.model import named_layer
from mmhcnet.inference.pictures import model_input

from .figures import draw_row


class Cam(NamedTuple):
    """A map (H, W) from 0 to 1 for a class, its score in %, and the layer that it is of."""

    name: str
    layer: str
    label: int
    score: float
    map: np.ndarray


def as_maps(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Activations of a layer as (B, C, H, W), from tokens or channels-last maps too.

    Args:
        x (Tensor): (B, C, H, W), (B, H, W, C), or (B, tokens, C), class tokens first.
        size (tuple[int]): H and W of the image, of which the map's are a 4th to a 32nd.

    Raises:
        ValueError: None of these.
    """
    sizes = [(-(-size[0] // f), -(-size[1] // f)) for f in (32, 16, 8, 4, 2)]
    if x.dim() == 4 and tuple(x.shape[2:]) in sizes:
        return x
    if x.dim() == 4 and tuple(x.shape[1:3]) in sizes:
        return x.permute(0, 3, 1, 2)
    for height, width in sizes:
        if x.dim() == 3 and 0 <= x.shape[1] - height * width <= 2:
            return x[:, -height * width :].transpose(1, 2).unflatten(2, (height, width))
    raise ValueError(
        f'the layer gives {tuple(x.shape)}, which is not a map of an image of '
        f'{size[0]}x{size[1]}: choose another layer'
    )


def last_layer(model: nn.Module) -> str:
    """The last norm or stage of a backbone."""
    names = [name for name, _ in model.backbone.named_children()]
    wanted = [name for name in names if name.startswith(('norm', 'layer', 'stage'))]
    norms = [name for name in wanted if name.startswith('norm') and name != 'norm1']
    return f'backbone.{(norms or wanted or names)[-1]}'


def explain(
    model: nn.Module, picture, name: str, layer: str | None = None, label: int | None = None
) -> Cam:
    """Grad-CAM of a classifier.

    Args:
        model (nn.Module): A classifier of mmpretrain.
        picture (PIL.Image.Image): The photo, RGB.
        name (str): What the picture calls the model.
        layer (str, optional): Name of a layer; the last norm or stage of the backbone.
        label (int, optional): Class to explain; the one with the highest score.

    Raises:
        ValueError: Not a classifier, no such layer or class; or the package is missing.
    """
    try:
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    except ImportError as error:
        raise ValueError(
            "vis_cam needs the package grad-cam: pip install --no-deps grad-cam==1.5.7 ttach==0.0.3"
        ) from error
    if getattr(getattr(model, 'head', None), 'num_classes', None) is None:
        raise ValueError(
            f'{name} is not a classifier, which has the class scores that Grad-CAM explains'
        )
    layer = layer or last_layer(model)
    target = named_layer(
        model,
        layer,
        [n for n, _ in model.named_modules() if n.startswith('backbone.') and n.count('.') <= 3],
    )
    image = model_input(model, picture)
    size = tuple(image.shape[2:])
    scores = model(image).softmax(dim=1)[0]
    if label is None:
        label = int(scores.argmax())
    if not 0 <= label < len(scores):
        raise ValueError(f'--label must be from 0 to {len(scores) - 1}, got {label}')
    with GradCAM(model, [target], reshape_transform=lambda x: as_maps(x, size)) as cam:
        found = cam(image, [ClassifierOutputTarget(label)])[0]
    return Cam(name, layer, label, 100 * scores[label].item(), found)


def draw(picture, cams: list[Cam], out: Path) -> list[str]:
    """Writes the photo and the maps over it; returns a line per model."""
    draw_row(
        {f'{cam.name}\nclass {cam.label}, score {cam.score:.1f} %': cam.map for cam in cams},
        out,
        'Grad-CAM / largest (dimensionless)',
        photo=picture,
        cmap='inferno',
        alpha=0.6,
        vmin=0,
        vmax=1,
    )
    return [
        f'{cam.name}: class {cam.label}, score {cam.score:.1f} %, layer {cam.layer}' for cam in cams
    ]
