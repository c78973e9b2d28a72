"""Pure functions: no parameters, no state, no input is changed."""
from .dct import dct2, dct_matrix, eigenvalues, heat_spectral, idct2, spectral_decay
from .heat_step import heat_flux, heat_step

__all__ = [
    'dct2', 'dct_matrix', 'eigenvalues', 'heat_flux', 'heat_spectral', 'heat_step', 'idct2',
    'spectral_decay'
]
