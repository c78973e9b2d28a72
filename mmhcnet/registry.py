"""Registries of scope ``mmhcnet``, children of mmengine's root registries.

mmengine imports ``<scope>.registry`` when it meets a dotted name, so ``type='mmhcnet.HcNet'``
needs no ``custom_imports``.
"""

from mmengine.registry import DATA_SAMPLERS as ROOT_DATA_SAMPLERS
from mmengine.registry import FUNCTIONS as ROOT_FUNCTIONS
from mmengine.registry import HOOKS as ROOT_HOOKS
from mmengine.registry import LOOPS as ROOT_LOOPS
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as ROOT_OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.registry import PARAM_SCHEDULERS as ROOT_PARAM_SCHEDULERS
from mmengine.registry import VISBACKENDS as ROOT_VISBACKENDS
from mmengine.registry import Registry, build_scheduler_from_cfg

from . import config_files  # noqa: F401  _base_ = 'mmhcnet::...'

MODELS = Registry('model', parent=ROOT_MODELS, scope='mmhcnet', locations=['mmhcnet.models'])
DATA_SAMPLERS = Registry(
    'data sampler',
    parent=ROOT_DATA_SAMPLERS,
    scope='mmhcnet',
    locations=['mmhcnet.training.resumable_data', 'mmhcnet.cli.trial'],
)
FUNCTIONS = Registry(
    'function', parent=ROOT_FUNCTIONS, scope='mmhcnet', locations=['mmhcnet.training.loops']
)
HOOKS = Registry(
    'hook',
    parent=ROOT_HOOKS,
    scope='mmhcnet',
    locations=[
        'mmhcnet.checkpoints.hook',
        'mmhcnet.cli.drawing',
        'mmhcnet.cli.memory',
        'mmhcnet.training.finite_steps',
        'mmhcnet.training.preemption',
        'mmhcnet.training.resumed_schedule',
        'mmhcnet.training.tolerant_data',
    ],
)
LOOPS = Registry('loop', parent=ROOT_LOOPS, scope='mmhcnet', locations=['mmhcnet.training.loops'])
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    'optimizer wrapper constructor',
    parent=ROOT_OPTIM_WRAPPER_CONSTRUCTORS,
    scope='mmhcnet',
    locations=['mmhcnet.training.layer_decay', 'mmhcnet.training.optim_constructor'],
)
PARAM_SCHEDULERS = Registry(
    'parameter scheduler',
    parent=ROOT_PARAM_SCHEDULERS,
    scope='mmhcnet',
    build_func=build_scheduler_from_cfg,
    locations=['mmhcnet.training.schedulers'],
)
VISBACKENDS = Registry(
    'vis_backend',
    parent=ROOT_VISBACKENDS,
    scope='mmhcnet',
    locations=['mmhcnet.training.tolerant_logs'],
)
