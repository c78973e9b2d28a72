"""Registries of scope ``mmhcnet``, children of mmengine's root registries.

mmengine imports ``<scope>.registry`` when it meets a dotted name, so ``type='mmhcnet.HcNet'``
needs no ``custom_imports``.
"""
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import Registry

MODELS = Registry('model', parent=ROOT_MODELS, scope='mmhcnet', locations=['mmhcnet.models'])
