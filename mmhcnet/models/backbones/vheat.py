import functools
from collections.abc import Sequence

import torch
import torch.fx
from torch import Tensor, nn

from mmhcnet.models.fusion import may_fuse
from mmhcnet.models.layers import DropPath, FreqEmbed, LayerNorm2d, Mlp, SpectralConduction
from mmhcnet.ops import ConductionWeights, MlpWeights, Residual, vheat_conduction, vheat_mlp
from mmhcnet.registry import MODELS

from .base import Arch, HierarchicalBackbone, check_recompute, parse_arch

# post_norm: norms after operator and MLP instead of before them. layer_scale: initial value of
# a learned factor per channel on both, or None.
ARCHS = {
    'tiny': dict(
        embed_dims=[96, 192, 384, 768], depths=[2, 2, 6, 2], post_norm=False, layer_scale=None
    ),
    'small': dict(
        embed_dims=[96, 192, 384, 768], depths=[2, 2, 18, 2], post_norm=True, layer_scale=1e-5
    ),
    'base': dict(
        embed_dims=[128, 256, 512, 1024], depths=[2, 2, 18, 2], post_norm=True, layer_scale=1e-5
    ),
}


@torch.fx.wrap
def _of_size(x: Tensor, size: tuple[int, int] | None) -> Tensor:
    """x (B, C, H, W), an image that a VHeat takes which is folded for a size, or not at all."""
    if x.dim() == 4 and size not in (None, tuple(x.shape[2:])):
        raise ValueError(
            f'switch_to_deploy() folded this VHeat for images of {size[0]}x{size[1]}, got '
            f'{x.shape[2]}x{x.shape[3]}: rebuild the model and load its weights again'
        )
    return x


class VHeatBlock(nn.Module):
    """Conduction, then MLP, each residual::

        x = x + DropPath(γ1 · Conduction(LN(x)))   pre-norm;   γ1 · LN(Conduction(x))   post-norm
        x = x + DropPath(γ2 · MLP(LN(x)))          pre-norm;   γ2 · LN(MLP(x))          post-norm

    Args:
        channels (int): C.
        conduction (nn.Module): (B, H, W, C) and freq_embed -> (B, H, W, C).
        mlp (nn.Module): (B, H, W, C) -> (B, H, W, C).
        post_norm (bool): Norms after conduction and MLP instead of before them.
        layer_scale (float, optional): Initial value of γ1 and γ2, parameters (C,); None: without.
        drop_path (float): Probability of skipping conduction, or MLP, for a sample.
        recompute (bool): In the fused form, compute again in the backward pass what is cheap.
    """

    def __init__(
        self,
        channels: int,
        conduction: SpectralConduction,
        mlp: Mlp,
        post_norm: bool,
        layer_scale: float | None,
        drop_path: float,
        recompute: bool,
    ):
        super().__init__()
        self.recompute = recompute
        self.fused = True
        self.post_norm = post_norm
        self.norm1 = nn.LayerNorm(channels)
        self.conduction = conduction
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = mlp
        self.layer_scale = layer_scale
        self.gamma1 = self.gamma2 = None
        if layer_scale is not None:
            self.gamma1 = nn.Parameter(torch.empty(channels))
            self.gamma2 = nn.Parameter(torch.empty(channels))
        self.drop_path = DropPath(drop_path)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Gives γ1 and γ2 their first value."""
        for gamma in (self.gamma1, self.gamma2):
            if gamma is not None:
                nn.init.constant_(gamma, self.layer_scale)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay does not apply to, as timm's models say it."""
        return {'gamma1', 'gamma2'}

    def forward(self, x: Tensor, freq_embed: Tensor | None) -> Tensor:
        """(B, C, H, W) and (H, W, C) -> (B, C, H, W)."""
        x = x.permute(0, 2, 3, 1)  # (B, H, W, C)
        if may_fuse(self, x):
            x = self._fused(x.contiguous(), freq_embed)
        elif self.post_norm:
            x = self._add(x, self.norm1(self.conduction(x, freq_embed)), self.gamma1)
            x = self._add(x, self.norm2(self.mlp(x)), self.gamma2)
        else:
            x = self._add(x, self.conduction(self.norm1(x), freq_embed), self.gamma1)
            x = self._add(x, self.mlp(self.norm2(x)), self.gamma2)
        return x.permute(0, 3, 1, 2)  # (B, C, H, W)

    def _add(self, x: Tensor, branch: Tensor, gamma: Tensor | None) -> Tensor:
        return x + self.drop_path(branch if gamma is None else branch * gamma)

    def _fused(self, x: Tensor, freq_embed: Tensor | None) -> Tensor:
        conduction, mlp, dwconv = self.conduction, self.mlp, self.conduction.dwconv
        x = vheat_conduction(
            x,
            conduction.decay_table(x.shape[1], x.shape[2], freq_embed),
            ConductionWeights(
                dw_weight=None if dwconv is None else dwconv.weight,
                dw_bias=None if dwconv is None else dwconv.bias,
                in_weight=conduction.fc_in.weight,
                in_bias=conduction.fc_in.bias,
                norm_weight=conduction.norm.weight,
                norm_bias=conduction.norm.bias,
                out_weight=conduction.fc_out.weight,
                out_bias=conduction.fc_out.bias,
            ),
            Residual(self.norm1.weight, self.norm1.bias, self.gamma1),
            self.post_norm,
            keep=self.drop_path.factors(x),
            eps=self.norm1.eps,
            inner_eps=conduction.norm.eps,
            recompute=self.recompute,
        )
        return vheat_mlp(
            x,
            MlpWeights(mlp.fc1.weight, mlp.fc1.bias, mlp.fc2.weight, mlp.fc2.bias),
            Residual(self.norm2.weight, self.norm2.bias, self.gamma2),
            self.post_norm,
            keep=self.drop_path.factors(x),
            eps=self.norm2.eps,
            recompute=self.recompute,
        )


@MODELS.register_module()
class VHeat(HierarchicalBackbone):
    """vHeat: heat conduction solved in the frequency domain.

    Each block conducts heat with a learned conductivity per frequency and channel
    (:class:`~mmhcnet.models.layers.SpectralConduction`), then applies an MLP. Wang et al.,
    "Building Vision Models upon Heat Conduction", CVPR 2025.

    ``freq_embed.{i}``, (H_i, W_i, C_i), is one learned embedding for all blocks of stage i. It is
    made for images of ``img_size`` and resized bicubically for others, on the fly and when a
    checkpoint with another size is loaded.

    Args:
        arch (str or dict): 'tiny', 'small', 'base', or ``dict(embed_dims=[...], depths=[...],
            post_norm=False, layer_scale=None)``.
        in_channels (int): Channels of the image.
        img_size (int): Image size that ``freq_embed`` is made for; any other size runs as well.
        mlp_ratio (float): Hidden width of the MLP over its channels.
        with_dwconv (bool): Depthwise convolution at the beginning of the operator.
        with_gate (bool): Gate branch of the operator.
        k (str or float): Conductivity: 'frequency' (the paper: from ``freq_embed``), 'learnable'
            (one number per block) or a fixed number in pixels²; ``freq_embed`` exists for
            'frequency' only.
        drop_path_rate (float): Stochastic depth of the last block; grows linearly from 0.
        out_indices (Sequence[int]): Stages to return, each through ``norm{i}``.
        frozen_stages (int): -1 nothing, 0 the stem, n the stem and the first n stages with their
            ``freq_embed``.
        norm_eval (bool): Keep norm layers in eval mode during training. LayerNorm keeps no
            running statistics, so outputs do not depend on it.
        with_cp (bool): Recompute blocks in the backward pass: less memory, more time.
        recompute (bool): Compute again in the backward pass what is cheap (norms, convolution, DCT,
            GELU); False keeps the inputs of all products, in 1.6 times the memory.
        mask_token (bool): Have a learned vector for masked pixels: ``forward(x, mask)`` is what
            mmpretrain's SimMIM calls.
        init_cfg (dict, optional): mmengine's initialisation config, e.g.
            ``dict(type='Pretrained', checkpoint=..., prefix='backbone.')``.

    Raises:
        ValueError: An argument out of range; an image smaller than 32 in H or W; after
            :meth:`switch_to_deploy`, an image of another size.
    """

    def __init__(
        self,
        arch: Arch = 'tiny',
        in_channels: int = 3,
        img_size: int = 224,
        mlp_ratio: float = 4.0,
        with_dwconv: bool = True,
        with_gate: bool = True,
        k: str | float = 'frequency',
        drop_path_rate: float = 0.0,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        recompute: bool = True,
        mask_token: bool = False,
        init_cfg: dict | None = None,
    ):
        arch = parse_arch(arch, ARCHS)
        post_norm, layer_scale = arch['post_norm'], arch['layer_scale']
        if not isinstance(post_norm, bool):
            raise ValueError(f'post_norm of an arch dict must be True or False, got {post_norm!r}')
        if layer_scale is not None and not (
            isinstance(layer_scale, (int, float)) and layer_scale > 0
        ):
            raise ValueError(
                f'layer_scale of an arch dict must be None or a number > 0, got {layer_scale!r}'
            )

        def block(channels: int, drop_path: float) -> VHeatBlock:
            return VHeatBlock(
                channels,
                SpectralConduction(channels, with_dwconv, with_gate, k),
                Mlp(channels, mlp_ratio),
                post_norm,
                layer_scale,
                drop_path,
                check_recompute(recompute),
            )

        super().__init__(
            embed_dims=arch['embed_dims'],
            depths=arch['depths'],
            in_channels=in_channels,
            block=block,
            stem_norm=functools.partial(LayerNorm2d, eps=1e-6),
            norm=LayerNorm2d,
            drop_path_rate=drop_path_rate,
            out_indices=out_indices,
            frozen_stages=frozen_stages,
            norm_eval=norm_eval,
            with_cp=with_cp,
            mask_token=mask_token,
            init_cfg=init_cfg,
        )
        if not isinstance(img_size, int) or img_size < self.min_size:
            raise ValueError(
                f'img_size must be an integer of at least {self.min_size}, got {img_size!r}'
            )
        self.deploy_size: tuple[int, int] | None = None
        self.freq_embed = (
            FreqEmbed(self._map_sizes((img_size, img_size)), arch['embed_dims'][: len(self.stages)])
            if k == 'frequency'
            else None
        )
        self._freeze()

    def _map_sizes(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        """H and W of the map of every stage that is built, for an image of a size."""
        # Each convolution with stride 2 rounds up: the stem has two, a downsampling one.
        return [tuple(-(-n // 2 ** (i + 2)) for n in size) for i in range(len(self.stages))]

    def stage_inputs(self, i: int, x: Tensor) -> tuple:
        """The frequency embedding of stage i, (H, W, C) for the map x (B, C, H, W), or None."""
        return (None if self.freq_embed is None else self.freq_embed.at(i, x.shape[2:]),)

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        # An embedding is an input of all blocks of its stage: it counts with the first one.
        if param_name.startswith(f'{prefix}freq_embed.'):
            first = f'{prefix}stages.{param_name[len(prefix) :].split(".")[1]}.0.'
            return super().get_layer_depth(first, prefix)
        return super().get_layer_depth(param_name, prefix)

    def stage_parts(self, i: int) -> list:
        """All that belongs to stage i, its frequency embedding included."""
        own = [] if self.freq_embed is None else [self.freq_embed[i]]
        return super().stage_parts(i) + own

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """As :class:`HierarchicalBackbone`'s; after :meth:`switch_to_deploy` for one size only."""
        return super().forward(_of_size(x, self.deploy_size), mask)

    def switch_to_deploy(self, input_size: int | tuple[int, int]) -> None:
        """Folds ``freq_embed`` and ``to_k`` into one decay table per block, for one image size.

        The output stays the same and ``freq_embed``, ``to_k`` and ``k`` are gone, so the model
        can neither take another size nor learn k. Its state dict has ``decay`` instead.

        Args:
            input_size (int or tuple[int, int]): H and W of the images to come.

        Raises:
            ValueError: H or W is too small, or the model is folded already.
        """
        size = (input_size, input_size) if isinstance(input_size, int) else tuple(input_size)
        if self.deploy_size is not None:
            raise ValueError(
                f'this VHeat is folded for {self.deploy_size} already: rebuild the '
                'model and load its weights again'
            )
        if len(size) != 2 or min(size) < self.min_size:
            raise ValueError(
                f'input_size must be H and W of at least {self.min_size}, got {input_size!r}'
            )
        for i, (stage, map_size) in enumerate(zip(self.stages, self._map_sizes(size))):
            freq_embed = None if self.freq_embed is None else self.freq_embed.at(i, map_size)
            for block in stage.children():
                block.conduction.switch_to_deploy(*map_size, freq_embed)
        self.freq_embed = None
        self.deploy_size = size
