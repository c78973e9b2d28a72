"""Learning rate and weight decay of each parameter: multipliers that combine.

In mmengine the longest key of ``custom_keys`` that matches a parameter exempts it from all other
keys and rules, so a smaller rate for the backbone makes its norms decay.
"""

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

from mmhcnet.registry import OPTIM_WRAPPER_CONSTRUCTORS


def _undecayed(model: nn.Module) -> set[int]:
    """The parameters that the modules of a model name in ``no_weight_decay()``, by ``id``."""
    found = set()
    for module in model.modules():
        if hasattr(module, 'no_weight_decay'):
            names = module.no_weight_decay()
            found |= {id(p) for name, p in module.named_parameters() if name in names}
    return found


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class OptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """mmengine's ``DefaultOptimWrapperConstructor``, whose rules multiply instead of excluding.

    For a parameter p, with 1 for what does not apply::

        lr(p)           = lr · lr_mult of its custom keys · bias_lr_mult or dcn_offset_lr_mult
        weight_decay(p) = weight_decay · decay_mult of its custom keys
                          · norm_decay_mult, bias_decay_mult, dwconv_decay_mult or flat_decay_mult
                          · 0 where a module names p in ``no_weight_decay()``

    Of the keys in ``custom_keys`` that its name contains, the longest that has a setting decides
    that setting, so ``{'backbone': dict(lr_mult=0.1), 'norm': dict(decay_mult=0.0)}`` does both to
    a norm of the backbone. ``no_weight_decay()`` is timm's convention: a method that gives a set
    of names, relative to the module. The layers of this package have it for stencil weights,
    learned conduction rates, frequency embeddings and layer scale. Who wants these to decay names
    mmengine's constructor.

    Args:
        optim_wrapper_cfg (dict): Settings of the optimizer wrapper.
        paramwise_cfg (dict, optional): Options of mmengine's constructor.

    Raises:
        ValueError: A multiplier for a rate or a decay that the optimizer is not given.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None):
        # Without any option mmengine would make a single group.
        super().__init__(optim_wrapper_cfg, {'custom_keys': {}, **(paramwise_cfg or {})})
        self.custom_keys = self.paramwise_cfg['custom_keys']
        # mmengine's rules are to apply to all parameters.
        self.paramwise_cfg['custom_keys'] = {}
        for key, settings in self.custom_keys.items():
            if 'lr_mult' in settings and self.base_lr is None:
                raise ValueError(
                    f'custom_keys.{key}.lr_mult needs a rate to multiply: set '
                    'optim_wrapper.optimizer.lr'
                )

    def add_params(
        self,
        params: list[dict],
        module: nn.Module,
        prefix: str = '',
        is_dcn_module: int | float | None = None,
    ) -> None:
        super().add_params(params, module, prefix, is_dcn_module)
        # Parts of the model come here too, each with its prefix.
        if not prefix:
            names = {id(parameter): name for name, parameter in module.named_parameters()}
            self._finish(module, [(group, names[id(group['params'][0])]) for group in params])

    def _finish(self, model: nn.Module, groups: list[tuple[dict, str]]) -> None:
        """Changes the groups of a model, each of one parameter, given with its name."""
        undecayed = _undecayed(model)
        for group, name in groups:
            self._combine(group, name, id(group['params'][0]) in undecayed)

    def _combine(self, group: dict, name: str, undecayed: bool) -> None:
        """Applies to the group of one parameter what mmengine's other rules left out."""
        custom = {}
        # The last one decides: the longest, or of equally long ones the first in the alphabet.
        for key in sorted(sorted(self.custom_keys, reverse=True), key=len):
            if key in name:
                custom.update(self.custom_keys[key])
        changed = {}
        if 'lr_mult' in custom:
            changed['lr'] = group.get('lr', self.base_lr) * custom['lr_mult']
        if self.base_wd is not None and ('decay_mult' in custom or undecayed):
            decay = group.get('weight_decay', self.base_wd) * custom.get('decay_mult', 1.0)
            changed['weight_decay'] = 0.0 if undecayed else decay
        # Other settings of the optimizer, betas for one.
        changed.update(custom)
        group.update(changed)
        for key, value in changed.items():
            print_log(f'paramwise_options -- {name}:{key}={value}', logger='current')
