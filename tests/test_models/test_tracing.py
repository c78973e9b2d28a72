"""torch.jit.trace and torch.export of both backbones: the same numbers, and no FFT in the graph."""

import functools
import importlib

import pytest
import torch
from torch import nn

from mmhcnet import HcNet, VHeat
from mmhcnet.ops import dct

ARCH = dict(embed_dims=[8, 16], depths=[1, 1])
HCNET = [
    dict(),
    dict(stencil='isotropic'),
    dict(k='learnable'),
    dict(k=0.3),
    dict(with_filter=False),
    dict(stencil='isotropic', k=0.3, with_filter=False),
]


def hcnet(**options):
    return HcNet(ARCH, out_indices=(0, 1), **options).eval()


def vheat(post_norm=False, layer_scale=None, **options):
    arch = dict(ARCH, post_norm=post_norm, layer_scale=layer_scale)
    return VHeat(arch, img_size=32, out_indices=(0, 1), **options).eval()


def deployed(**options):
    model = vheat(**options)
    model.switch_to_deploy((32, 48))
    return model


def case(make, **options):
    return pytest.param(functools.partial(make, **options), id=f'{make.__name__} {options}')


# Made for images of 32x32 and run at 32x48.
VHEAT = [
    case(vheat),
    case(vheat, k='learnable'),
    case(vheat, k=1.5),
    case(vheat, with_dwconv=False, with_gate=False),
    case(vheat, post_norm=True, layer_scale=1.0),
    case(deployed),
    case(deployed, k=1.5),
]


@pytest.fixture(autouse=True)
def cold_caches():
    # As in a process that has run no vHeat yet.
    dct._cached.cache_clear()


def close(found, wanted):
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def has_fft(names):
    return any('fft' in name or 'stft' in name for name in names)


def traced_ops(traced):
    return [node.kind() for node in traced.inlined_graph.nodes()]


def exported_ops(program):
    return [str(node.target) for node in program.graph.nodes]


@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
@pytest.mark.parametrize('options', HCNET, ids=str)
def test_trace_of_hcnet_runs_at_other_sizes(options):
    model = hcnet(**options)
    # Traces a second time and compares graphs and outputs.
    traced = torch.jit.trace(model, torch.randn(2, 3, 32, 48))
    for shape in [(2, 3, 32, 48), (1, 3, 43, 57)]:
        x = torch.randn(shape)
        close(traced(x), model(x))
    assert not has_fft(traced_ops(traced))


@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
@pytest.mark.parametrize('grad', [False, True])
@pytest.mark.parametrize('make', VHEAT)
def test_trace_of_vheat(make, grad):
    model = make()
    with torch.set_grad_enabled(grad):
        traced = torch.jit.trace(model, torch.randn(2, 3, 32, 48))
    x = torch.randn(3, 3, 32, 48)
    close(traced(x), model(x))
    ops = traced_ops(traced)
    assert not has_fft(ops)
    # Rows and columns, there and back, in each of the two blocks.
    assert ops.count('aten::matmul') == 8


@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
def test_trace_of_vheat_does_not_run_at_another_size():
    traced = torch.jit.trace(vheat(), torch.randn(1, 3, 32, 48))
    with pytest.raises(RuntimeError):
        traced(torch.randn(1, 3, 48, 48))


def export(model, shape, axes):
    module = importlib.import_module('torch.export')
    if not hasattr(module, 'Dim'):
        pytest.skip('dynamic shapes in torch.export need torch 2.2')
    dims = {axis: module.Dim(name, min=low, max=1024) for axis, (name, low) in axes.items()}
    return module.export(model, (torch.randn(shape),), dynamic_shapes=(dims,))


@pytest.mark.parametrize('options', HCNET, ids=str)
def test_export_of_hcnet_with_dynamic_shapes(options):
    model = hcnet(**options)
    # The smallest image of two stages has 8 pixels, its last map 1; torch.export takes lengths of
    # 1 for a case of their own.
    program = export(
        model, (2, 3, 32, 48), axes={0: ('batch', 1), 2: ('height', 9), 3: ('width', 9)}
    )
    for shape in [(2, 3, 32, 48), (1, 3, 43, 57), (3, 3, 57, 9), (4, 3, 9, 100)]:
        x = torch.randn(shape)
        close(program.module()(x), model(x))
    assert not has_fft(exported_ops(program))


@pytest.mark.parametrize('make', VHEAT)
def test_export_of_vheat_with_a_dynamic_batch(make):
    model = make()
    program = export(model, (2, 3, 32, 48), axes={0: ('batch', 1)})
    for batch in (1, 2, 5):
        x = torch.randn(batch, 3, 32, 48)
        close(program.module()(x), model(x))
    ops = exported_ops(program)
    assert not has_fft(ops)
    assert ops.count('aten.matmul.default') == 8


def test_the_search_for_an_fft_finds_one():

    class Fourier(nn.Module):
        def forward(self, x):
            return torch.fft.fft2(x).real

    assert has_fft(traced_ops(torch.jit.trace(Fourier(), torch.randn(4, 4))))
    module = importlib.import_module('torch.export')
    assert has_fft(exported_ops(module.export(Fourier(), (torch.randn(4, 4),))))
