"""Layer-wise learning-rate decay for fine-tuning, with the settings of mmdet and mmseg.

Their own constructors know ConvNeXt (and BEiT) by name only. mmpretrain's asks the backbone,
``get_layer_depth``, and so does this one.
"""

import math
from itertools import accumulate

from torch import nn

from mmhcnet.registry import OPTIM_WRAPPER_CONSTRUCTORS

from .optim_constructor import OptimWrapperConstructor

_DECAY_MULTS = ('norm_decay_mult', 'bias_decay_mult', 'flat_decay_mult')


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LearningRateDecayOptimizerConstructor(OptimWrapperConstructor):
    """:class:`OptimWrapperConstructor`, with learning rates that fall from the head to the stem.

    The rate of a parameter in layer d of D is multiplied by decay_rate^(D + 1 - d) besides: the
    stem is layer 0, the blocks of the backbone are layers 1 to D, and what follows the backbone is
    layer D + 1. Where no option says what weight decay applies to, norms, biases and other
    one-dimensional parameters have none.

    Args:
        optim_wrapper_cfg (dict): Settings of the optimizer wrapper.
        paramwise_cfg (dict): ``decay_rate`` (float); ``decay_type`` (str): 'layer_wise' (the
            default) or 'stage_wise', where the layers are the stages; ``num_layers`` (int): D, into
            which 'layer_wise' gathers the blocks evenly (default: one layer per block). All options
            of :class:`OptimWrapperConstructor` besides.

    Raises:
        ValueError: A setting out of range, or a backbone without ``get_layer_depth``.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None):
        settings = dict(paramwise_cfg or {})
        self.decay_rate = settings.pop('decay_rate', None)
        self.decay_type = settings.pop('decay_type', 'layer_wise')
        self.num_layers = settings.pop('num_layers', None)
        if not isinstance(self.decay_rate, (int, float)) or not 0 < self.decay_rate <= 1:
            raise ValueError(
                f'paramwise_cfg.decay_rate must be above 0 and at most 1, got {self.decay_rate!r}'
            )
        if self.decay_type not in ('layer_wise', 'stage_wise'):
            raise ValueError(
                "paramwise_cfg.decay_type must be 'layer_wise' or 'stage_wise', got "
                f'{self.decay_type!r}'
            )
        if self.num_layers is not None and not (
            isinstance(self.num_layers, int) and self.num_layers > 0
        ):
            raise ValueError(
                'paramwise_cfg.num_layers must be a whole number from 1 up, got '
                f'{self.num_layers!r}'
            )
        decays = optim_wrapper_cfg.get('optimizer', {}).get('weight_decay') is not None
        if decays and not any(name in settings for name in _DECAY_MULTS):
            settings.update(dict.fromkeys(_DECAY_MULTS, 0.0))
        super().__init__(optim_wrapper_cfg, settings)

    def _finish(self, model: nn.Module, groups: list[tuple[dict, str]]) -> None:
        super()._finish(model, groups)
        # A model, or a backbone by itself.
        backbone = getattr(model, 'backbone', model)
        if not hasattr(backbone, 'get_layer_depth'):
            raise ValueError(
                f'{type(backbone).__name__} has no get_layer_depth, by which '
                'layer-wise decay goes: take another constructor'
            )
        prefix = '' if backbone is model else 'backbone.'
        for group, name in groups:
            scale = self.decay_rate ** self._layers_above(backbone, name, prefix)
            group['lr'] = group.get('lr', self.base_lr) * scale
            group['lr_scale'] = scale

    def _layers_above(self, backbone: nn.Module, name: str, prefix: str) -> int:
        """How many layers lie between a parameter's and the head."""
        depth, total = backbone.get_layer_depth(name, prefix)
        blocks = total - 2
        if self.decay_type == 'stage_wise':
            ends = list(
                accumulate(len(list(stage.children())) for stage in backbone.stages.children())
            )
            layers = len(ends)
            layer = next((i for i, end in enumerate([0, *ends]) if depth <= end), layers + 1)
        else:
            layers = self.num_layers or blocks
            layer = layers + 1 if depth > blocks else math.ceil(depth * layers / blocks)
        return layers + 1 - layer
