"""Triton's compiler takes the kernels: what the interpreter runs, it may refuse. Needs no GPU."""

import os
import re

import pytest
import torch

from mmhcnet.ops import (
    backend,
    gelu_dwconv,
    group_norm_1,
    heat_step,
    norm_gate_backward,
    norm_gate_forward,
)

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
    (
        'conduction_rate',
        '_rate',
        'rate',
        'sums to_k k mean keep',
        'keep',
        dict(C=320, SAMPLES=16, CHANNELS=64),
    ),
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
    (
        'group_norm',
        '_forward',
        'x y',
        'weight bias offset means squares mean rstd',
        'offset',
        dict(TILE, PARTS=32, STATISTICS_BLOCK=4096),
    ),
    ('group_norm', '_sums', 'dy x', 'offset mean rstd sums', 'offset', TILE),
    (
        'group_norm',
        '_combine_sums',
        '',
        'sums weight combined means',
        '',
        dict(C=64, BLOCK=64, ROWS=16),
    ),
    (
        'group_norm',
        '_backward',
        'dy x residual dx',
        'weight offset mean rstd means',
        'offset residual',
        TILE,
    ),
    ('norm_gate', '_forward', 'u gate y', 'weight bias mean rstd', 'gate', PIXELS),
    (
        'norm_gate',
        '_backward',
        'dy u gate du dgate',
        'weight bias mean rstd sums',
        'gate dgate',
        PIXELS,
    ),
]
kernels = pytest.mark.parametrize(
    'module, name, fields, numbers, options, constants',
    KERNELS,
    ids=[f'{module}{name}' for module, name, *_ in KERNELS],
)


def compiled(module, name, fields, numbers, constants):
    """The kernel for fields in bfloat16 on compute capability 9.0."""
    import importlib

    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(importlib.import_module(f'mmhcnet.ops.triton.{module}'), name)
    types = {
        **dict.fromkeys(fields.split(), '*bf16'),
        **dict.fromkeys(numbers.split(), '*fp32'),
        **dict.fromkeys(constants, 'constexpr'),
        'eps': 'fp32',
    }
    signature = {argument: types.get(argument, 'i32') for argument in kernel.arg_names}
    # As Triton finds pointers, and numbers that it specialises on, to be.
    aligned = {
        (n,): [['tt.divisibility', 16]]
        for n, (argument, kind) in enumerate(signature.items())
        if kind.startswith('*') or argument.endswith('gate_stride')
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    warps = 1 if 'COLUMNS' in constants else 4
    return triton.compile(
        source, target=GPUTarget('cuda', 90, 32), options=dict(num_warps=warps)
    ).asm


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


@pytest.fixture
def graphs(monkeypatch):
    """Graphs that a backend of torch.compile is given; their results are zeros.

    CPU tensors count as those of a GPU, whose kind Triton would ask the driver for.
    """
    import triton
    from torch._dynamo.backends.common import aot_autograd
    from triton.backends.compiler import GPUTarget

    class Driver:
        def get_current_target(self):
            return GPUTarget('cuda', 90, 32)

    def compiler(graph, inputs):
        found.append(graph)
        (outputs,) = graph.graph.find_nodes(op='output')

        def zero(value):
            shape, stride = ([int(n) for n in numbers] for numbers in (value.shape, value.stride()))
            return torch.empty_strided(shape, stride, dtype=value.dtype).zero_()

        def run(inputs):
            values = [node and node.meta['val'] for node in outputs.args[0]]
            return [zero(v) if isinstance(v, torch.Tensor) else v and int(v) for v in values]

        run._boxed_call = True
        return run

    found = []
    monkeypatch.setattr(backend, '_interpreted', lambda: True)
    triton.runtime.driver.set_active(Driver())
    yield found, aot_autograd(fw_compiler=compiler, bw_compiler=compiler)
    triton.runtime.driver.set_active(None)
    torch._dynamo.reset()


def kernels_in(graph):
    """How many kernels a graph launches; no operator of ours is left in it."""
    names = [str(node.target) for node in graph.graph.nodes if node.op == 'call_function']
    assert not [name for name in names if name.startswith('mmhcnet')]
    return sum('triton_kernel_wrapper' in name for name in names)


def inputs_of(channels, *size):
    shapes = [
        (2, channels, *size),
        (channels, 4),
        (2, channels, 1, 1),
        (channels,),
        (channels,),
        (channels, 1, 3, 3),
    ]
    return [torch.rand(shape).requires_grad_() for shape in shapes]


@pytest.mark.parametrize('dynamic', [None, True])
def test_compilers_see_the_kernels(graphs, dynamic):
    def function(z, w, k, gamma, beta, taps):
        z = heat_step(z, w, k, backend='triton')
        z = group_norm_1(z, gamma, beta, backend='triton')
        return gelu_dwconv(z, taps, backend='triton')

    found, collect = graphs
    compiled = torch.compile(function, backend=collect, fullgraph=True, dynamic=dynamic)
    compiled(*inputs_of(8, 9, 7)).sum().backward()
    assert [kernels_in(graph) for graph in found] == [4, 7]
    if dynamic:
        compiled(*inputs_of(8, 20, 12))
        assert len(found) == 2


def test_compilers_see_where_the_gradient_of_the_gate_goes(graphs):
    def function(dy, u, wide, weight, bias):
        gate, out = wide[..., 8:], torch.empty_like(wide)
        _, mean, rstd = norm_gate_forward(u, gate, weight, bias, 1e-5, backend='triton')
        du, *_ = norm_gate_backward(dy, u, gate, weight, bias, mean, rstd, 'triton', out[..., 8:])
        return du, out

    found, collect = graphs
    compiled = torch.compile(function, backend=collect, fullgraph=True)
    u = torch.rand(1, 2, 3, 8)
    with torch.no_grad():
        compiled(u, u, torch.rand(1, 2, 3, 16), torch.rand(8), torch.rand(8))
    assert [kernels_in(graph) for graph in found] == [2]


@pytest.mark.parametrize(
    'family, channels, launches', [('HcNet', 64, [6, 11]), ('VHeat', 96, [3, 6])]
)
def test_compilers_see_through_a_block(graphs, monkeypatch, family, channels, launches):
    import mmhcnet
    from mmhcnet.models.backbones.hcnet import HcBlock
    from mmhcnet.models.backbones.vheat import VHeatBlock

    monkeypatch.setattr(backend, 'on_gpu', lambda x: True)
    model = getattr(mmhcnet, family)('tiny')
    block = next(m for m in model.train().modules() if isinstance(m, (HcBlock, VHeatBlock)))
    found, collect = graphs
    x = torch.rand(2, channels, 7, 7).contiguous(memory_format=torch.channels_last).requires_grad_()
    with torch.autocast('cpu', torch.bfloat16):
        compiled = torch.compile(block, backend=collect, fullgraph=True)
        y = compiled(x) if family == 'HcNet' else compiled(x, torch.rand(7, 7, channels))
    y.float().sum().backward()
    assert [kernels_in(graph) for graph in found] == launches
