"""Any batch, size, dtype and layout: finite outputs, and none depends on the rest of the batch."""

import functools

import pytest
import torch

from mmhcnet import HcNet, VHeat

from ..old_torch import HALF

pytest.importorskip('hypothesis', reason='the fuzz needs it: pip install hypothesis')
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

ARCH = dict(embed_dims=[4, 8, 8, 12], depths=[1, 1, 1, 1])
CLASSES = {HcNet: {}, VHeat: dict(post_norm=False, layer_scale=None)}
# Of the largest output: two roundings of that many additions.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-3, torch.bfloat16: 0.15, torch.float16: 0.03}

sides = st.integers(32, 257)
out_indices = st.sets(st.integers(0, 3), min_size=1).map(sorted).map(tuple)
dtypes = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, *HALF])


@functools.cache
def model_of(cls, out_indices, dtype):
    torch.manual_seed(0)
    model = cls(arch=dict(ARCH, **CLASSES[cls]), out_indices=out_indices)
    return model.to(dtype).eval()


def layout_of(x, name):
    """The same values, stored in another order."""
    if name == 'channels_last':
        return x.contiguous(memory_format=torch.channels_last)
    if name == 'transposed':
        return x.transpose(2, 3).contiguous().transpose(2, 3)
    if name == 'cut out':
        return torch.nn.functional.pad(x, (1, 2, 3, 4))[..., 3:-4, 1:-2]
    return x.contiguous()


layouts = st.sampled_from(['contiguous', 'channels_last', 'transposed', 'cut out'])


@pytest.mark.slow
@pytest.mark.parametrize('cls', CLASSES)
@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(
    batch=st.integers(1, 3),
    height=sides,
    width=sides,
    dtype=dtypes,
    layout=layouts,
    out_indices=out_indices,
)
@torch.no_grad()
def test_backbones(cls, batch, height, width, dtype, layout, out_indices):
    model = model_of(cls, out_indices, dtype)
    rng = torch.Generator().manual_seed(height * width)
    x = layout_of(torch.randn(batch, 3, height, width, generator=rng).to(dtype), layout)
    outs = model(x)
    alone = model(x[-1:])
    for index, out, single in zip(out_indices, outs, alone):
        stride = 4 * 2**index
        assert out.dtype is dtype and out.isfinite().all()
        assert out.shape == (
            batch,
            ARCH['embed_dims'][index],
            -(-height // stride),
            -(-width // stride),
        )
        difference = (out[-1:] - single).abs().max().double() / single.abs().max()
        assert difference < TOLERANCE[dtype]


@pytest.mark.parametrize('cls', CLASSES)
@pytest.mark.parametrize(
    'shape, match',
    [
        ((1, 3, 31, 64), '32'),
        ((1, 3, 64, 31), '32'),
        ((1, 4, 64, 64), 'channels'),
        ((3, 64, 64), 'shape'),
    ],
)
def test_wrong_inputs(cls, shape, match):
    with pytest.raises((ValueError, RuntimeError), match=match):
        model_of(cls, (3,), torch.float32)(torch.zeros(shape))


@pytest.mark.parametrize('cls', CLASSES)
@pytest.mark.parametrize('dtype', [torch.bfloat16, *HALF])
def test_mixed_precision_on_large_inputs(cls, dtype):
    """Five steps on inputs of the order of 1000: reductions and gates are in float32."""
    torch.manual_seed(0)
    model = cls(arch=dict(ARCH, **CLASSES[cls]), out_indices=(3,)).train()
    head = torch.nn.Linear(ARCH['embed_dims'][3], 10)
    parameters = [*model.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    for _ in range(5):
        x = 1e3 * torch.randn(4, 3, 64, 64)
        with torch.autocast('cpu', dtype=dtype):
            scores = head(model(x)[0].mean((2, 3)))
        loss = torch.nn.functional.cross_entropy(scores.float(), torch.arange(4))
        optimizer.zero_grad()
        loss.backward()
        assert loss.isfinite()
        assert all(p.grad.isfinite().all() for p in parameters)
        optimizer.step()
    assert all(p.isfinite().all() for p in parameters)
