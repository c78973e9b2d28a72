"""Triton's compiler takes the kernels: what the interpreter runs, it may refuse. Needs no GPU."""
import os

import pytest

from mmhcnet.ops import backend

if not backend._INSTALLED:
    pytest.skip('needs torch 2.7 and triton', allow_module_level=True)
if os.environ.get('TRITON_INTERPRET') == '1':
    pytest.skip('TRITON_INTERPRET=1 leaves nothing to compile', allow_module_level=True)

STRIP = dict(C=64, BLOCK=64, COLUMNS=4)
TILE = dict(BLOCK=64, TILE=1024)
# Kernel: arguments that are fields, that are numbers in float32 in memory, that are constants.
KERNELS = [
    ('heat_step', '_anisotropic_forward', 'z out', 'w k', STRIP),
    ('heat_step', '_anisotropic_backward', 'dout z dz', 'w k sums', STRIP),
    ('heat_step', '_isotropic_forward', 'z out', 'k', STRIP),
    ('heat_step', '_isotropic_backward', 'dout z dz', 'k sums', STRIP),
    ('gelu_dwconv', '_forward', 'x y', 'w', STRIP),
    ('gelu_dwconv', '_backward', 'dy x dx', 'w dw', STRIP),
    ('group_norm', '_statistics', 'x', 'means squares', dict(BLOCK=4096)),
    ('group_norm', '_forward', 'x y', 'weight bias means squares mean rstd',
     dict(TILE, PARTS=32, STATISTICS_BLOCK=4096)),
    ('group_norm', '_sums', 'dy x', 'mean rstd sums', TILE),
    ('group_norm', '_backward', 'dy x dx', 'weight mean rstd sums', TILE),
]


@pytest.mark.parametrize('module, name, fields, numbers, constants', KERNELS,
                         ids=[f'{module}{name}' for module, name, *_ in KERNELS])
def test_compiles_for_compute_capability_9(module, name, fields, numbers, constants):
    import importlib

    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(importlib.import_module(f'mmhcnet.ops.triton.{module}'), name)
    types = {**dict.fromkeys(fields.split(), '*bf16'), **dict.fromkeys(numbers.split(), '*fp32'),
             **dict.fromkeys(constants, 'constexpr'), 'eps': 'fp32'}
    signature = {argument: types.get(argument, 'i32') for argument in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    compiled = triton.compile(source, target=GPUTarget('cuda', 90, 32), options=dict(num_warps=1))
    assert compiled.asm['cubin']
