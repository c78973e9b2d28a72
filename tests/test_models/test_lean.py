"""Layout, fused forms and recomputation change neither outputs nor gradients, only memory."""
import pytest
import torch
from op_by_op import OpByOp

from mmhcnet import HcNet, VHeat

SMALL = dict(embed_dims=[16, 24, 32, 48], depths=[1, 2, 1, 1])
PRE = dict(SMALL, post_norm=False, layer_scale=None)
MODELS = {
    'hcnet': (HcNet, dict(arch=SMALL)),
    'hcnet_isotropic': (HcNet, dict(arch=SMALL, stencil='isotropic')),
    'hcnet_learnable': (HcNet, dict(arch=SMALL, k='learnable')),
    'hcnet_fixed': (HcNet, dict(arch=SMALL, k=0.3)),
    'hcnet_no_filter': (HcNet, dict(arch=SMALL, with_filter=False)),
    'hcnet_cp': (HcNet, dict(arch=SMALL, with_cp=True)),
    'vheat': (VHeat, dict(arch=PRE, img_size=64)),
    'vheat_post_norm': (VHeat, dict(arch=dict(PRE, post_norm=True, layer_scale=0.5),
                                    img_size=64)),
    'vheat_pre_norm_scaled': (VHeat, dict(arch=dict(PRE, layer_scale=0.5), img_size=64)),
    'vheat_no_gate': (VHeat, dict(arch=PRE, img_size=64, with_gate=False)),
    'vheat_no_dwconv': (VHeat, dict(arch=PRE, img_size=64, with_dwconv=False)),
    'vheat_learnable': (VHeat, dict(arch=PRE, img_size=64, k='learnable')),
    'vheat_fixed': (VHeat, dict(arch=PRE, img_size=64, k=0.3)),
    'vheat_cp': (VHeat, dict(arch=PRE, img_size=64, with_cp=True)),
}


def gradients(model, parameters, x):
    x = x.clone().requires_grad_()
    outs = model(x)
    # Random weights: a plain sum would have no gradient behind the norms.
    rng = torch.Generator().manual_seed(1)
    loss = sum((y * torch.randn(y.shape, generator=rng, dtype=y.dtype)).sum() for y in outs)
    return outs, torch.autograd.grad(loss, [x, *parameters])


@pytest.mark.parametrize('name', MODELS)
@pytest.mark.parametrize('size', [(64, 64), (45, 77)])
def test_equal_to_op_by_op(name, size):
    cls, settings = MODELS[name]
    torch.manual_seed(0)
    # The tables of vHeat's DCT are rounded to the working precision, so both sides need the same.
    model = cls(**settings).double().train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    parameters = list(model.parameters())
    outs, grads = gradients(model, parameters, x)
    expected_outs, expected_grads = gradients(OpByOp(model), parameters, x)
    for value, expected in zip((*outs, *grads), (*expected_outs, *expected_grads)):
        scale = expected.abs().max().clamp(min=1)
        torch.testing.assert_close(value / scale, expected / scale, rtol=0, atol=1e-5
                                   if cls is VHeat else 1e-11)


@pytest.mark.parametrize('cls, arch', [(HcNet, SMALL), (VHeat, PRE)])
def test_drop_path_drops_the_same_samples_in_both_passes(cls, arch):
    torch.manual_seed(0)
    model = cls(arch=arch, drop_path_rate=0.5).double().train()
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    parameters = list(model.parameters())
    torch.manual_seed(7)
    _, grads = gradients(model, parameters, x)
    torch.manual_seed(7)
    outs, expected = gradients(OpByOp(model), parameters, x)
    for value, reference in zip(grads, expected):
        scale = reference.abs().max().clamp(min=1)
        torch.testing.assert_close(value / scale, reference / scale, rtol=0, atol=1e-5
                                   if cls is VHeat else 1e-11)


def bytes_saved(model, x):
    """Bytes of unique storages that autograd keeps for the backward pass, parameters aside."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(x)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize('cls, limit', [(HcNet, 64), (VHeat, 90)])
def test_memory_for_the_backward_pass(cls, limit):
    model, x = cls('tiny').train(), torch.randn(2, 3, 224, 224)
    megabytes = bytes_saved(model, x) / len(x) / 1e6
    # What one C-map per block takes: less than that would mean that the measure misses something.
    maps = sum(dim * depth * (56 // 2**i)**2 * 4 / 1e6 for i, (dim, depth) in enumerate(
        zip((64, 128, 320, 512), (5, 5, 14, 5)) if cls is HcNet
        else zip((96, 192, 384, 768), (2, 2, 6, 2))))
    assert 5 * maps < megabytes < limit
    assert bytes_saved(OpByOp(model), x) / len(x) / 1e6 > 2 * megabytes


@pytest.mark.parametrize('cls, arch', [(HcNet, SMALL), (VHeat, PRE)])
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_layouts(cls, arch, layout):
    """Channels last inside; contiguous outside, as mmcv's operators silently assume."""
    model = cls(arch=arch).eval()
    inside = []
    for stage in model.stages:
        for block in stage:
            block.register_forward_hook(lambda module, inputs, y: inside.append(y))
    outs = model(torch.randn(2, 3, 64, 64).contiguous(memory_format=layout))
    assert len(inside) == sum(SMALL['depths'])
    assert all(y.is_contiguous(memory_format=torch.channels_last) for y in inside)
    assert all(y.is_contiguous() for y in outs)
