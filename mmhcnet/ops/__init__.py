"""Pure functions: no parameters, no state, no input is changed."""
from .heat_step import heat_flux, heat_step

__all__ = ['heat_flux', 'heat_step']
