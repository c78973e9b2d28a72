"""Pure functions: no parameters, no state, no input is changed.

Every operator with a fused kernel has a ``*_ref`` of the same signature in plain torch next to it.
``*_forward``, ``*_backward``, ``*_sums`` and ``*_transposed`` are the pieces that a function with a
backward of its own is made of; their kernels record no autograd.
"""

from .backend import BACKENDS
from .conduction_rate import (
    conduction_rate_backward,
    conduction_rate_forward,
    conduction_rate_forward_ref,
)
from .dct import dct2, dct_matrix, eigenvalues, heat_spectral, idct2, spectral_decay
from .gelu_depthwise import (
    gelu_dwconv,
    gelu_dwconv_backward,
    gelu_dwconv_backward_ref,
    gelu_dwconv_forward,
    gelu_dwconv_forward_ref,
    gelu_dwconv_ref,
)
from .group_norm import (
    group_norm_1,
    group_norm_1_backward,
    group_norm_1_backward_ref,
    group_norm_1_forward,
    group_norm_1_forward_ref,
    group_norm_1_ref,
)
from .hcnet_block import HcBlockWeights, hc_block, hc_block_ref
from .norm_gate import (
    norm_gate_backward,
    norm_gate_backward_ref,
    norm_gate_forward,
    norm_gate_forward_ref,
)
from .stencil import (
    heat_flux,
    heat_step,
    heat_step_forward,
    heat_step_forward_ref,
    heat_step_ref,
    heat_step_sums,
    heat_step_sums_ref,
    heat_step_transposed,
    heat_step_transposed_ref,
)
from .vheat_block import (
    ConductionWeights,
    MlpWeights,
    Residual,
    vheat_conduction,
    vheat_conduction_ref,
    vheat_mlp,
    vheat_mlp_ref,
)

__all__ = [
    'BACKENDS',
    'ConductionWeights',
    'HcBlockWeights',
    'MlpWeights',
    'Residual',
    'conduction_rate_backward',
    'conduction_rate_forward',
    'conduction_rate_forward_ref',
    'dct2',
    'dct_matrix',
    'eigenvalues',
    'gelu_dwconv',
    'gelu_dwconv_backward',
    'gelu_dwconv_backward_ref',
    'gelu_dwconv_forward',
    'gelu_dwconv_forward_ref',
    'gelu_dwconv_ref',
    'group_norm_1',
    'group_norm_1_backward',
    'group_norm_1_backward_ref',
    'group_norm_1_forward',
    'group_norm_1_forward_ref',
    'group_norm_1_ref',
    'hc_block',
    'hc_block_ref',
    'heat_flux',
    'heat_spectral',
    'heat_step',
    'heat_step_forward',
    'heat_step_forward_ref',
    'heat_step_ref',
    'heat_step_sums',
    'heat_step_sums_ref',
    'heat_step_transposed',
    'heat_step_transposed_ref',
    'idct2',
    'norm_gate_backward',
    'norm_gate_backward_ref',
    'norm_gate_forward',
    'norm_gate_forward_ref',
    'spectral_decay',
    'vheat_conduction',
    'vheat_conduction_ref',
    'vheat_mlp',
    'vheat_mlp_ref',
]
