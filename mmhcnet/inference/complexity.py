"""Parameters and multiply-accumulates of a model."""

from typing import NamedTuple

import torch
from mmengine.config import Config
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from mmhcnet.models.layers import HeatConduction, SpectralConduction

from .model import build_model, input_channels

# Per image, at test time: the proposals that Mask R-CNN's box head sees, and the boxes of which
# its mask head draws masks.
PROPOSALS, MASKS = 1000, 100

# H and W at which papers count, by default_scope: the ImageNet crop, Mask R-CNN, UperNet.
SHAPES = {'mmpretrain': (224, 224), 'mmdet': (800, 1280), 'mmseg': (512, 2048)}


class Complexity(NamedTuple):
    """Parameters and multiply-accumulates (of convolutions and matrix products) per image."""

    params: int
    macs: int


class _WithoutDraws(TorchDispatchMode):
    """Weights keep whatever is in their memory: most of the time it takes to build a model."""

    DRAWS = {
        torch.ops.aten.uniform_.default,
        torch.ops.aten.normal_.default,
        torch.ops.aten.erfinv_.default,
    }

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return args[0] if func in self.DRAWS else func(*args, **(kwargs or {}))


def _count(model: nn.Module, run, image: Tensor) -> tuple[Complexity, Complexity]:
    """Of the backbone, which ``run`` calls, and of the whole."""
    totals = []
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.backbone.register_forward_pre_hook(
            lambda *_: totals.append(counter.get_total_flops())
        )
        model.backbone.register_forward_hook(lambda *_: totals.append(counter.get_total_flops()))
        run(image)
    before, after, *_ = totals
    # The counter takes a multiply-accumulate for two operations.
    backbone, whole = (
        Complexity(sum(p.numel() for p in part.parameters()), flops // 2)
        for part, flops in ((model.backbone, after - before), (model, counter.get_total_flops()))
    )
    return backbone, whole


def _count_layer(layer: nn.Module, inputs: tuple, output: Tensor) -> None:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        # Its hooks, this function among them, are not to be called again.
        layer.forward(*inputs)
    layer.get_buffer('total_ops').add_(counter.get_total_flops() // 2)


#: For ``thop.profile(model, (image,), custom_ops=THOP_OPS)``, which counts layers of types that it
#: knows: the stencil and the cosine transform are products outside of any such layer.
THOP_OPS = {HeatConduction: _count_layer, SpectralConduction: _count_layer}


def _run_detector(model: nn.Module, image: Tensor) -> None:
    # A fixed number of boxes instead of those that survive NMS with random weights. What RoIAlign
    # would give to the heads is made up: it has neither a convolution nor a matrix product, and no
    # implementation for tensors without data.
    model.rpn_head(model.extract_feat(image))
    heads = model.roi_head
    for boxes, head, extractor in (
        (PROPOSALS, 'bbox_head', 'bbox_roi_extractor'),
        (MASKS, 'mask_head', 'mask_roi_extractor'),
    ):
        if getattr(heads, head, None) is not None:
            regions = getattr(heads, extractor)
            size = regions.roi_layers[0].output_size
            getattr(heads, head)(image.new_empty(boxes, regions.out_channels, *size))


def count_complexity(
    cfg: Config, shape: tuple[int, int], folded: bool = False
) -> tuple[Complexity, Complexity]:
    """Backbone and whole model of a config, for one image.

    Two-stage detectors are counted with 1000 proposals in the box head and 100 in the mask head.

    Args:
        cfg (Config): A config of mmpretrain, mmdet or mmseg.
        shape (tuple[int]): H and W of the image.
        folded (bool): Count after ``backbone.switch_to_deploy(shape)``.

    Returns:
        tuple[Complexity]: Of the backbone, and of the whole model without losses.

    Raises:
        ValueError: ``folded`` for a backbone that has no form to fold to.
    """
    # Shapes are all that counting needs, so nothing is computed: a tensor on 'meta' has no data.
    # Not every model can be built there.
    with _WithoutDraws():
        model = build_model(cfg)
    model.to('meta')
    if folded:
        if not hasattr(model.backbone, 'switch_to_deploy'):
            raise ValueError(f'{type(model.backbone).__name__} has no form to fold to; VHeat has')
        model.backbone.switch_to_deploy(shape)
    image = torch.empty(1, input_channels(model.backbone), *shape, device='meta')
    whole = (
        (lambda x: _run_detector(model, x))
        if hasattr(model, 'roi_head')
        else (lambda x: model(x, mode='tensor'))
    )
    return _count(model, whole, image)
