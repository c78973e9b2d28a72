"""Composition of the layers into backbones."""

from .hcnet import HcNet
from .vheat import VHeat

__all__ = ['HcNet', 'VHeat']
