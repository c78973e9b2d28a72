"""Triton's compiler takes the kernels: what the interpreter runs, it may refuse. Needs no GPU."""
import os
import re

import pytest

from mmhcnet.ops import backend

if not backend._INSTALLED:
    pytest.skip('needs torch 2.7 and triton', allow_module_level=True)
if os.environ.get('TRITON_INTERPRET') == '1':
    pytest.skip('TRITON_INTERPRET=1 leaves nothing to compile', allow_module_level=True)

STRIP = dict(C=128, BLOCK=128, SAMPLES=1, COLUMNS=7, WHOLE=True)
TILE = dict(C=64, BLOCK=64, TILE=1024)
PIXELS = dict(C=96, BLOCK=128, TILE=2048)
# Kernel: arguments that are fields, that are numbers in float32 in memory, those of either that may
# be left out, that are constants.
KERNELS = [
    ('conduction_rate', '_sums', 'z', 'sums', '', dict(C=64, BLOCK=64, TILE=2048)),
    ('conduction_rate', '_rate', 'rate', 'sums to_k k mean keep', 'keep',
     dict(C=320, SAMPLES=16, CHANNELS=64)),
    ('heat_step', '_anisotropic_forward', 'z out', 'w k added', 'added', STRIP),
    ('heat_step', '_anisotropic_sums', 'dout z', 'sums', '', STRIP),
    ('heat_step', '_anisotropic_transposed', 'dout dz', 'w k added', 'added', STRIP),
    ('heat_step', '_isotropic_forward', 'z out', 'k added', 'added', STRIP),
    ('heat_step', '_isotropic_sums', 'dout z', 'sums', '', STRIP),
    ('heat_step', '_isotropic_transposed', 'dout dz', 'k added', 'added', STRIP),
    ('heat_step', '_combine', '', 'sums w k dk of_w', '', dict(C=64, BLOCK=64, ROWS=16)),
    ('gelu_dwconv', '_forward', 'x y', 'w scale', 'scale', STRIP),
    ('gelu_dwconv', '_backward', 'dy x dx', 'w scale sums', 'scale', STRIP),
    ('group_norm', '_statistics', 'x', 'offset means squares', 'offset', dict(C=64, BLOCK=4096)),
    ('group_norm', '_forward', 'x y', 'weight bias offset means squares mean rstd', 'offset',
     dict(TILE, PARTS=32, STATISTICS_BLOCK=4096)),
    ('group_norm', '_sums', 'dy x', 'offset mean rstd sums', 'offset', TILE),
    ('group_norm', '_combine_sums', '', 'sums weight combined means', '',
     dict(C=64, BLOCK=64, ROWS=16)),
    ('group_norm', '_backward', 'dy x residual dx', 'weight offset mean rstd means',
     'offset residual', TILE),
    ('norm_gate', '_forward', 'u gate y', 'weight bias mean rstd', 'gate', PIXELS),
    ('norm_gate', '_backward', 'dy u gate du dgate', 'weight bias mean rstd sums',
     'gate dgate', PIXELS),
]
kernels = pytest.mark.parametrize(
    'module, name, fields, numbers, options, constants', KERNELS,
    ids=[f'{module}{name}' for module, name, *_ in KERNELS])


def compiled(module, name, fields, numbers, constants):
    """The kernel for fields in bfloat16 on compute capability 9.0."""
    import importlib

    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(importlib.import_module(f'mmhcnet.ops.triton.{module}'), name)
    types = {**dict.fromkeys(fields.split(), '*bf16'), **dict.fromkeys(numbers.split(), '*fp32'),
             **dict.fromkeys(constants, 'constexpr'), 'eps': 'fp32'}
    signature = {argument: types.get(argument, 'i32') for argument in kernel.arg_names}
    # As Triton finds pointers, and numbers that it specialises on, to be.
    aligned = {(n, ): [['tt.divisibility', 16]] for n, (argument, kind) in enumerate(
        signature.items()) if kind.startswith('*') or argument.endswith('gate_stride')}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    warps = 1 if 'COLUMNS' in constants else 4
    return triton.compile(source, target=GPUTarget('cuda', 90, 32),
                          options=dict(num_warps=warps)).asm


@kernels
def test_compiles_for_compute_capability_9(module, name, fields, numbers, options, constants):
    asm = compiled(module, name, fields, numbers, constants)
    assert asm['cubin']
    if options:
        without = {**constants, **dict.fromkeys(options.split())}
        assert compiled(module, name, fields, numbers, without)['cubin']
    if fields:
        # Every access to a field takes 8 bytes or more: of the rest, numbers in float32, none is
        # narrower than they are. The first element of a sample, alone, is the origin of its norm.
        narrow = re.findall(r'(?:ld|st)\.global\S*\.b16', asm['ptx'])
        assert len(narrow) <= (name in ('_statistics', '_forward') and module == 'group_norm')
        wide = re.findall(r'(?:ld|st)\.global\S*\.v[24]\.b32', asm['ptx'])
        assert wide


@pytest.mark.parametrize('samples, block', [(2, 64), (4, 32)])
def test_several_samples_of_a_program_are_read_as_one(samples, block):
    constants = dict(STRIP, C=block, SAMPLES=samples, BLOCK=block)
    asm = compiled('heat_step', '_anisotropic_forward', 'z out', 'w k added', constants)
    whole = compiled('heat_step', '_anisotropic_forward', 'z out', 'w k added', STRIP)
    for access in ('ld.global.v2.b32', 'st.global.v2.b32'):
        assert asm['ptx'].count(access) == whole['ptx'].count(access) > 0
