from collections.abc import Sequence

from torch import Tensor, nn

from mmhcnet.models.fusion import may_fuse
from mmhcnet.models.layers import GroupNorm1, HeatConduction, Refinement
from mmhcnet.ops import HcBlockWeights, hc_block
from mmhcnet.registry import MODELS

from .base import Arch, HierarchicalBackbone, check_recompute, parse_arch

# Table 1 of the paper.
ARCHS = {
    'tiny': dict(embed_dims=[64, 128, 320, 512], depths=[5, 5, 14, 5]),
    'small': dict(embed_dims=[64, 192, 384, 768], depths=[6, 6, 18, 6]),
    'base': dict(embed_dims=[96, 192, 384, 768], depths=[10, 10, 28, 10]),
}


class HcBlock(nn.Module):
    """Conduction, then refinement: HcNet's block. (B, C, H, W) -> (B, C, H, W).

    Args:
        conduction (HeatConduction): The heat step.
        refinement (Refinement): What adds harmonics.
        recompute (bool): In the fused form, compute again in the backward pass what is cheap.
    """

    def __init__(self, conduction: HeatConduction, refinement: Refinement, recompute: bool):
        super().__init__()
        self.conduction = conduction
        self.refinement = refinement
        self.recompute = recompute
        self.fused = True

    def forward(self, z: Tensor) -> Tensor:
        if may_fuse(self, z):
            return self._fused(z)
        return self.refinement(self.conduction(z))

    def _fused(self, z: Tensor) -> Tensor:
        conduction, refinement = self.conduction, self.refinement
        to_k, dwconv = conduction.to_k, refinement.dwconv
        weights = HcBlockWeights(
            w=conduction.w,
            to_k=None if to_k is None else to_k.weight,
            norm_weight=refinement.norm.weight,
            norm_bias=refinement.norm.bias,
            fc1_weight=refinement.fc1.weight.flatten(1),
            fc1_bias=refinement.fc1.bias,
            filter=None if dwconv is None else dwconv.weight,
            fc2_weight=refinement.fc2.weight.flatten(1),
            fc2_bias=refinement.fc2.bias,
        )
        return hc_block(
            z,
            weights,
            k=conduction.rate(z) if to_k is None else None,
            keep1=conduction.drop_path.factors(z),
            keep2=refinement.drop_path.factors(z),
            eps=refinement.norm.eps,
            recompute=self.recompute,
        )


@MODELS.register_module()
class HcNet(HierarchicalBackbone):
    """HcNet: each channel is a temperature field.

    A block takes one finite-difference step of the heat equation with an input-dependent rate
    (:class:`~mmhcnet.models.layers.HeatConduction`), then adds harmonics
    (:class:`~mmhcnet.models.layers.Refinement`). Zhang & Gong, "Efficient Visual Representation
    Learning with Heat Conduction Equation", IJCAI 2025; equations 4 and 6, tables 1, 5 and 6.

    Args:
        arch (str or dict): 'tiny', 'small', 'base', or ``dict(embed_dims=[...], depths=[...])``.
        in_channels (int): Channels of the image.
        mlp_ratio (float): Hidden width of the refinement layer over its channels.
        stencil (str): 'anisotropic' (the paper: four learned weights per channel) or 'isotropic'
            (the published code: mean of the 8 neighbours).
        k (str or float): Conduction rate: 'input_dependent', 'learnable' (one number per layer)
            or a fixed number.
        with_filter (bool): Depthwise convolution in the refinement layer; False drops it at an
            equal number of parameters.
        drop_path_rate (float): Stochastic depth of the last block; grows linearly from 0.
        out_indices (Sequence[int]): Stages to return, each through ``norm{i}``.
        frozen_stages (int): -1 nothing, 0 the stem, n the stem and the first n stages.
        norm_eval (bool): Keep norm layers in eval mode during training. GroupNorm keeps no
            running statistics, so outputs do not depend on it.
        with_cp (bool): Recompute blocks in the backward pass: less memory, more time.
        recompute (bool): Compute again in the backward pass what is cheap (norm, stencil, GELU and
            filter); False keeps it, in twice the memory.
        mask_token (bool): Have a learned vector for masked pixels: ``forward(x, mask)`` is what
            mmpretrain's SimMIM calls.
        init_cfg (dict, optional): mmengine's initialisation config, e.g.
            ``dict(type='Pretrained', checkpoint=..., prefix='backbone.')``.

    Raises:
        ValueError: An argument out of range; an image smaller than 32 in H or W.
    """

    def __init__(
        self,
        arch: Arch = 'tiny',
        in_channels: int = 3,
        mlp_ratio: float = 4.0,
        stencil: str = 'anisotropic',
        k: str | float = 'input_dependent',
        with_filter: bool = True,
        drop_path_rate: float = 0.0,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        recompute: bool = True,
        mask_token: bool = False,
        init_cfg: dict | None = None,
    ):

        def block(channels: int, drop_path: float) -> HcBlock:
            return HcBlock(
                HeatConduction(channels, stencil, k, drop_path),
                Refinement(channels, mlp_ratio, with_filter, drop_path),
                check_recompute(recompute),
            )

        super().__init__(
            **parse_arch(arch, ARCHS),
            in_channels=in_channels,
            block=block,
            stem_norm=GroupNorm1,
            norm=GroupNorm1,
            drop_path_rate=drop_path_rate,
            out_indices=out_indices,
            frozen_stages=frozen_stages,
            norm_eval=norm_eval,
            with_cp=with_cp,
            mask_token=mask_token,
            init_cfg=init_cfg,
        )
        self._freeze()
