"""Composition of the layers into backbones."""
from .hcnet import HcNet

__all__ = ['HcNet']
