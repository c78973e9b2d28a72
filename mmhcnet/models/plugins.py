"""The heat layers for other backbones, through OpenMMLab's plugin interface.

For example in ResNet of mmdet or mmseg::

    plugins=[dict(cfg=dict(type='mmhcnet.HeatConductionOperator'),
                  stages=(False, False, True, True), position='after_conv3')]
"""

import torch
from torch import Tensor, nn

from mmhcnet.registry import MODELS

from .layers import FreqEmbed, HeatConduction, SpectralConduction


@MODELS.register_module()
class HeatConductionOperator(nn.Module):
    """vHeat's heat conduction operator as a residual layer::

        y = x + γ · SpectralConduction(x, freq_embed)

    with the operator of :class:`~mmhcnet.models.layers.SpectralConduction` (Wang et al.,
    "Building Vision Models upon Heat Conduction", CVPR 2025; insulated border). γ is one learned
    factor per channel, vHeat's layer scale: it starts small, so a pretrained network begins where
    it was. The map keeps its shape. Runs at any resolution: ``freq_embed`` is resized
    bicubically to the map. 5 C² + O(C) parameters and the embedding, so in a ResNet bottleneck
    'after_conv2' takes a sixteenth of what 'after_conv3' takes.

    Args:
        in_channels (int): C; OpenMMLab's plugin interface gives it.
        freq_size (int): H and W that ``freq_embed`` is made for.
        with_dwconv (bool): Depthwise convolution at the beginning of the operator.
        with_gate (bool): Gate branch of the operator.
        k (str or float): 'frequency', 'learnable' (one number) or a fixed number in pixels².
        layer_scale (float): Initial value of γ.

    Raises:
        ValueError: Unknown ``k``, or a ``k`` that is negative or not finite.
    """

    def __init__(
        self,
        in_channels: int,
        freq_size: int = 14,
        with_dwconv: bool = True,
        with_gate: bool = True,
        k: str | float = 'frequency',
        layer_scale: float = 1e-5,
    ):
        super().__init__()
        self.conduction = SpectralConduction(in_channels, with_dwconv, with_gate, k)
        self.freq_embed = (
            FreqEmbed([(freq_size, freq_size)], [in_channels]) if k == 'frequency' else None
        )
        self.gamma = nn.Parameter(torch.full((in_channels,), float(layer_scale)))

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay does not apply to, as timm's models say it."""
        return {'gamma'}

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        freq_embed = None
        if self.freq_embed is not None:
            freq_embed = self.freq_embed.at(0, x.shape[2:])
        y = x.permute(0, 2, 3, 1)  # (B, H, W, C)
        y = self.gamma * self.conduction(y, freq_embed)
        return x + y.permute(0, 3, 1, 2)  # (B, C, H, W)


@MODELS.register_module()
class HeatConductionLayer(nn.Module):
    """HcNet's conduction step, z' = z + k h(z), as a layer of any backbone.

    :class:`~mmhcnet.models.layers.HeatConduction` (Zhang & Gong, IJCAI 2025, equations 4 and 6;
    insulated border) is residual by itself and keeps the map's shape.

    Args:
        in_channels (int): C; OpenMMLab's plugin interface gives it.
        stencil (str): 'anisotropic' or 'isotropic'.
        k (str or float): 'input_dependent', 'learnable' or a fixed number in pixels².

    Raises:
        ValueError: Unknown ``stencil`` or ``k``, or a ``k`` that is negative or not finite.
    """

    def __init__(
        self,
        in_channels: int,
        stencil: str = 'anisotropic',
        k: str | float = 'input_dependent',
    ):
        super().__init__()
        self.conduction = HeatConduction(in_channels, stencil, k)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return self.conduction(x)
