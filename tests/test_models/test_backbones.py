"""What holds for every backbone: shapes, gradients, freezing, checkpointing, bad arguments."""

import copy
import pickle

import numpy as np
import pytest
import torch
from mmengine.analysis import get_model_complexity_info
from mmengine.runner import turn_on_activation_checkpointing
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmhcnet import HcNet, VHeat
from mmhcnet.models.backbones import hcnet, vheat
from mmhcnet.models.layers import DropPath
from mmhcnet.tracing import COMPILES_FUNCTIONS

DIMS = dict(embed_dims=[8, 12, 16, 20], depths=[1, 2, 1, 1])
PRE = dict(DIMS, post_norm=False, layer_scale=None)
POST = dict(DIMS, post_norm=True, layer_scale=0.5)
SMALL = {HcNet: DIMS, VHeat: PRE}
ARCHS = {HcNet: hcnet.ARCHS, VHeat: vheat.ARCHS}
# Every option in at least one line, against the defaults of the others.
OPTIONS = {
    HcNet: {
        'default': {},
        'isotropic': dict(stencil='isotropic'),
        'k learnable': dict(k='learnable'),
        'k fixed': dict(k=0.1),
        'k fixed int': dict(k=1),
        'isotropic, k fixed': dict(stencil='isotropic', k=3.0),
        'no filter': dict(with_filter=False),
        'mlp_ratio': dict(mlp_ratio=2.5),
        'drop path': dict(drop_path_rate=0.3),
        'checkpointing': dict(with_cp=True),
    },
    VHeat: {
        'default': {},
        'post-norm, layer scale': dict(arch=POST),
        'pre-norm, layer scale': dict(arch=dict(PRE, layer_scale=1e-5)),
        'post-norm': dict(arch=dict(PRE, post_norm=True)),
        'k learnable': dict(k='learnable'),
        'k fixed': dict(k=0.1),
        'k fixed int': dict(k=1),
        'no depthwise convolution': dict(with_dwconv=False),
        'no gate': dict(with_gate=False),
        'neither, k fixed': dict(with_dwconv=False, with_gate=False, k=2.0),
        'mlp_ratio': dict(mlp_ratio=2.5),
        'img_size': dict(img_size=64),
        'drop path': dict(drop_path_rate=0.3),
        'checkpointing': dict(with_cp=True),
    },
}
families = pytest.mark.parametrize('cls', SMALL, ids=lambda cls: cls.__name__)


def build(cls, **options):
    return cls(**{'arch': SMALL[cls], **options})


@pytest.mark.parametrize('cls, arch', [(cls, arch) for cls in ARCHS for arch in ARCHS[cls]])
def test_every_arch_runs(cls, arch):
    model = cls(arch, out_indices=(0, 3)).eval()
    with torch.no_grad():
        outs = model(torch.randn(1, 3, 32, 33))
    dims = ARCHS[cls][arch]['embed_dims']
    assert [tuple(o.shape) for o in outs] == [(1, dims[0], 8, 9), (1, dims[3], 1, 2)]
    assert all(o.isfinite().all() for o in outs)


@pytest.mark.parametrize('out_indices', [(0, 1, 2, 3), (3,), (0,), (1, 2), (0, 2), (2,)])
@pytest.mark.parametrize(
    'cls, options',
    [
        pytest.param(cls, options, id=f'{cls.__name__}: {name}')
        for cls in OPTIONS
        for name, options in OPTIONS[cls].items()
    ],
)
def test_finite_output_and_a_gradient_for_every_parameter(cls, options, out_indices):
    model = build(cls, out_indices=out_indices, **options).train()
    outs = model(torch.randn(4, 3, 40, 35))
    size = (10, 9)
    for i in range(4):
        if i in out_indices:
            out = outs[out_indices.index(i)]
            assert out.shape == (4, DIMS['embed_dims'][i], *size)
            assert out.isfinite().all()
        size = tuple((s + 1) // 2 for s in size)
    sum((out * torch.randn_like(out)).sum() for out in outs).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f'{name} has no gradient'
        assert parameter.grad.isfinite().all(), name
    # A dropped path leaves zeros, and so does the stencil where the last maps have a single row or
    # column.
    if not options.get('drop_path_rate'):
        dead = [
            n
            for n, p in model.named_parameters()
            if not p.grad.any() and not (cls is HcNet and 'conduction' in n)
        ]
        assert not dead


@families
@pytest.mark.parametrize('size', [(32, 32), (33, 65), (32, 257), (95, 47)])
def test_any_size_from_32(cls, size):
    outs = build(cls).eval()(torch.randn(1, 3, *size))
    height, width = ((s + 3) // 4 for s in size)
    for out in outs:
        assert out.shape[2:] == (height, width)
        assert out.isfinite().all()
        height, width = (height + 1) // 2, (width + 1) // 2


@families
@pytest.mark.parametrize('size', [(1024, 1024), (800, 1333)])
def test_large_images(cls, size):
    with torch.no_grad():
        outs = build(cls).eval()(torch.randn(1, 3, *size))
    assert outs[3].shape[2:] == (-(-size[0] // 32), -(-size[1] // 32))
    assert all(out.isfinite().all() for out in outs)


@families
def test_in_channels(cls):
    assert build(cls, in_channels=1)(torch.randn(1, 1, 32, 32))[3].shape == (1, 20, 1, 1)


@families
def test_drop_path_grows_linearly_over_the_whole_depth(cls):
    model = build(cls, drop_path_rate=0.4, out_indices=(2,))
    rates = [
        [m.drop_prob for m in block.modules() if isinstance(m, DropPath)]
        for stage in model.stages
        for block in stage
    ]
    # HcNet: of conduction and of refinement. VHeat: one module for conduction and MLP.
    count = {HcNet: 2, VHeat: 1}[cls]
    # Five blocks in the architecture, of which the last is not built.
    np.testing.assert_allclose(rates, [[r] * count for r in (0, 0.1, 0.2, 0.3)], atol=1e-7)


def test_drop_path_drops_samples_and_keeps_the_mean():
    layer, x = DropPath(0.25).train(), torch.ones(20000, 2, 1, 1)
    y = layer(x)
    assert torch.equal(y[:, 0], y[:, 1])
    assert y.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert y.mean().item() == pytest.approx(1, abs=0.02)
    assert layer.eval()(x) is x


@families
@pytest.mark.parametrize('frozen_stages', [-1, 0, 1, 2, 3, 4])
def test_frozen_stages(cls, frozen_stages):
    model = build(cls, frozen_stages=frozen_stages, drop_path_rate=0.2).train()
    if frozen_stages < 4:
        sum(out.sum() for out in model(torch.randn(2, 3, 32, 32))).backward()

    def is_frozen(module):
        states = {p.requires_grad for p in module.parameters()}
        assert len(states) == 1
        frozen = not states.pop()
        assert all(m.training != frozen for m in module.modules())
        return frozen

    assert is_frozen(model.stem) == (frozen_stages >= 0)
    for i in range(4):
        assert is_frozen(model.stages[i]) == (i < frozen_stages)
        assert is_frozen(getattr(model, f'norm{i}')) == (i < frozen_stages)
        if cls is VHeat:
            assert model.freq_embed[i].requires_grad == (i >= frozen_stages)
        if i:
            assert is_frozen(model.downsamples[i - 1]) == (i < frozen_stages)
    model.eval()
    assert not any(m.training for m in model.modules())


@families
def test_train_and_eval_return_self(cls):
    model = build(cls)
    assert model.train() is model
    assert model.eval() is model


@families
def test_norm_eval(cls):
    model = build(cls, norm_eval=True).train()
    norms = [m for m in model.modules() if isinstance(m, (nn.GroupNorm, nn.LayerNorm))]
    assert norms and not any(m.training for m in norms)
    assert model.stages[0][0].training
    assert all(m.training for m in build(cls).train().modules())


@families
def test_checkpointing_changes_nothing(cls):
    torch.manual_seed(1)
    plain, recomputed = build(cls), build(cls, with_cp=True)
    recomputed.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 48, 40)
    for model in (plain, recomputed):
        sum(out.square().sum() for out in model(x)).backward()
    for (name, p), q in zip(plain.named_parameters(), recomputed.parameters()):
        torch.testing.assert_close(p.grad, q.grad, msg=name)


@families
def test_checkpointing_saves_memory(cls):
    def saved(model):
        storages = {}

        def pack(t):
            storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            outs = model(torch.randn(2, 3, 64, 64))
        assert outs
        return sum(storages.values())

    assert saved(build(cls, with_cp=True)) < 0.7 * saved(build(cls))


@families
def test_result_is_independent_of_the_rest_of_the_batch(cls):
    model, x = build(cls).eval(), torch.randn(3, 3, 40, 40)
    together = model(x)
    for i in range(3):
        for a, b in zip(together, model(x[i : i + 1])):
            torch.testing.assert_close(a[i : i + 1], b, rtol=1e-4, atol=1e-5)


@families
def test_copies_and_state_dict_round_trip(cls):
    model, x = build(cls).eval(), torch.randn(1, 3, 32, 32)
    expected = model(x)
    other = build(cls).eval()
    other.load_state_dict(model.state_dict())
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), other):
        for a, b in zip(expected, copied(x)):
            assert torch.equal(a, b)


@families
def test_caller_lists_are_not_changed_or_kept(cls):
    arch, out_indices = copy.deepcopy(SMALL[cls]), [0, 3]
    model = cls(arch, out_indices=out_indices)
    out_indices.append(9)
    assert arch == SMALL[cls] and model.out_indices == (0, 3)


@families
@pytest.mark.parametrize(
    'options, message',
    [
        (dict(arch='tinny'), r"arch must be one of \['tiny', 'small', 'base'\]"),
        (dict(arch=None), 'arch must be one of'),
        (dict(out_indices=(4,)), r'from 0 to 3, got \(4,\)'),
        (dict(out_indices=(-1,)), 'from 0 to 3'),
        (dict(out_indices=(2, 1)), 'ascending'),
        (dict(out_indices=(1, 1)), 'ascending'),
        (dict(out_indices=()), 'out_indices must be'),
        (dict(out_indices=3), 'out_indices must be'),
        (dict(frozen_stages=5), 'frozen_stages must be from -1 to 4, got 5'),
        (dict(drop_path_rate=1.0), r'drop_path_rate must be in \[0, 1\), got 1.0'),
        (dict(k=-0.1), 'a number >= 0, got -0.1'),
        (dict(k=float('nan')), 'got nan'),
        (dict(k=True), 'got True'),
    ],
)
def test_bad_arguments(cls, options, message):
    with pytest.raises(ValueError, match=message):
        build(cls, **options)


@families
@pytest.mark.parametrize(
    'change, message',
    [
        (dict(depths=[1]), 'one number per stage each, got 4 and 1'),
        (dict(embed_dims=[], depths=[]), 'got 0 and 0'),
        (dict(depths=[1, 0, 1, 1]), 'positive integers'),
        (dict(embed_dims=[8.0, 8, 8, 8]), 'positive integers'),
        (dict(embed_dims=[7, 8, 8, 8]), 'must be even'),
        (dict(heads=[1]), "needs exactly the keys .* got .*'heads'"),
    ],
)
def test_bad_arch(cls, change, message):
    with pytest.raises(ValueError, match=message):
        cls(dict(SMALL[cls], **change))


@families
def test_unknown_keyword(cls):
    with pytest.raises(TypeError, match="unexpected keyword argument 'stencill'"):
        build(cls, stencill='isotropic')


@families
@pytest.mark.parametrize('size', [(31, 64), (64, 31), (1, 1)])
def test_too_small_an_image(cls, size):
    with pytest.raises(ValueError, match=f'at least 32, got {size[0]}x{size[1]}: resize or pad'):
        build(cls)(torch.zeros(1, 3, *size))


@pytest.mark.parametrize(
    'cls, options', [(cls, name) for cls in OPTIONS for name in OPTIONS[cls]], ids=str
)
def test_a_model_without_values_is_initialised(cls, options):
    """Built on 'meta', given memory, initialised: as a model that was built with values."""
    options = dict(OPTIONS[cls][options], mask_token=True)
    with torch.device('meta'):
        model = build(cls, **options)
    model = model.to_empty(device='cpu')
    for parameter in model.parameters():
        nn.init.constant_(parameter, torch.nan)
    model.init_weights()
    usual = build(cls, **options).state_dict()
    for name, value in model.state_dict().items():
        assert value.isfinite().all(), name
        if usual[name].unique().numel() == 1:
            assert torch.equal(value, usual[name]), name
        elif value.numel() > 100:
            assert value.std().item() == pytest.approx(usual[name].std().item(), rel=0.4), name


@families
def test_init_weights_leaves_the_values_of_a_model_that_has_some(cls):
    model = build(cls)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.init_weights()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@families
def test_init_cfg_goes_beyond_what_a_model_without_values_gets(cls):
    with torch.device('meta'):
        model = build(cls, init_cfg=dict(type='Constant', layer='Conv2d', val=2.0))
    model = model.to_empty(device='cpu')
    model.init_weights()
    assert (model.stem.conv1.weight == 2).all()
    assert model.norm0.weight.isfinite().all()


@families
def test_a_mask_hides_pixels_of_the_stem_s_map(cls):
    model = build(cls, mask_token=True).eval()
    x = torch.randn(2, 3, 50, 64)
    mask = (torch.rand(2, 13, 16) < 0.5).long()
    for out, expected in zip(model(x, torch.zeros_like(mask)), model(x)):
        torch.testing.assert_close(out, expected)
    # All hidden: one image is as the other, and the vector alone decides what they are.
    outs = model(x, torch.ones_like(mask))
    torch.testing.assert_close(outs[0][0], outs[0][1])

    seen = []
    model.stages[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model(x)
    model(x, mask)
    whole, hidden = (maps.permute(0, 2, 3, 1) for maps in seen)
    assert torch.equal(hidden[mask == 0], whole[mask == 0])
    assert (hidden[mask == 1] == model.mask_token).all()
    model(x, mask)[3].square().sum().backward()
    assert model.mask_token.grad.abs().sum() > 0
    assert model.get_layer_depth('mask_token')[0] == 0


@families
def test_bad_mask(cls):
    x = torch.randn(2, 3, 64, 64)
    with pytest.raises(ValueError, match='build it with mask_token=True'):
        build(cls)(x, torch.zeros(2, 16, 16))
    with pytest.raises(
        ValueError, match=r'\(2, 16, 16\), got \(2, 8, 8\): .*model_patch_size is 4'
    ):
        build(cls, mask_token=True)(x, torch.zeros(2, 8, 8))


@families
@pytest.mark.parametrize(
    'name', ['stem', 'stages.1', 'stages.1.0', 'stages.1.1.conduction', 'downsamples.0']
)
def test_activation_checkpointing_of_a_part(cls, name):
    """mmengine's, of any part: it runs once more in the backward pass, and changes nothing."""
    model = build(cls).double()
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64, requires_grad=True)
    model(x)[3].square().sum().backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()

    part, passes = model.get_submodule(name), []
    forward = part.forward

    def counted(*args):
        passes.append(torch.is_grad_enabled())
        return forward(*args)

    part.forward = counted
    turn_on_activation_checkpointing(model, name)
    model(x)[3].square().sum().backward()
    assert passes == [False, True]
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name])


@pytest.mark.skipif(
    not COMPILES_FUNCTIONS, reason='the counter of torch 2.1 misses operations of fused blocks'
)
@pytest.mark.parametrize('cls, arch', [(HcNet, 'tiny'), (VHeat, 'tiny'), (VHeat, 'small')])
def test_counters_of_operations_agree(cls, arch):
    """Those that go by operations and, where they are installed, those that go by modules."""
    model = cls(arch, out_indices=(3,)).eval()
    x = torch.randn(1, 3, 64, 64)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    found = [
        counter.get_total_flops() / 2,
        get_model_complexity_info(model, inputs=(x,), show_table=False, show_arch=False)['flops'],
    ]
    try:
        from ptflops import get_model_complexity_info as by_modules
    except ImportError:
        pass
    else:
        settings = dict(as_strings=False, print_per_layer_stat=False, backend='pytorch')
        found.append(by_modules(copy.deepcopy(model), (3, 64, 64), **settings)[0])
    assert max(found) < 1.02 * min(found), found
