"""Where classifiers look: Grad-CAM of several models side by side on one photo."""
import argparse
import logging
from pathlib import Path
from typing import List, NamedTuple, Optional, Tuple

import matplotlib
import numpy as np
from torch import Tensor, nn

from mmhcnet.cli.errors import one_line_errors
from mmhcnet.inference.model import load_model, model_name, named_layer
from mmhcnet.inference.pictures import model_input, read_picture

matplotlib.use('Agg')
from matplotlib import pyplot as plt  # noqa: E402  (after the choice of a backend without windows)

plt.rcParams.update({'font.size': 11, 'savefig.bbox': 'tight'})


class Cam(NamedTuple):
    """A map (H, W) from 0 to 1 for a class, its score in %, and the layer that it is of."""
    name: str
    layer: str
    label: int
    score: float
    map: np.ndarray


def as_maps(x: Tensor, size: Tuple[int, int]) -> Tensor:
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
            return x[:, -height * width:].transpose(1, 2).unflatten(2, (height, width))
    raise ValueError(f'the layer gives {tuple(x.shape)}, which is no map of an image of '
                     f'{size[0]}x{size[1]}: choose another layer')


def last_layer(model: nn.Module) -> str:
    """The last norm or stage of a backbone."""
    names = [name for name, _ in model.backbone.named_children()]
    wanted = [name for name in names if name.startswith(('norm', 'layer', 'stage'))]
    norms = [name for name in wanted if name.startswith('norm') and name != 'norm1']
    return f'backbone.{(norms or wanted or names)[-1]}'


def grad_cam(model: nn.Module, picture, name: str, layer: Optional[str] = None,
             label: Optional[int] = None) -> Cam:
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
        raise ValueError("vis_cam needs the package grad-cam: pip install --no-deps "
                         'grad-cam==1.5.7 ttach==0.0.3') from error
    if getattr(getattr(model, 'head', None), 'num_classes', None) is None:
        raise ValueError(f'{name} is not a classifier, which has the class scores that Grad-CAM '
                         'explains')
    layer = layer or last_layer(model)
    target = named_layer(model, layer, [n for n, _ in model.named_modules()
                                        if n.startswith('backbone.') and n.count('.') <= 3])
    image = model_input(model, picture)
    size = tuple(image.shape[2:])
    scores = model(image).softmax(dim=1)[0]
    if label is None:
        label = scores.argmax().item()
    if not 0 <= label < len(scores):
        raise ValueError(f'--label must be from 0 to {len(scores) - 1}, got {label}')
    with GradCAM(model, [target], reshape_transform=lambda x: as_maps(x, size)) as cam:
        found = cam(image, [ClassifierOutputTarget(label)])[0]
    return Cam(name, layer, label, 100 * scores[label].item(), found)


def draw(picture, cams: List[Cam], out: Path) -> List[str]:
    """Writes the photo and the maps over it; returns a line per model."""
    figure, axes = plt.subplots(1, len(cams) + 1, figsize=(4.6 * (len(cams) + 1), 4.8),
                                layout='constrained')
    axes[0].imshow(picture)
    axes[0].set(title='photo', xlabel='x (pixels)', ylabel='y (pixels)')
    lines = []
    for axis, cam in zip(axes[1:], cams):
        axis.imshow(picture)
        image = axis.imshow(cam.map, cmap='inferno', alpha=.6, vmin=0, vmax=1)
        axis.set(title=f'{cam.name}\nclass {cam.label}, score {cam.score:.1f} %',
                 xlabel='x (pixels)', ylabel='y (pixels)')
        lines.append(f'{cam.name}: class {cam.label}, score {cam.score:.1f} %, layer {cam.layer}')
    figure.colorbar(image, ax=axes, label='Grad-CAM / largest (dimensionless)', shrink=.75)
    figure.savefig(out, dpi=90)
    plt.close(figure)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('image', help='photo')
    parser.add_argument('--model', nargs='+', action='append', required=True,
                        metavar=('CONFIG CKPT', 'LAYER'), dest='models',
                        help="config, checkpoint or 'none', and the name of a layer (default: the "
                        'last norm or stage of the backbone); repeatable')
    parser.add_argument('--label', type=int, help='class to explain (default: the highest score)')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/vis_cam/cam.png'),
                        help='picture to write (%(default)s)')
    parser.add_argument('--size', type=int, default=224,
                        help='shorter side that the photo is resized to (%(default)s)')
    args = parser.parse_args()
    if any(len(model) not in (2, 3) for model in args.models):
        parser.error('--model takes CONFIG and CKPT, and a LAYER if wanted')
    logging.disable(logging.INFO)
    with one_line_errors():
        picture = read_picture(args.image, args.size)
        cams = []
        for config, checkpoint, *layer in args.models:
            _, model = load_model(config, checkpoint)
            cams.append(grad_cam(model, picture, model_name(config, checkpoint), *layer,
                                 label=args.label))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    print('\n'.join(draw(picture, cams, args.out)))
    print(f'picture: {args.out}')


if __name__ == '__main__':
    main()
