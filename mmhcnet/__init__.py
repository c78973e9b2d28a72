"""Vision backbones built on the heat equation, for OpenMMLab.

Importing the package registers its models: ``type='mmhcnet.HcNet'`` then works in every
mmpretrain, mmdet and mmseg config. It imports torch and mmengine, nothing else.
"""
import sys

from .version import __version__

# python -m mmhcnet.doctor has to run where torch or mmengine cannot be imported.
if 'mmhcnet.doctor' not in sys.orig_argv:
    from .config import config
    from .model_index import register_models
    from .models import (HcNet, HeatConductionLayer, HeatConductionOperator, VHeat,
                         convert_state_dict)

__all__ = [
    'HcNet', 'HeatConductionLayer', 'HeatConductionOperator', 'VHeat', 'config',
    'convert_state_dict', 'register_models', '__version__'
]
