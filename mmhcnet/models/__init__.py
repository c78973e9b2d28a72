from .backbones import HcNet
from .convert import convert_state_dict

__all__ = ['HcNet', 'convert_state_dict']
