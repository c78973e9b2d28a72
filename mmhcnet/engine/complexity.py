"""Parameters and multiply-accumulates of a model."""
from typing import NamedTuple, Tuple

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

# Proposals per image that Mask R-CNN's box head sees at test time; its mask head sees 100.
PROPOSALS = 1000


class Complexity(NamedTuple):
    """Parameters and multiply-accumulates (of convolutions and matrix products) per image."""
    params: int
    macs: int


def _count(model: nn.Module, run, *inputs) -> Complexity:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run(*inputs)
    # The counter takes a multiply-accumulate for two operations.
    return Complexity(sum(p.numel() for p in model.parameters()),
                      counter.get_total_flops() // 2)


def _run_detector(model: nn.Module, image: Tensor) -> None:
    # A fixed number of boxes instead of those that survive NMS with random weights.
    from mmdet.structures.bbox import bbox2roi
    features = model.extract_feat(image)
    model.rpn_head(features)
    height, width = image.shape[2:]
    boxes = torch.rand(PROPOSALS, 4) * torch.tensor([width / 2, height / 2] * 2)
    boxes[:, 2:] += boxes[:, :2]
    rois = bbox2roi([boxes])
    model.roi_head._bbox_forward(features, rois)
    if model.roi_head.with_mask:
        model.roi_head._mask_forward(features, rois[:100])


def count_complexity(cfg: Config, shape: Tuple[int, int]) -> Tuple[Complexity, Complexity]:
    """Backbone and whole model of a config, for one image.

    Two-stage detectors are counted with 1000 proposals in the box head and 100 in the mask head.

    Args:
        cfg (Config): A config of mmpretrain, mmdet or mmseg.
        shape (tuple[int]): H and W of the image.

    Returns:
        tuple[Complexity]: Of the backbone, and of the whole model without losses.
    """
    init_default_scope(cfg.default_scope)
    # One process and evaluation only: there SyncBN is BN, and BN runs without a GPU.
    model = MODELS.build(cfg.model).eval()
    image = torch.zeros(1, 3, *shape)
    whole = (lambda x: _run_detector(model, x)) if hasattr(model, 'roi_head') else (
        lambda x: model(x, mode='tensor'))
    return _count(model.backbone, model.backbone, image), _count(model, whole, image)
