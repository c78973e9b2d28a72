"""Effective receptive field of backbones: how much each pixel of an image moves the centre of the
last feature map, and the share of pixels that move it by more than a threshold."""
import argparse
import logging
from pathlib import Path
from typing import Dict, List

import matplotlib
import torch
from torch import Tensor, nn

from mmhcnet.cli.errors import one_line_errors
from mmhcnet.inference.model import load_model, model_name
from mmhcnet.inference.pictures import model_input, read_picture

matplotlib.use('Agg')
from matplotlib import pyplot as plt  # noqa: E402  (after the choice of a backend without windows)

plt.rcParams.update({'font.size': 11, 'savefig.bbox': 'tight', 'image.interpolation': 'nearest'})

# Of the largest value: a Gaussian has fallen to this at two standard deviations from its centre
# in the definition of Luo et al., "Understanding the effective receptive field", NeurIPS 2016.
THRESHOLD = 1 - 0.9545


def receptive_field(model: nn.Module, images: Tensor) -> Tensor:
    """|d (channels of the last map at its centre) / d pixel|, largest value 1.

    The channels are summed with random signs. Their plain sum says nothing behind a LayerNorm: it
    is the same for all images.

    Args:
        model (nn.Module): With a backbone that gives a tuple of (B, C, H, W).
        images (Tensor): (B, 3, H, W), normalised; the mean over them is taken.

    Returns:
        Tensor: (H, W), from 0 to 1.
    """
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(images.shape[2:])
    for image in images.split(1):
        image = image.clone().requires_grad_()
        last = model.backbone(image)[-1]
        centre = last[0, :, last.shape[2] // 2, last.shape[3] // 2]
        signs = torch.randint(0, 2, centre.shape, generator=generator) * 2 - 1
        (centre * signs).sum().backward()
        total += image.grad[0].abs().sum(dim=0)
        model.zero_grad()
    return total / total.max()


def inputs(model: nn.Module, pictures: list, size: int, noise: int) -> Tensor:
    """Photos cut to squares of ``size``, or as many images of normal noise as asked for."""
    if not pictures:
        return torch.randn(noise, 3, size, size, generator=torch.Generator().manual_seed(0))
    squares = []
    for picture in pictures:
        left, top = (picture.width - size) // 2, (picture.height - size) // 2
        squares.append(model_input(model, picture.crop((left, top, left + size, top + size))))
    return torch.cat(squares)


def draw(fields: Dict[str, Tensor], out: Path) -> List[str]:
    """Writes the picture; returns a line per model with its share of pixels."""
    figure, axes = plt.subplots(1, len(fields), figsize=(4.6 * len(fields), 4.8), squeeze=False,
                                layout='constrained')
    lines = []
    for axis, (name, field) in zip(axes[0], fields.items()):
        share = 100 * (field > THRESHOLD).float().mean().item()
        image = axis.imshow(field, cmap='magma', norm=matplotlib.colors.PowerNorm(.3, 0, 1))
        axis.set(title=f'{name}\n{share:.1f} % of pixels above {THRESHOLD:.4f}',
                 xlabel='x (pixels)', ylabel='y (pixels)')
        lines.append(f'{name}: {share:.1f} % of the pixels above {THRESHOLD:.4f} of the largest')
    figure.colorbar(image, ax=axes, label='|gradient| / largest (dimensionless)', shrink=.75)
    figure.savefig(out, dpi=90)
    plt.close(figure)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('images', nargs='*', help='photos (default: images of normal noise)')
    parser.add_argument('--model', nargs=2, action='append', required=True,
                        metavar=('CONFIG', 'CKPT'), dest='models',
                        help="config and checkpoint, or 'none' for untrained weights; repeatable")
    parser.add_argument('--out', type=Path, default=Path('work_dirs/vis_erf/erf.png'),
                        help='picture to write (%(default)s)')
    parser.add_argument('--size', type=int, default=224,
                        help='side of the square images in pixels (%(default)s)')
    parser.add_argument('--noise', type=int, default=8,
                        help='images of noise where no photo is given (%(default)s)')
    args = parser.parse_args()
    logging.disable(logging.INFO)
    with one_line_errors():
        pictures = [read_picture(path, args.size) for path in args.images]
        fields = {}
        for config, checkpoint in args.models:
            _, model = load_model(config, checkpoint)
            fields[model_name(config, checkpoint)] = receptive_field(
                model, inputs(model, pictures, args.size, args.noise))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    print('\n'.join(draw(fields, args.out)))
    print(f'picture: {args.out}')


if __name__ == '__main__':
    main()
