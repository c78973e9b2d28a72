"""Triton's compiler takes the kernels: what the interpreter runs, it may refuse. Needs no GPU."""
import os

import pytest

from mmhcnet.ops import backend

if not backend._INSTALLED:
    pytest.skip('needs torch 2.7 and triton', allow_module_level=True)
if os.environ.get('TRITON_INTERPRET') == '1':
    pytest.skip('TRITON_INTERPRET=1 leaves nothing to compile', allow_module_level=True)

STRIP = dict(C=64, BLOCK=64, COLUMNS=7)
TILE = dict(C=64, BLOCK=64, TILE=1024)
PIXELS = dict(C=96, BLOCK=128, TILE=2048)
# Kernel: arguments that are fields, that are numbers in float32 in memory, that may be left out,
# that are constants.
KERNELS = [
    ('heat_step', '_anisotropic_forward', 'z out', 'w k', 'added', STRIP),
    ('heat_step', '_anisotropic_sums', 'dout z', 'sums', '', STRIP),
    ('heat_step', '_anisotropic_transposed', 'dout dz', 'w k', 'added', STRIP),
    ('heat_step', '_isotropic_forward', 'z out', 'k', 'added', STRIP),
    ('heat_step', '_isotropic_sums', 'dout z', 'sums', '', STRIP),
    ('heat_step', '_isotropic_transposed', 'dout dz', 'k', 'added', STRIP),
    ('gelu_dwconv', '_forward', 'x y', 'w', 'scale', STRIP),
    ('gelu_dwconv', '_backward', 'dy x dx', 'w sums', 'scale', STRIP),
    ('group_norm', '_statistics', 'x', 'means squares', 'offset', dict(C=64, BLOCK=4096)),
    ('group_norm', '_forward', 'x y', 'weight bias means squares mean rstd', 'offset',
     dict(TILE, PARTS=32, STATISTICS_BLOCK=4096)),
    ('group_norm', '_sums', 'dy x', 'mean rstd sums', 'offset', TILE),
    ('group_norm', '_combine_sums', '', 'sums weight combined means', '',
     dict(C=64, BLOCK=64, ROWS=16)),
    ('group_norm', '_backward', 'dy x dx', 'weight mean rstd means', 'offset residual', TILE),
    ('norm_gate', '_forward', 'u y', 'weight bias mean rstd', 'gate', PIXELS),
    ('norm_gate', '_backward', 'dy u du', 'weight bias mean rstd sums', 'gate dgate', PIXELS),
]


@pytest.mark.parametrize('whole', [True, False], ids=['whole', 'least'])
@pytest.mark.parametrize('module, name, fields, numbers, options, constants', KERNELS,
                         ids=[f'{module}{name}' for module, name, *_ in KERNELS])
def test_compiles_for_compute_capability_9(module, name, fields, numbers, options, constants,
                                           whole):
    import importlib

    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if not options and not whole:
        return
    kernel = getattr(importlib.import_module(f'mmhcnet.ops.triton.{module}'), name)
    if not whole:
        constants = {**constants, **dict.fromkeys(options.split())}
    types = {**dict.fromkeys(fields.split(), '*bf16'), **dict.fromkeys(numbers.split(), '*fp32'),
             **dict.fromkeys(options.split(), '*bf16'), **dict.fromkeys(constants, 'constexpr'),
             'eps': 'fp32'}
    signature = {argument: types.get(argument, 'i32') for argument in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    warps = 1 if 'COLUMNS' in constants else 4
    compiled = triton.compile(source, target=GPUTarget('cuda', 90, 32),
                              options=dict(num_warps=warps))
    assert compiled.asm['cubin']
