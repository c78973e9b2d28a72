import sys

import pytest
import torch

from mmhcnet.ops import (
    BACKENDS,
    backend,
    gelu_dwconv,
    gelu_dwconv_ref,
    group_norm_1,
    group_norm_1_ref,
    heat_step,
    heat_step_ref,
)
from mmhcnet.tracing import is_exporting

from ..processes import run

X = torch.randn(2, 3, 4, 5)
OPERATORS = [
    (heat_step, heat_step_ref, (torch.rand(3, 4), torch.rand(2, 3, 1, 1))),
    (gelu_dwconv, gelu_dwconv_ref, (torch.rand(3, 1, 3, 3),)),
    (group_norm_1, group_norm_1_ref, (torch.rand(3), torch.rand(3))),
]
operators = pytest.mark.parametrize(
    'op, ref, parameters', OPERATORS, ids=[op.__name__ for op, _, _ in OPERATORS]
)


@pytest.fixture(autouse=True)
def without_the_interpreter(monkeypatch):
    monkeypatch.delenv('TRITON_INTERPRET', raising=False)


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr(backend, '_INSTALLED', True)


def on_gpu(dtype):
    """What use_triton sees of a CUDA tensor."""
    try:
        with torch._subclasses.FakeTensorMode():
            return torch.empty(2, 3, 4, 5, dtype=dtype, device='cuda')
    except RuntimeError as error:
        pytest.skip(f'this torch makes no fake CUDA tensor without a GPU: {error}')


@operators
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('name', ['auto', 'torch'])
def test_plain_torch_on_the_cpu(op, ref, parameters, dtype, name):
    x, *parameters = (t.to(dtype) for t in (X, *parameters))
    # Not equal: the CPU forms round once less, or in another order.
    torch.testing.assert_close(op(x, *parameters, backend=name), ref(x, *parameters))


@operators
def test_unknown_backend(op, ref, parameters):
    with pytest.raises(
        ValueError,
        match=r"backend must be one of \('auto', 'triton', 'torch'\), "
        "got 'cuda'",
    ):
        op(X, *parameters, backend='cuda')


@operators
def test_triton_needs_a_gpu(op, ref, parameters, installed):
    with pytest.raises(
        RuntimeError,
        match="needs a tensor on a GPU, got one on cpu: move it there, or use backend='auto'",
    ):
        op(X, *parameters, backend='triton')


@operators
def test_triton_needs_triton(op, ref, parameters, monkeypatch):
    monkeypatch.setattr(backend, '_INSTALLED', False)
    with pytest.raises(RuntimeError, match='needs torch 2.7 or newer and the package triton'):
        op(X, *parameters, backend='triton')


@operators
@pytest.mark.parametrize('which', [0, -1], ids=['field', 'parameter'])
def test_triton_refuses_float64(op, ref, parameters, which, installed, monkeypatch):
    monkeypatch.setenv('TRITON_INTERPRET', '1')
    inputs = [X, *parameters]
    inputs[which] = inputs[which].double()
    with pytest.raises(RuntimeError, match="got torch.float64: use backend='auto'"):
        op(*inputs, backend='triton')


@pytest.mark.parametrize(
    'dtype, fused',
    [
        (torch.float32, True),
        (torch.float16, True),
        (torch.bfloat16, True),
        (torch.float64, False),
        (torch.int64, False),
    ],
)
def test_auto_on_a_gpu(dtype, fused, installed):
    assert backend.use_triton('auto', on_gpu(dtype)) == fused
    assert backend.use_triton('auto', on_gpu(torch.float32), on_gpu(dtype)) == fused
    assert not backend.use_triton('torch', on_gpu(dtype))


def test_auto_without_triton(monkeypatch):
    monkeypatch.setattr(backend, '_INSTALLED', False)
    assert not backend.use_triton('auto', on_gpu(torch.float32))


def test_auto_leaves_transforms_to_plain_torch(installed, monkeypatch):
    monkeypatch.setattr(backend, 'on_gpu', lambda x: True)
    fused = []

    def function(x):
        fused.append(backend.use_triton('auto', x))
        return x.sum()

    function(X)
    torch.func.grad(function)(X)
    torch.func.vmap(function)(X)
    torch.func.jvp(function, (X,), (X,))
    assert fused == [True, False, False, False]


def test_auto_does_not_interpret(installed, monkeypatch):
    monkeypatch.setenv('TRITON_INTERPRET', '1')
    assert not backend.use_triton('auto', X)
    assert backend.use_triton('triton', X)


class OneIfExporting(torch.nn.Module):
    def forward(self, x):
        return x + (1 if is_exporting() else 0)


def test_exported_graphs_are_plain_torch():
    assert torch.equal(OneIfExporting()(X), X)
    assert torch.equal(torch.jit.trace(OneIfExporting(), X, check_trace=False)(X), X + 1)


@pytest.mark.skipif(not backend._INSTALLED, reason='needs torch 2.7 and triton')
@pytest.mark.parametrize('strict', [True, False])
def test_torch_export_is_plain_torch(strict):
    assert torch.equal(
        torch.export.export(OneIfExporting(), (X,), strict=strict).module()(X), X + 1
    )


@pytest.mark.skipif(not backend._INSTALLED, reason='needs torch 2.7 and triton')
def test_compiled_graphs_are_not():
    compiled = torch.compile(OneIfExporting(), fullgraph=True, backend='eager')
    assert torch.equal(compiled(X), X)


def test_kernels_are_not_imported_before_they_run():
    code = '''if True:
        import sys, torch, mmhcnet
        from mmhcnet.ops import gelu_dwconv, group_norm_1, heat_step
        x = torch.rand(1, 2, 4, 4)
        heat_step(x, torch.rand(2, 4), 0.5)
        gelu_dwconv(x, torch.rand(2, 1, 3, 3))
        group_norm_1(x, torch.rand(2), torch.rand(2))
        print([name for name in sys.modules if name.startswith('mmhcnet.ops.triton')])
    '''
    out = run([sys.executable, '-c', code], check=True)
    assert out.stdout.split('\n')[-2] == '[]'


def test_the_list_of_backends():
    assert BACKENDS == ('auto', 'triton', 'torch')
