"""One mechanism a file; a layer owns its parameters and calls ``mmhcnet.ops``."""

from .downsample import Downsample
from .drop_path import DropPath
from .freq_embed import FreqEmbed
from .heat_conduction import HeatConduction
from .mlp import Mlp
from .norm import GroupNorm1, LayerNorm2d
from .refinement import Refinement
from .spectral_conduction import SpectralConduction
from .stem import Stem

__all__ = [
    'Downsample',
    'DropPath',
    'FreqEmbed',
    'GroupNorm1',
    'HeatConduction',
    'LayerNorm2d',
    'Mlp',
    'Refinement',
    'SpectralConduction',
    'Stem',
]
