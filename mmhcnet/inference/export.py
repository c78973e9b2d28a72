"""A model of a config as an ONNX graph, compared with torch in onnxruntime."""

import inspect
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from mmengine.config import Config
from torch import Tensor, nn

from mmhcnet.errors import require_packages
from mmhcnet.models import VHeat

from .model import build_model, input_channels

# Largest difference between onnxruntime and torch, relative to the output where that is above 1.
TOLERANCE = 1e-4
_AXES = {0: 'batch', 2: 'height', 3: 'width'}


class AdaptiveAvgPool(nn.Module):
    """nn.AdaptiveAvgPool2d as two matrix products: ONNX has no adaptive pooling.

    Bin i of an axis of length N is the mean over floor(iN / n) <= x < ceil((i + 1) N / n).

    Args:
        size (int): n, bins per axis.
    """

    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def _means(self, length: int, x: Tensor) -> Tensor:
        i = torch.arange(self.size, device=x.device)[:, None]
        position = torch.arange(length, device=x.device)
        # -(-a // b) rounds up.
        end = -torch.div(-(i + 1) * length, self.size, rounding_mode='floor')
        begin = torch.div(i * length, self.size, rounding_mode='floor')
        inside = ((position >= begin) & (position < end)).to(x.dtype)
        return inside / inside.sum(dim=1, keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, n, n)."""
        return self._means(x.shape[2], x) @ x @ self._means(x.shape[3], x).T


class Classifier(nn.Module):
    """Image to class logits: (B, C, H, W) -> (B, classes)."""

    outputs = ('logits',)

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        return self.model(image, mode='tensor')


class Segmentor(nn.Module):
    """Image to logits of every pixel: (B, C, H, W) -> (B, classes, H, W)."""

    outputs = ('logits',)

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        for module in list(model.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.AdaptiveAvgPool2d) and isinstance(child.output_size, int):
                    setattr(module, name, AdaptiveAvgPool(child.output_size))

    def forward(self, image: Tensor) -> Tensor:
        logits = self.model(image, mode='tensor')
        return F.interpolate(
            logits, size=image.shape[2:], mode='bilinear', align_corners=self.model.align_corners
        )


class Features(nn.Module):
    """Image to the maps of a detector's backbone and neck."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.backbone = model.backbone
        self.neck = model.neck
        self.outputs = tuple(f'feature{i}' for i in range(model.neck.num_outs))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B, C, H, W) -> one (B, C, H_i, W_i) per level of the pyramid."""
        return self.neck(self.backbone(image))


_PARTS = {'mmpretrain': Classifier, 'mmseg': Segmentor, 'mmdet': Features}


class Difference(NamedTuple):
    """Of one input: its shape, max |onnxruntime - torch|, max |torch|."""

    shape: tuple[int, ...]
    difference: float
    largest: float

    @property
    def ok(self) -> bool:
        return self.difference <= TOLERANCE * max(1, self.largest)


def exportable(cfg: Config, checkpoint: str | None, shape: tuple[int, int]) -> nn.Module:
    """What is exported of a config's model, in eval mode on the CPU.

    A classifier, or a segmentor with logits at the size of the image, in full; of a detector
    backbone and neck. A vHeat is folded for the image size.

    Args:
        cfg (Config): A config of mmpretrain, mmseg or mmdet.
        checkpoint (str, optional): Weights; without them they are random.
        shape (tuple[int, int]): H and W of the image.

    Returns:
        nn.Module: Takes an image that is normalised already; ``outputs`` names what it returns.
    """
    if cfg.get('default_scope') not in _PARTS:
        raise ValueError(
            f'default_scope of the config must be one of {list(_PARTS)}, '
            f"got {cfg.get('default_scope')!r}"
        )
    model = build_model(cfg, checkpoint)
    if isinstance(model.backbone, VHeat):
        model.backbone.switch_to_deploy(shape)
    return _PARTS[cfg.default_scope](model).eval()


def has_fixed_size(module: nn.Module) -> bool:
    """Whether a module takes images of one size only: with a vHeat in it."""
    return any(isinstance(part, VHeat) for part in module.modules())


def export_onnx(
    module: nn.Module,
    path: str,
    shape: tuple[int, int],
    opset: int,
    outputs: Sequence[str],
    fixed_size: bool = False,
) -> None:
    """Writes an ONNX file with a dynamic batch, and dynamic H and W unless the size is fixed.

    Args:
        module (nn.Module): In eval mode; takes (B, C, H, W).
        path (str): File to write.
        shape (tuple[int, int]): H and W of the image that the module is traced with.
        opset (int): Version of ONNX's operator set.
        outputs (Sequence[str]): Names of what the module returns.
        fixed_size (bool): Fix H and W where the module takes others, too; a vHeat's are fixed
            anyhow.
    """
    require_packages('onnx')
    image = torch.randn(2, input_channels(module), *shape)
    axes = {0: 'batch'} if fixed_size or has_fixed_size(module) else _AXES
    dynamic = {'image': axes}
    with torch.no_grad():
        results = module(image)
    results = [results] if isinstance(results, Tensor) else results
    for name, result in zip(outputs, results):
        dynamic[name] = {
            axis: label if axis == 0 else f'{name}_{label}'
            for axis, label in axes.items()
            if axis < result.dim()
        }
    # The exporter that both supported versions of torch have; torch 2.1 has no name for it.
    newer = 'dynamo' in inspect.signature(torch.onnx.export).parameters
    torch.onnx.export(
        module,
        (image,),
        path,
        input_names=['image'],
        output_names=list(outputs),
        dynamic_axes=dynamic,
        opset_version=opset,
        **(dict(dynamo=False) if newer else {}),
    )


def check_onnx(
    module: nn.Module, path: str, shapes: Sequence[tuple[int, int, int]]
) -> Iterator[Difference]:
    """Runs an ONNX file in onnxruntime and the module on the same random images.

    Args:
        module (nn.Module): What the file was exported from.
        path (str): The file.
        shapes (Sequence[tuple[int, int, int]]): B, H and W of each image.

    Yields:
        Difference: One per shape.
    """
    require_packages('onnx', 'onnxruntime')
    import onnx
    import onnxruntime

    onnx.checker.check_model(path)
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    for batch, height, width in shapes:
        image = torch.randn(batch, input_channels(module), height, width)
        with torch.no_grad():
            wanted = module(image)
        wanted = [wanted] if isinstance(wanted, Tensor) else wanted
        found = [torch.from_numpy(x) for x in session.run(None, {'image': image.numpy()})]
        if [x.shape for x in found] != [x.shape for x in wanted]:
            raise ValueError(
                f'onnxruntime returns {[tuple(x.shape) for x in found]}, torch '
                f'{[tuple(x.shape) for x in wanted]}'
            )
        yield Difference(
            tuple(image.shape),
            max((a - b).abs().max().item() for a, b in zip(found, wanted)),
            max(b.abs().max().item() for b in wanted),
        )


def check_shapes(shape: tuple[int, int], fixed: bool) -> list[tuple[int, int, int]]:
    """B, H and W of the images to check an export with; odd sizes too where they are free."""
    height, width = shape
    if fixed:
        return [(1, height, width), (3, height, width)]
    return [
        (1, height, width),
        (3, height, width),
        (2, height + 45, width + 18),
        (1, max(33, height - 31), width),
    ]
