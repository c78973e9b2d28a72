"""Pure functions: no parameters, no state, no input is changed.

Every operator with a fused kernel has a ``*_ref`` of the same signature in plain torch beside it.
"""
from .backend import BACKENDS
from .dct import dct2, dct_matrix, eigenvalues, heat_spectral, idct2, spectral_decay
from .gelu_dwconv import gelu_dwconv, gelu_dwconv_ref
from .group_norm import group_norm_1, group_norm_1_ref
from .heat_step import heat_flux, heat_step, heat_step_ref

__all__ = [
    'BACKENDS', 'dct2', 'dct_matrix', 'eigenvalues', 'gelu_dwconv', 'gelu_dwconv_ref',
    'group_norm_1', 'group_norm_1_ref', 'heat_flux', 'heat_spectral', 'heat_step', 'heat_step_ref',
    'idct2', 'spectral_decay'
]
