from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.fx
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint

from mmhcnet.models.layers import Downsample, Stem
from mmhcnet.tracing import is_compiling, is_exporting, is_transforming

from .state_dict_family import check_fit, describe

Arch = str | dict[str, Any]


def parse_arch(arch: Arch, zoo: dict[str, dict]) -> dict:
    """The settings of an architecture given by name or as a dict.

    Args:
        arch (str or dict): A key of ``zoo``, or a dict with the same keys as its entries.
        zoo (dict): Settings by name; each has at least ``embed_dims`` and ``depths``.

    Returns:
        dict: The settings, a new dict.

    Raises:
        ValueError: Unknown name, missing or unknown keys, lists of unequal length, or numbers
            that are not positive integers.
    """
    if isinstance(arch, str):
        if arch not in zoo:
            raise ValueError(
                f'arch must be one of {list(zoo)} or a dict with embed_dims and '
                f'depths, got {arch!r}'
            )
        return dict(zoo[arch])
    if not isinstance(arch, dict):
        raise ValueError(f'arch must be one of {list(zoo)} or a dict, got {arch!r}')
    keys = set(next(iter(zoo.values())))
    if set(arch) != keys:
        raise ValueError(
            f'an arch dict needs exactly the keys {sorted(keys)}, got {sorted(map(str, arch))}'
        )
    dims, depths = list(arch['embed_dims']), list(arch['depths'])
    if not dims or len(dims) != len(depths):
        raise ValueError(
            'embed_dims and depths of an arch dict need one number per stage each, '
            f'got {len(dims)} and {len(depths)}'
        )
    for number in dims + depths:
        if not isinstance(number, int) or number < 1:
            raise ValueError(
                f'embed_dims and depths must be positive integers, got {dims} and {depths}'
            )
    if dims[0] % 2:
        raise ValueError(f'the first of embed_dims must be even (the stem halves it), got {dims}')
    return dict(arch)


def check_recompute(recompute: bool) -> bool:
    """The argument ``recompute`` of a backbone.

    Raises:
        ValueError: Neither True nor False.
    """
    if not isinstance(recompute, bool):
        raise ValueError(
            f'recompute must be True (less memory) or False (less time), got {recompute!r}'
        )
    return recompute


# torch.fx.symbolic_trace follows no decision about a tensor: a function that is wrapped stays one
# call in its graph, and decides when the graph runs.
@torch.fx.wrap
def _checked_image(x: Tensor, min_size: int, family: str) -> Tensor:
    """An image (B, C, H, W) that a backbone can take, in the layout of its layers."""
    if x.dim() != 4:
        raise ValueError(f'{family} takes images of shape (B, C, H, W), got {tuple(x.shape)}')
    if min(x.shape[2:]) < min_size:
        raise ValueError(
            f'{family} needs H and W of at least {min_size}, got {x.shape[2]}x{x.shape[3]}: '
            'resize or pad the image'
        )
    # Channels last: products over channels and depthwise convolutions need no other layout,
    # and none of the layers changes it. An exported graph has layouts of its own, and vmap and
    # forward-mode derivatives of torch's norms want the usual one.
    if not is_exporting() and (is_compiling() or not is_transforming()):
        x = x.contiguous(memory_format=torch.channels_last)
    return x


@torch.fx.wrap
def _hide(x: Tensor, mask: Tensor | None, mask_token: Tensor | None, family: str) -> Tensor:
    """x (B, C, H, W) with mask_token (C,) where the mask (B, H, W) is 1."""
    if mask is None:
        return x
    if mask_token is None:
        raise ValueError(
            f'this {family} has nothing to put where mask hides a pixel: build it with '
            'mask_token=True'
        )
    if mask.shape != (x.shape[0], *x.shape[2:]):
        raise ValueError(
            f'mask must be (B, H/4, W/4) = {(x.shape[0], *x.shape[2:])}, got '
            f"{tuple(mask.shape)}: the mask generator's model_patch_size is 4"
        )
    mask = mask[:, None].to(x.dtype)
    return x * (1 - mask) + mask_token.to(x.dtype)[:, None, None] * mask


class Stage(nn.ModuleList):
    """Blocks one after another, each as ``block(x, *inputs)``.

    Args:
        blocks (Iterable[nn.Module]): Take and return a map (B, C, H, W).
        with_cp (bool): Recompute each block in the backward pass to save memory.
    """

    def __init__(self, blocks: Iterable[nn.Module], with_cp: bool):
        super().__init__(blocks)
        self.with_cp = with_cp

    def forward(self, x: Tensor, *inputs: Any) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        for block in self:
            if self.with_cp and torch.is_grad_enabled():
                # torch annotates the result as one that may be None.
                x = checkpoint(block, x, *inputs, use_reentrant=False)  # pyright: ignore[reportAssignmentType]
            else:
                x = block(x, *inputs)
        return x


class HierarchicalBackbone(BaseModule):
    """Stem, then stages of equal blocks with a downsampling by 2 between them.

    A subclass says what a block and a norm are; this class holds what all backbones share: which
    stages are built, output norms, drop path schedule, freezing and checkpointing. Stages and
    norms that feed no output are not built, so every parameter gets a gradient. Loading weights of
    another family or size is a ValueError that names both. A subclass calls ``self._freeze()`` at
    the end of its constructor, when all of its parts exist.

    The output of stage i goes through ``norm{i}``; the next stage continues from the map before
    that norm.

    Args:
        embed_dims (Sequence[int]): Channels of each stage.
        depths (Sequence[int]): Blocks of each stage.
        in_channels (int): Channels of the image.
        block (Callable): ``block(channels, drop_path)`` makes one block.
        stem_norm (Callable): ``stem_norm(channels)`` makes the norms of the stem.
        norm (Callable): ``norm(channels)`` makes ``norm{i}`` and the norms of the downsampling.
        drop_path_rate (float): Rate of the last block; grows linearly from 0 over the depth.
        out_indices (Sequence[int]): Stages to return, ascending.
        frozen_stages (int): -1 freezes nothing, 0 the stem, n the stem and the first n stages
            with the downsampling into them and their norms.
        norm_eval (bool): Keep all norm layers in eval mode during training.
        with_cp (bool): Recompute each block in the backward pass to save memory.
        mask_token (bool): Have a learned vector for pixels that are masked after the stem.
        init_cfg (dict, optional): mmengine's initialisation config.

    Raises:
        ValueError: An argument out of range.
    """

    def __init__(
        self,
        embed_dims: Sequence[int],
        depths: Sequence[int],
        in_channels: int,
        block: Callable[[int, float], nn.Module],
        stem_norm: Callable[[int], nn.Module],
        norm: Callable[[int], nn.Module],
        drop_path_rate: float,
        out_indices: Sequence[int],
        frozen_stages: int,
        norm_eval: bool,
        with_cp: bool,
        mask_token: bool,
        init_cfg: dict | None,
    ):
        super().__init__(init_cfg)
        stages = len(depths)
        self.out_indices = self._check_out_indices(out_indices, stages)
        if not isinstance(frozen_stages, int) or not -1 <= frozen_stages <= stages:
            raise ValueError(f'frozen_stages must be from -1 to {stages}, got {frozen_stages!r}')
        if not 0 <= drop_path_rate < 1:
            raise ValueError(f'drop_path_rate must be in [0, 1), got {drop_path_rate!r}')
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.min_size = 4 * 2 ** (stages - 1)
        #: Channels of each map that is returned, and pixels of the image per pixel of it.
        self.out_channels = tuple(embed_dims[i] for i in self.out_indices)
        self.out_strides = tuple(4 * 2**i for i in self.out_indices)

        # The schedule spans all stages of the architecture, also those that are not built.
        rates = iter(torch.linspace(0, drop_path_rate, sum(depths), device='cpu').tolist())
        built = self.out_indices[-1] + 1
        self.stem = Stem(in_channels, embed_dims[0], stem_norm)
        self.stages = nn.ModuleList(
            Stage((block(dim, next(rates)) for _ in range(depth)), with_cp)
            for dim, depth in zip(embed_dims[:built], depths[:built])
        )
        self.downsamples = nn.ModuleList(
            Downsample(c_in, c_out, norm)
            for c_in, c_out in zip(embed_dims[: built - 1], embed_dims[1:built])
        )
        for i in self.out_indices:
            self.add_module(f'norm{i}', norm(embed_dims[i]))
        self.mask_token = nn.Parameter(torch.empty(embed_dims[0])) if mask_token else None
        self.reset_parameters()
        self._without_values = self.stem.conv1.weight.is_meta

    def reset_parameters(self) -> None:
        """Gives the backbone's own parameters, not those of its layers, their first values."""
        if self.mask_token is not None:
            nn.init.trunc_normal_(self.mask_token, std=0.02)

    def init_weights(self) -> None:
        """Initialises as ``init_cfg`` says, and before that all that was built without values.

        The constructor has initialised every parameter, except on the device 'meta': there
        ``to_empty(device=...)`` and this are what makes a model.
        """
        if self._without_values:
            # Children first: what a layer gives to its convolutions is not torch's default.
            for module in reversed(list(self.modules())):
                if hasattr(module, 'reset_parameters'):
                    module.reset_parameters()
            self._without_values = False
        super().init_weights()

    @staticmethod
    def _check_out_indices(out_indices: Sequence[int], stages: int) -> tuple[int, ...]:
        legal = isinstance(out_indices, Sequence) and all(
            isinstance(i, int) and 0 <= i < stages for i in out_indices
        )
        if not legal or not out_indices or list(out_indices) != sorted(set(out_indices)):
            raise ValueError(
                f'out_indices must be ascending stage numbers from 0 to {stages - 1}, '
                f'got {out_indices!r}'
            )
        return tuple(out_indices)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """One feature map per out index.

        Args:
            x (Tensor): (B, in_channels, H, W), H and W at least 32 (for four stages).
            mask (Tensor, optional): (B, ceil(H / 4), ceil(W / 4)), 1 where the pixel of the stem's
                map is to be hidden: ``mask_token`` takes its place (SimMIM, Xie et al., CVPR 2022).

        Returns:
            tuple[Tensor]: (B, C_i, H_i, W_i) with H_i = ceil(H / 4 / 2^i), likewise W_i;
            contiguous.

        Raises:
            ValueError: H or W is too small, there is no batch axis, or there is a mask of another
                size or without ``mask_token``.
        """
        family = type(self).__name__
        x = self.stem(_checked_image(x, self.min_size, family))
        x = _hide(x, mask, self.mask_token, family)
        outs = []
        for i, stage in enumerate(self.stages):
            if i > 0:
                x = self.downsamples[i - 1](x)
            x = stage(x, *self.stage_inputs(i, x))
            if i in self.out_indices:
                # Contiguous, because mmcv's operators, RoIAlign for one, read the memory in that
                # order whatever the strides say, and a neck keeps the layout that it is given.
                outs.append(getattr(self, f'norm{i}')(x).contiguous())
        return tuple(outs)

    def stage_inputs(self, i: int, x: Tensor) -> tuple:
        """What all blocks of stage i take besides the map x (B, C, H, W): here nothing."""
        return ()

    def _freeze(self) -> None:
        if self.frozen_stages < 0:
            return
        frozen = [self.stem]
        for i in range(min(self.frozen_stages, len(self.stages))):
            frozen += self.stage_parts(i)
        for part in frozen:
            if isinstance(part, nn.Module):
                part.eval()
            part.requires_grad_(False)

    def stage_parts(self, i: int) -> list[nn.Module | nn.Parameter]:
        """All that belongs to stage i: its blocks, the downsampling into it, its norm."""
        parts: list[nn.Module | nn.Parameter] = [self.stages[i]]
        if i > 0:
            parts.append(self.downsamples[i - 1])
        if i in self.out_indices:
            parts.append(getattr(self, f'norm{i}'))
        return parts

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Where a parameter stands, for layer-wise learning-rate decay.

        The stem has depth 0, the blocks 1 to D in their order, and what is not of the backbone
        D + 1. A downsampling belongs to the block that it leads to, an output norm to the block
        that it follows.

        Args:
            param_name (str): Name of the parameter in the model.
            prefix (str): What the names of the backbone's own begin with there.

        Returns:
            tuple[int, int]: Its depth, and D + 2, the number of depths.
        """
        sizes = [len(stage) for stage in self.stages]
        total = sum(sizes) + 2
        if not param_name.startswith(prefix):
            return total - 1, total
        part, *rest = param_name[len(prefix) :].split('.')
        if part == 'stages':
            return sum(sizes[: int(rest[0])]) + int(rest[1]) + 1, total
        if part == 'downsamples':
            return sum(sizes[: int(rest[0]) + 1]) + 1, total
        if part.startswith('norm'):
            return sum(sizes[: int(part[4:]) + 1]), total
        return (0 if part in ('stem', 'mask_token') else total - 1), total

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args) -> None:
        # mmengine only warns of weights that do not fit, and goes on with random ones.
        found = describe(
            {
                key[len(prefix) :]: value
                for key, value in state_dict.items()
                if key.startswith(prefix)
            }
        )
        check_fit(found, describe(self.state_dict()))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def train(self, mode: bool = True) -> 'HierarchicalBackbone':
        """Sets the mode; frozen parts stay in eval mode. Returns self."""
        super().train(mode)
        self._freeze()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, (nn.GroupNorm, nn.LayerNorm, _NormBase)):
                    module.eval()
        return self
