"""Vision backbones built on the heat equation, for OpenMMLab.

``type='mmhcnet.HcNet'`` works in every mmpretrain, mmdet and mmseg config: mmengine imports
``mmhcnet.registry`` by that name. The package imports torch and mmengine, nothing else, and those
only with the first name that is asked of it: ``python -m mmhcnet.doctor`` has to run where they
cannot be imported.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from .config_files import config as config
    from .model_index import register_models as register_models
    from .models import HcNet as HcNet
    from .models import HeatConductionLayer as HeatConductionLayer
    from .models import HeatConductionOperator as HeatConductionOperator
    from .models import VHeat as VHeat
    from .models import convert_state_dict as convert_state_dict
    from .standalone import create_model as create_model
    from .standalone import from_pretrained as from_pretrained
    from .standalone import save_pretrained as save_pretrained

# Public name -> the module that it comes from.
_HOMES = {
    'HcNet': 'models',
    'HeatConductionLayer': 'models',
    'HeatConductionOperator': 'models',
    'VHeat': 'models',
    'config': 'config_files',
    'convert_state_dict': 'models',
    'create_model': 'standalone',
    'from_pretrained': 'standalone',
    'register_models': 'model_index',
    'save_pretrained': 'standalone',
}
_MODULES = ('models', 'ops', 'registry')

__all__ = [*_HOMES, '__version__']  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f'{__name__}.{name}')
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(f'{__name__}.{_HOMES[name]}'), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
