"""One mechanism a file; a layer owns its parameters and calls ``mmhcnet.ops``."""
from .downsample import Downsample
from .drop_path import DropPath
from .heat_conduction import HeatConduction
from .norm import GroupNorm1
from .refinement import Refinement
from .stem import Stem

__all__ = ['Downsample', 'DropPath', 'GroupNorm1', 'HeatConduction', 'Refinement', 'Stem']
