from .backbones import HcNet, VHeat
from .convert import convert_state_dict
from .plugins import HeatConductionLayer, HeatConductionOperator

__all__ = ['HcNet', 'HeatConductionLayer', 'HeatConductionOperator', 'VHeat', 'convert_state_dict']
