"""torch.jit.trace, torch.export and torch.fx of both backbones: the same numbers, and no FFT."""

import functools
import importlib

import pytest
import torch
import torch.fx
from mmengine.model.efficient_conv_bn_eval import (
    efficient_conv_bn_eval_control,
    turn_on_efficient_conv_bn_eval,
)
from torch import nn

from mmhcnet import HcNet, VHeat
from mmhcnet.models.layers import DropPath
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


FX = [case(hcnet, **options) for options in HCNET] + VHEAT


@pytest.mark.parametrize('make', FX)
def test_symbolic_trace(make):
    """At other sizes too, and with the checks of the model."""
    model = make()
    graph = torch.fx.symbolic_trace(model)
    sizes = [(32, 48)] if model.__dict__.get('deploy_size') else [(32, 48), (43, 57)]
    for size in sizes:
        x = torch.randn(2, 3, *size)
        close(graph(x), model(x))
    with pytest.raises(ValueError, match='takes images of shape'):
        graph(torch.randn(3, 32, 48))
    with pytest.raises(ValueError, match='at least 8, got 32x7|folded this VHeat'):
        graph(torch.randn(1, 3, 32, 7))


@pytest.mark.parametrize('make', [hcnet, vheat])
def test_symbolic_trace_learns_and_masks(make):
    model = make(mask_token=True, drop_path_rate=0.5)
    graph = torch.fx.symbolic_trace(model.train())
    x, mask = torch.randn(4, 3, 32, 48), torch.randint(2, (4, 8, 12))
    found = []
    for each in (model, graph):
        torch.manual_seed(0)
        maps = each(x, mask)
        gradients = torch.autograd.grad(sum(y.square().sum() for y in maps), model.parameters())
        found.append((*maps, *gradients))
    for a, b in zip(*found):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    # Whether samples are dropped is asked when the graph runs.
    close(graph.eval()(x, mask), model.eval()(x, mask))


@pytest.mark.parametrize('drop_prob', [0.0, 0.5])
def test_drop_path_in_a_graph_follows_the_mode(drop_prob):
    graph = torch.fx.symbolic_trace(nn.Sequential(DropPath(drop_prob)).eval())
    x = torch.ones(1000, 2)
    assert torch.equal(graph(x), x)
    dropped = graph.train()(x)
    assert set(dropped.unique().tolist()) == ({0.0, 2.0} if drop_prob else {1.0})
    assert torch.equal(dropped[:, 0], dropped[:, 1])


def with_batch_norms(model):
    """The norms between stages replaced by batch norms that have seen something."""
    for downsample in model.downsamples:
        downsample.norm = nn.BatchNorm2d(16)
    model.train()(torch.randn(4, 3, 32, 48))
    return model.eval()


@pytest.mark.parametrize('make', [hcnet, vheat])
def test_efficient_conv_bn_eval(make):
    """mmengine's, which folds a batch norm in eval mode into the convolution before it."""
    model = with_batch_norms(make(drop_path_rate=0.5))
    x = torch.randn(2, 3, 32, 48)
    wanted = model(x)
    # A Runner turns it on in training mode.
    turn_on_efficient_conv_bn_eval(nn.ModuleDict(dict(backbone=model.train())), 'backbone')
    targets = [node.target for node in model.forward.__self__.graph.nodes]
    assert targets.count(efficient_conv_bn_eval_control) == len(model.downsamples)
    close(model.eval()(x), wanted)
