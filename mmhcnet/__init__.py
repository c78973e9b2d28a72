"""Vision backbones built on the heat equation, for OpenMMLab.

Importing the package registers its models: ``type='mmhcnet.HcNet'`` then works in every
mmpretrain, mmdet and mmseg config. It imports torch and mmengine, nothing else.
"""
from .config import config
from .model_index import register_models
from .models import HcNet, HeatConductionLayer, HeatConductionOperator, VHeat, convert_state_dict
from .version import __version__

__all__ = [
    'HcNet', 'HeatConductionLayer', 'HeatConductionOperator', 'VHeat', 'config',
    'convert_state_dict', 'register_models', '__version__'
]
