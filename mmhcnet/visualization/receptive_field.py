"""Effective receptive field of backbones: how much each pixel of an image moves the centre of the
last feature map, and the share of pixels that move it by more than a threshold."""

from pathlib import Path

import torch
from matplotlib.colors import PowerNorm
from torch import Tensor, nn

from mmhcnet.inference.model import input_channels
from mmhcnet.inference.pictures import model_input

from .figures import draw_row

# Of the largest value: a Gaussian has fallen to this at two standard deviations from its centre
# in the definition of Luo et al., "Understanding the effective receptive field", NeurIPS 2016.
THRESHOLD = 1 - 0.9545


def measure(model: nn.Module, images: Tensor) -> Tensor:
    """|d (channels of the last map at its centre) / d pixel|, largest value 1.

    The channels are summed with random signs. Their plain sum says nothing after a LayerNorm: it
    is the same for all images.

    Args:
        model (nn.Module): With a backbone that gives a tuple of (B, C, H, W).
        images (Tensor): (B, C, H, W), normalised; the mean over them is taken.

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
        (gradient,) = torch.autograd.grad((centre * signs).sum(), image)
        total += gradient[0].abs().sum(dim=0)
    return total / total.max()


def inputs(model: nn.Module, pictures: list, size: int, noise: int) -> Tensor:
    """Photos cut to squares of ``size``, or as many images of normal noise as asked for."""
    if not pictures:
        return torch.randn(
            noise,
            input_channels(model.backbone),
            size,
            size,
            generator=torch.Generator().manual_seed(0),
        )
    squares = []
    for picture in pictures:
        left, top = (picture.width - size) // 2, (picture.height - size) // 2
        squares.append(model_input(model, picture.crop((left, top, left + size, top + size))))
    return torch.cat(squares)


def draw(fields: dict[str, Tensor], out: Path) -> list[str]:
    """Writes the picture; returns a line per model with its share of pixels."""
    shares = {
        name: 100 * (field > THRESHOLD).float().mean().item() for name, field in fields.items()
    }
    draw_row(
        {
            f'{name}\n{share:.1f} % of pixels above {THRESHOLD:.4f}': fields[name]
            for name, share in shares.items()
        },
        out,
        '|gradient| / largest (dimensionless)',
        cmap='magma',
        norm=PowerNorm(0.3, 0, 1),
    )
    return [
        f'{name}: {share:.1f} % of the pixels above {THRESHOLD:.4f} of the largest'
        for name, share in shares.items()
    ]
