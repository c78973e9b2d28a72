"""The forms of a block: equal in outputs and gradients, and each runs where it should."""

import copy
import functools

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

from mmhcnet import HcNet, VHeat
from mmhcnet.models.backbones import hcnet, vheat
from mmhcnet.models.fusion import plain_form

from ..old_torch import compiles
from .op_by_op import OpByOp

SMALL = dict(embed_dims=[16, 24, 32, 48], depths=[1, 2, 1, 1])
PRE = dict(SMALL, post_norm=False, layer_scale=None)
MODELS = {
    'hcnet': (HcNet, dict(arch=SMALL)),
    'hcnet_isotropic': (HcNet, dict(arch=SMALL, stencil='isotropic')),
    'hcnet_learnable': (HcNet, dict(arch=SMALL, k='learnable')),
    'hcnet_fixed': (HcNet, dict(arch=SMALL, k=0.3)),
    'hcnet_no_filter': (HcNet, dict(arch=SMALL, with_filter=False)),
    'hcnet_keep': (HcNet, dict(arch=SMALL, recompute=False)),
    'hcnet_cp': (HcNet, dict(arch=SMALL, with_cp=True)),
    'vheat': (VHeat, dict(arch=PRE, img_size=64)),
    'vheat_post_norm': (VHeat, dict(arch=dict(PRE, post_norm=True, layer_scale=0.5), img_size=64)),
    'vheat_pre_norm_scaled': (VHeat, dict(arch=dict(PRE, layer_scale=0.5), img_size=64)),
    'vheat_no_gate': (VHeat, dict(arch=PRE, img_size=64, with_gate=False)),
    'vheat_no_dwconv': (VHeat, dict(arch=PRE, img_size=64, with_dwconv=False)),
    'vheat_learnable': (VHeat, dict(arch=PRE, img_size=64, k='learnable')),
    'vheat_fixed': (VHeat, dict(arch=PRE, img_size=64, k=0.3)),
    'vheat_keep': (VHeat, dict(arch=PRE, img_size=64, recompute=False)),
    'vheat_cp': (VHeat, dict(arch=PRE, img_size=64, with_cp=True)),
}


@pytest.fixture
def block_forms(monkeypatch):
    """Which form each call of a block took."""
    forms = []
    for module in (hcnet, vheat):

        def noted(block, x, choose=module.may_fuse):
            fused = choose(block, x)
            forms.append('fused' if fused else 'plain')
            return fused

        monkeypatch.setattr(module, 'may_fuse', noted)
    return forms


def gradients(model, parameters, x):
    x = x.clone().requires_grad_()
    outs = model(x)
    # Random weights: a plain sum would have no gradient after the norms.
    rng = torch.Generator().manual_seed(1)
    loss = sum((y * torch.randn(y.shape, generator=rng, dtype=y.dtype)).sum() for y in outs)
    return outs, torch.autograd.grad(loss, [x, *parameters])


def with_gradients(name, size, **more):
    """A model in float32, its parameters, an image, and what :func:`gradients` gives for them."""
    cls, settings = MODELS[name]
    model = cls(**dict(settings, **more)).train()
    parameters = list(model.parameters())
    x = torch.randn(2, 3, *size)
    return model, parameters, x, gradients(model, parameters, x)


def assert_alike(found, expected, atol):
    """Of outputs and gradients: the difference, relative to the largest value above 1."""
    for value, other in zip((*found[0], *found[1]), (*expected[0], *expected[1])):
        scale = other.abs().max().clamp(min=1)
        torch.testing.assert_close(value / scale, other / scale, rtol=0, atol=atol)


@pytest.mark.parametrize('name', MODELS)
@pytest.mark.parametrize('size', [(64, 64), (45, 77)])
@pytest.mark.parametrize('form', ['fused', 'plain'])
def test_equal_to_op_by_op(name, size, form, block_forms):
    cls, settings = MODELS[name]
    torch.manual_seed(0)
    # The tables of vHeat's DCT are rounded to the working precision, so both sides need the same.
    model = cls(**settings).double().train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    parameters = list(model.parameters())
    if form == 'plain':
        plain_form(model)
    outs, grads = gradients(model, parameters, x)
    assert set(block_forms) == {form}
    expected_outs, expected_grads = gradients(OpByOp(model), parameters, x)
    assert_alike((outs, grads), (expected_outs, expected_grads), 1e-5 if cls is VHeat else 1e-11)


@pytest.mark.parametrize('name', MODELS)
def test_fused_equals_plain_in_float32(name):
    model, parameters, x, fused = with_gradients(name, (64, 48))
    assert_alike(fused, gradients(plain_form(model), parameters, x), 1e-5)


@pytest.mark.parametrize('cls, arch', [(HcNet, SMALL), (VHeat, PRE)])
@pytest.mark.parametrize('form', ['fused', 'plain'])
def test_drop_path_drops_the_same_samples_in_both_passes(cls, arch, form):
    torch.manual_seed(0)
    model = cls(arch=arch, drop_path_rate=0.5).double().train()
    if form == 'plain':
        plain_form(model)
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    parameters = list(model.parameters())
    torch.manual_seed(7)
    _, grads = gradients(model, parameters, x)
    torch.manual_seed(7)
    outs, expected = gradients(OpByOp(model), parameters, x)
    for value, reference in zip(grads, expected):
        scale = reference.abs().max().clamp(min=1)
        torch.testing.assert_close(
            value / scale, reference / scale, rtol=0, atol=1e-5 if cls is VHeat else 1e-11
        )


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
    maps = sum(
        dim * depth * (56 // 2**i) ** 2 * 4 / 1e6
        for i, (dim, depth) in enumerate(
            zip((64, 128, 320, 512), (5, 5, 14, 5))
            if cls is HcNet
            else zip((96, 192, 384, 768), (2, 2, 6, 2))
        )
    )
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


families = pytest.mark.parametrize(
    'cls, arch', [(HcNet, SMALL), (VHeat, PRE)], ids=['HcNet', 'VHeat']
)


def small(cls, arch, **options):
    return cls(arch=arch, out_indices=(3,), **options)


def layers_of_blocks(model):
    """By name, every module below a block."""
    return {
        f'{i}.{j}.{name}': layer
        for i, stage in enumerate(model.stages)
        for j, block in enumerate(stage)
        for name, layer in block.named_modules()
        if name
    }


@families
@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('options', [{}, dict(drop_path_rate=0.1)], ids=str)
def test_a_hook_on_every_layer_fires_once(cls, arch, training, options):
    model = small(cls, arch, **options).train(training)
    fired, layers = [], layers_of_blocks(model)
    for name, layer in layers.items():
        layer.register_forward_hook(lambda module, args, out, name=name: fired.append(name))
    model(torch.randn(1, 3, 32, 32))
    # One DropPath serves both branches of vHeat.
    twice = [name for name in layers if cls is VHeat and '.drop_path' in name]
    assert sorted(fired) == sorted([*layers, *twice])


@families
def test_a_hook_sees_the_forward_and_the_backward_of_a_layer(cls, arch):
    model = small(cls, arch)
    seen = {}
    layer = (model.stages[1][0].refinement if cls is HcNet else model.stages[1][0].mlp).fc1
    layer.register_full_backward_hook(
        lambda module, grads_in, grads_out: seen.update(grad=grads_out[0])
    )
    layer.register_forward_hook(lambda module, args, out: seen.update(out=out))
    model(torch.randn(1, 3, 32, 32))[0].square().sum().backward()
    assert seen['out'].shape == seen['grad'].shape and seen['grad'].any()


class Double(nn.Module):
    def forward(self, weight):
        return 2 * weight


class Lora(nn.Module):
    """A layer and a product of low rank next to it, as adapters add it."""

    def __init__(self, layer):
        super().__init__()
        self.layer, (out, rank) = layer, (layer.weight.shape[0], 2)
        self.down = nn.Parameter(torch.randn(rank, layer.weight.shape[1]))
        self.up = nn.Parameter(torch.randn(out, rank))

    def forward(self, x):
        if isinstance(self.layer, nn.Linear):
            return self.layer(x) + x @ self.down.t() @ self.up.t()
        weight = (self.up @ self.down)[:, :, None, None]
        return self.layer(x) + nn.functional.conv2d(x, weight)


def first_layer(block):
    return block.refinement if isinstance(block, hcnet.HcBlock) else block.mlp


def adapt(block):
    for name in ('fc1', 'fc2'):
        setattr(first_layer(block), name, Lora(getattr(first_layer(block), name)))


CHANGES = {
    'parametrization': lambda block: parametrize.register_parametrization(
        first_layer(block).fc1, 'weight', Double()
    ),
    'LoRA': adapt,
    'replaced forward': lambda block: setattr(
        first_layer(block).fc2,
        'forward',
        lambda x: 3 * type(first_layer(block).fc2).forward(first_layer(block).fc2, x),
    ),
    'replaced layer': lambda block: setattr(first_layer(block), 'act', nn.SiLU()),
    'other GELU': lambda block: setattr(first_layer(block), 'act', nn.GELU('tanh')),
    'other convolution': lambda block: setattr(
        block.refinement if isinstance(block, hcnet.HcBlock) else block.conduction,
        'dwconv',
        nn.Conv2d(
            *(
                2
                * [
                    (
                        first_layer(block).fc1.out_channels
                        if isinstance(block, hcnet.HcBlock)
                        else block.conduction.fc_in.in_features
                    )
                ]
            ),
            3,
            padding=2,
            dilation=2,
            groups=1,
        ),
    ),
    'pruning': lambda block: prune.l1_unstructured(first_layer(block).fc2, 'weight', 0.5),
    'weight norm': lambda block: nn.utils.weight_norm(first_layer(block).fc1),
    'hook that changes the output': lambda block: first_layer(block).fc1.register_forward_hook(
        lambda module, args, out: 2 * out
    ),
    'pre-hook that changes the input': lambda block: first_layer(
        block
    ).fc1.register_forward_pre_hook(lambda module, args: (2 * args[0],)),
}


@families
@pytest.mark.filterwarnings('ignore:.*weight_norm.*')
@pytest.mark.parametrize('change', CHANGES)
def test_what_changes_a_layer_changes_the_output(cls, arch, change, block_forms):
    model = small(cls, arch).double().eval()
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        before = model(x)[0]
        assert set(block_forms) == {'fused'}
        block_forms.clear()
        CHANGES[change](model.stages[1][1])
        model.double()
        after = model(x)[0]
        assert block_forms.count('plain') == 1, 'the blocks that nothing was done to are fused'
        torch.testing.assert_close(after, plain_form(copy.deepcopy(model))(x)[0])
    if change == 'weight norm':
        torch.testing.assert_close(after, before)
    else:
        assert (after - before).abs().max() > 1e-5


@families
def test_every_adapter_gets_a_gradient(cls, arch):
    model = small(cls, arch).requires_grad_(False)
    for stage in model.stages:
        for block in stage:
            adapt(block)
    model(torch.randn(2, 3, 64, 64))[0].square().sum().backward()
    adapters = [p for p in model.parameters() if p.requires_grad]
    assert len(adapters) == 4 * sum(SMALL['depths'])
    assert all(p.grad.any() for p in adapters)


@families
def test_global_hooks_see_every_layer(cls, arch, block_forms):
    model, seen = small(cls, arch), []
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, args, out: seen.append(module)
    )
    try:
        model(torch.randn(1, 3, 32, 32))
    finally:
        handle.remove()
    assert set(layers_of_blocks(model).values()) <= set(seen)
    block_forms.clear()
    model(torch.randn(1, 3, 32, 32))
    assert set(block_forms) == {'fused'}


def of_two_stages(arch):
    """Where each stage takes seconds to trace."""
    return dict(arch, embed_dims=[16, 24], depths=[1, 2])


@compiles
@pytest.mark.parametrize(
    'name',
    [
        'hcnet',
        'hcnet_no_filter',
        'hcnet_fixed',
        'vheat',
        'vheat_post_norm',
        'vheat_pre_norm_scaled',
    ],
)
def test_compiles_as_one_graph_(name):
    arch = of_two_stages(MODELS[name][1]['arch'])
    model, parameters, x, eager = with_gradients(name, (48, 40), arch=arch, out_indices=(0, 1))
    torch._dynamo.reset()
    compiled = gradients(torch.compile(model, backend='aot_eager', fullgraph=True), parameters, x)
    assert_alike(compiled, eager, 1e-5)


@compiles
@families
def test_compiled_blocks_train_under_autocast(cls, arch):
    model = cls(of_two_stages(arch), out_indices=(1,)).train()
    parameters, x = list(model.parameters()), torch.randn(2, 3, 48, 40)

    def run():
        with torch.autocast('cpu', dtype=torch.bfloat16):
            return gradients(model, parameters, x)

    eager = run()
    torch._dynamo.reset()
    for stage in model.stages:
        for block in stage:
            block.compile(backend='aot_eager')
    compiled = run()
    for value, expected in zip((*compiled[0], *compiled[1]), (*eager[0], *eager[1])):
        torch.testing.assert_close(
            value, expected, rtol=2e-2, atol=2e-2 * expected.abs().max().item()
        )


@compiles
@families
def test_a_traced_model_trains_under_autocast(cls, arch):
    """Run by torch itself: each operation gets the dtypes that tracing took it to have."""
    model = cls(of_two_stages(arch), out_indices=(1,)).train()
    parameters, x = list(model.parameters()), torch.randn(2, 3, 48, 40)
    torch._dynamo.reset()
    traced = torch.compile(model, backend='eager')
    with torch.autocast('cpu', dtype=torch.bfloat16):
        loss = sum(out.float().square().mean() for out in traced(x))
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(loss, parameters))


@families
def test_functional_transforms(cls, arch):
    """torch.func on the model: per-sample gradients, and directional derivatives forward."""
    model = small(cls, arch).double()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters, x):
        return torch.func.functional_call(model, parameters, (x,))[0].square().sum()

    grads = torch.func.grad(loss)(parameters, x)
    model(x)[0].square().sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(grads[name], parameter.grad)

    direction = torch.randn_like(x)
    _, slope = torch.func.jvp(functools.partial(loss, parameters), (x,), (direction,))
    x.requires_grad_()
    expected = (torch.autograd.grad(loss(parameters, x), x)[0] * direction).sum()
    torch.testing.assert_close(slope, expected)

    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(
        parameters, x.detach()[:, None]
    )
    for name, grad in grads.items():
        torch.testing.assert_close(per_sample[name].sum(0), grad)


@families
def test_jacobians(cls, arch):
    """By torch.func, of parameters and of the image, and of each image of a batch by itself."""
    model = small(cls, arch).double()
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)

    def few(parameters, x):
        return torch.func.functional_call(model, parameters, (x,))[0].mean((2, 3))[:, :2]

    by_parameter = torch.func.jacrev(few)(parameters, x)
    by_image = torch.func.jacrev(few, argnums=1)(parameters, x)
    out = few(dict(model.named_parameters()), x.requires_grad_())
    expected = torch.autograd.grad(out[1, 0], [x, *model.parameters()])
    torch.testing.assert_close(by_image[1, 0], expected[0])
    for found, value in zip(by_parameter.values(), expected[1:]):
        torch.testing.assert_close(found[1, 0], value)

    one_by_one = torch.func.vmap(lambda x: few(parameters, x[None])[0])(x)
    torch.testing.assert_close(one_by_one, out)


@pytest.mark.parametrize('arch', [PRE, dict(PRE, post_norm=True, layer_scale=0.5)], ids=str)
def test_many_gradients_at_once(arch):
    """is_grads_batched of vHeat. Of HcNet it is not to be had: the backward pass of torch's group
    norm (2.10) cannot take many gradients of a channels-last map."""
    model = small(VHeat, arch, img_size=64).double()
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64, requires_grad=True)
    out = model(x)[0].mean((0, 2, 3))[:3]
    inputs = [x, *model.parameters()]
    together = torch.autograd.grad(out, inputs, torch.eye(3).double(), True, is_grads_batched=True)
    for i in range(3):
        alone = torch.autograd.grad(out[i], inputs, retain_graph=True)
        for found, expected in zip(together, alone):
            torch.testing.assert_close(found[i], expected)


@families
def test_gradient_of_a_gradient(cls, arch):
    """As a gradient penalty takes it: the same as in the plain form."""
    model = small(cls, arch).double()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64, requires_grad=True)

    def penalty():
        (grad,) = torch.autograd.grad(model(x)[0].pow(3).sum(), x, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), list(model.parameters()), allow_unused=True)

    fused = penalty()
    plain_form(model)
    for value, expected in zip(fused, penalty()):
        assert (value is None) == (expected is None)
        if value is not None:
            torch.testing.assert_close(value, expected)


@families
@pytest.mark.parametrize('recompute', ['yes', 1, None])
def test_bad_recompute(cls, arch, recompute):
    with pytest.raises(ValueError, match=r'recompute must be True \(less memory\) or False'):
        small(cls, arch, recompute=recompute)


@families
def test_recomputation_saves_memory(cls, arch):
    x = torch.randn(2, 3, 64, 64)
    kept, again = (
        bytes_saved(small(cls, arch, recompute=recompute).train(), x) for recompute in (False, True)
    )
    assert again < 0.75 * kept


@families
def test_frozen_parts_of_a_block_get_no_gradient(cls, arch, block_forms):
    model, x = small(cls, arch), torch.randn(2, 3, 64, 64)
    model(x)[0].square().sum().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    frozen = {name for n, name in enumerate(expected) if n % 2}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    block_forms.clear()
    model(x)[0].square().sum().backward()
    assert set(block_forms) == {'fused'}
    for name, parameter in model.named_parameters():
        if name in frozen:
            assert parameter.grad is None
        else:
            torch.testing.assert_close(parameter.grad, expected[name])
