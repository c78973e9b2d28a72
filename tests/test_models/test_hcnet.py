import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from mmhcnet import HcNet, convert_state_dict
from mmhcnet.models.backbones.hcnet import ARCHS
from mmhcnet.models.layers import DropPath

from ..old_torch import HALF

SMALL = dict(embed_dims=[8, 12, 16, 20], depths=[1, 2, 1, 1])
# Every option in at least one line, against the defaults of the others.
OPTIONS = {
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
}
OUT_INDICES = [(0, 1, 2, 3), (3, ), (0, ), (1, 2), (0, 2), (2, )]


def parameters(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize('arch, expected', [('tiny', 27_903_936), ('small', 61_963_776),
                                            ('base', 98_837_760)])
def test_parameters_of_the_published_sizes(arch, expected):
    with torch.device('meta'):
        model = HcNet(arch, stencil='isotropic', out_indices=(3, ))
    assert parameters(model) == expected
    channels, depths = ARCHS[arch]['embed_dims'], ARCHS[arch]['depths']
    with torch.device('meta'):
        paper = HcNet(arch, out_indices=(3, ))
    assert parameters(paper) - expected == 4 * sum(c * d for c, d in zip(channels, depths))


@pytest.mark.parametrize('arch', ARCHS)
def test_every_arch_runs(arch):
    model = HcNet(arch, out_indices=(0, 3)).eval()
    with torch.no_grad():
        outs = model(torch.randn(1, 3, 32, 33))
    dims = ARCHS[arch]['embed_dims']
    assert [tuple(o.shape) for o in outs] == [(1, dims[0], 8, 9), (1, dims[3], 1, 2)]
    assert all(o.isfinite().all() for o in outs)


@pytest.mark.parametrize('out_indices', OUT_INDICES)
@pytest.mark.parametrize('options', OPTIONS.values(), ids=OPTIONS)
def test_finite_output_and_a_gradient_for_every_parameter(options, out_indices):
    model = HcNet(SMALL, out_indices=out_indices, **options).train()
    x = torch.randn(4, 3, 40, 35)
    outs = model(x)
    size = (10, 9)
    for i in range(4):
        if i in out_indices:
            out = outs[out_indices.index(i)]
            assert out.shape == (4, SMALL['embed_dims'][i], *size)
            assert out.isfinite().all()
        size = tuple((s + 1) // 2 for s in size)
    sum((out * torch.randn_like(out)).sum() for out in outs).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f'{name} has no gradient'
        assert parameter.grad.isfinite().all(), name
    # A dropped path and the single row or column of the last maps leave zeros in places.
    if not options.get('drop_path_rate'):
        dead = [n for n, p in model.named_parameters() if not p.grad.any() and 'conduction' not in n]
        assert not dead


@pytest.mark.parametrize('size', [(32, 32), (33, 65), (32, 257), (95, 47)])
def test_any_size_from_32(size):
    outs = HcNet(SMALL).eval()(torch.randn(1, 3, *size))
    height, width = ((s + 3) // 4 for s in size)
    for out in outs:
        assert out.shape[2:] == (height, width)
        assert out.isfinite().all()
        height, width = (height + 1) // 2, (width + 1) // 2


def test_in_channels():
    assert HcNet(SMALL, in_channels=1)(torch.randn(1, 1, 32, 32))[3].shape == (1, 20, 1, 1)


@pytest.mark.parametrize('mlp_ratio', [2., 4.])
@pytest.mark.parametrize('channels', [64, 320, 768])
def test_no_filter_has_as_many_parameters(channels, mlp_ratio):
    arch = dict(embed_dims=[channels], depths=[1])
    counts = [parameters(HcNet(arch, mlp_ratio=mlp_ratio, with_filter=f, out_indices=(0, )))
              for f in (True, False)]
    # Rounding to a whole hidden channel: at most half of its 2C + 1 parameters.
    assert abs(counts[0] - counts[1]) <= channels + 1


def test_k_input_dependent_is_between_0_and_1_and_depends_on_the_input():
    layer = HcNet(SMALL).stages[1][0].conduction
    nn.init.normal_(layer.to_k.weight)
    k = layer.rate(torch.randn(3, 12, 5, 5))
    assert k.shape == (3, 12, 1, 1)
    assert ((0 < k) & (k < 1)).all()
    assert not torch.equal(k[0], k[1])


def test_k_learnable_is_one_number_per_layer():
    with_k, without = (HcNet(SMALL, k=k) for k in ('learnable', 0.5))
    assert parameters(with_k) - parameters(without) == sum(SMALL['depths'])
    without.load_state_dict(with_k.state_dict(), strict=False)
    x = torch.randn(1, 3, 32, 32)
    for a, b in zip(with_k.eval()(x), without.eval()(x)):
        torch.testing.assert_close(a, b)


def test_initial_values():
    model = HcNet('tiny', out_indices=(1, ))
    block = model.stages[1][2]
    assert torch.equal(block.conduction.w, torch.full((128, 4), 0.25))
    for weight in (block.refinement.fc1.weight, block.refinement.dwconv.weight,
                   block.conduction.to_k.weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not block.refinement.fc1.bias.any()


def test_drop_path_grows_linearly_over_the_whole_depth():
    model = HcNet(SMALL, drop_path_rate=0.4, out_indices=(2, ))
    rates = [(block.conduction.drop_path.drop_prob, block.refinement.drop_path.drop_prob)
             for stage in model.stages for block in stage]
    # Five blocks in the architecture, of which the last is not built.
    np.testing.assert_allclose(rates, [(r, r) for r in (0, .1, .2, .3)], atol=1e-7)


def test_drop_path_drops_samples_and_keeps_the_mean():
    layer, x = DropPath(0.25).train(), torch.ones(20000, 2, 1, 1)
    y = layer(x)
    assert torch.equal(y[:, 0], y[:, 1])
    assert y.unique().tolist() == [0., pytest.approx(4 / 3)]
    assert y.mean().item() == pytest.approx(1, abs=0.02)
    assert layer.eval()(x) is x


@pytest.mark.parametrize('frozen_stages', [-1, 0, 1, 2, 4])
def test_frozen_stages(frozen_stages):
    model = HcNet(SMALL, frozen_stages=frozen_stages, drop_path_rate=0.2).train()
    sum(out.sum() for out in model(torch.randn(2, 3, 32, 32))).backward() \
        if frozen_stages < 4 else None

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
        if i:
            assert is_frozen(model.downsamples[i - 1]) == (i < frozen_stages)
    model.eval()
    assert not any(m.training for m in model.modules())


def test_train_and_eval_return_self():
    model = HcNet(SMALL)
    assert model.train() is model
    assert model.eval() is model


def test_norm_eval():
    model = HcNet(SMALL, norm_eval=True).train()
    norms = [m for m in model.modules() if isinstance(m, nn.GroupNorm)]
    assert norms and not any(m.training for m in norms)
    assert model.stages[0][0].training
    assert all(m.training for m in HcNet(SMALL).train().modules())


def test_checkpointing_changes_nothing():
    torch.manual_seed(1)
    plain = HcNet(SMALL)
    recomputed = HcNet(SMALL, with_cp=True)
    recomputed.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 48, 40)
    for model in (plain, recomputed):
        sum(out.square().sum() for out in model(x)).backward()
    for (name, p), q in zip(plain.named_parameters(), recomputed.parameters()):
        torch.testing.assert_close(p.grad, q.grad, msg=name)


def test_checkpointing_saves_memory():
    def saved(model):
        storages = {}

        def pack(t):
            storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            outs = model(torch.randn(2, 3, 64, 64))
        assert outs
        return sum(storages.values())

    assert saved(HcNet(SMALL, with_cp=True)) < 0.7 * saved(HcNet(SMALL))


def test_result_is_independent_of_the_rest_of_the_batch():
    model, x = HcNet(SMALL).eval(), torch.randn(3, 3, 40, 40)
    together = model(x)
    for i in range(3):
        for a, b in zip(together, model(x[i:i + 1])):
            torch.testing.assert_close(a[i:i + 1], b, rtol=1e-4, atol=1e-5)


def test_copies_and_state_dict_round_trip():
    model, x = HcNet(SMALL).eval(), torch.randn(1, 3, 32, 32)
    expected = model(x)
    other = HcNet(SMALL).eval()
    other.load_state_dict(model.state_dict())
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), other):
        for a, b in zip(expected, copied(x)):
            assert torch.equal(a, b)


def test_caller_lists_are_not_changed_or_kept():
    arch, out_indices = copy.deepcopy(SMALL), [0, 3]
    model = HcNet(arch, out_indices=out_indices)
    out_indices.append(9)
    assert arch == SMALL and model.out_indices == (0, 3)


def test_init_cfg_loads_a_checkpoint(tmp_path):
    source = HcNet(SMALL)
    state = {f'backbone.{k}': v for k, v in source.state_dict().items()}
    torch.save(dict(state_dict=state), tmp_path / 'a.pth')
    model = HcNet(SMALL, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'a.pth'),
                                       prefix='backbone.'))
    model.init_weights()
    for (name, p), q in zip(source.named_parameters(), model.parameters()):
        assert torch.equal(p, q), name


@pytest.mark.parametrize('kwargs, message', [
    (dict(arch='tinny'), r"arch must be one of \['tiny', 'small', 'base'\]"),
    (dict(arch=None), 'arch must be one of'),
    (dict(arch=dict(embed_dims=[8, 8])), r"needs exactly the keys \['depths', 'embed_dims'\]"),
    (dict(arch=dict(SMALL, heads=[1])), "got .*'heads'"),
    (dict(arch=dict(embed_dims=[8, 8], depths=[1])), 'one number per stage each, got 2 and 1'),
    (dict(arch=dict(embed_dims=[], depths=[])), 'got 0 and 0'),
    (dict(arch=dict(embed_dims=[8, 8], depths=[1, 0])), 'positive integers'),
    (dict(arch=dict(embed_dims=[8., 8], depths=[1, 1])), 'positive integers'),
    (dict(arch=dict(embed_dims=[7, 8], depths=[1, 1])), 'must be even'),
    (dict(stencil='circular'), r"stencil must be one of \('anisotropic', 'isotropic'\)"),
    (dict(k='dynamic'), r"k must be one of \('input_dependent', 'learnable'\) or a number >= 0"),
    (dict(k=-0.1), 'a number >= 0, got -0.1'),
    (dict(k=float('nan')), 'got nan'),
    (dict(k=True), 'got True'),
    (dict(out_indices=(4, )), r'from 0 to 3, got \(4,\)'),
    (dict(out_indices=(-1, )), 'from 0 to 3'),
    (dict(out_indices=(2, 1)), 'ascending'),
    (dict(out_indices=(1, 1)), 'ascending'),
    (dict(out_indices=()), 'out_indices must be'),
    (dict(out_indices=3), 'out_indices must be'),
    (dict(frozen_stages=5), 'frozen_stages must be from -1 to 4, got 5'),
    (dict(drop_path_rate=1.), r'drop_path_rate must be in \[0, 1\), got 1.0'),
])
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        HcNet(**{'arch': SMALL, **kwargs})


def test_unknown_keyword():
    with pytest.raises(TypeError, match="unexpected keyword argument 'stencill'"):
        HcNet(SMALL, stencill='isotropic')


@pytest.mark.parametrize('size', [(31, 64), (64, 31), (1, 1)])
def test_too_small_an_image(size):
    with pytest.raises(ValueError, match=f'at least 32, got {size[0]}x{size[1]}: resize or pad'):
        HcNet(SMALL)(torch.zeros(1, 3, *size))


def test_equals_the_published_model(golden):
    data = np.load(golden / 'hcnet_official_small.npz')
    state = {key[len('state.'):]: torch.from_numpy(data[key]) for key in data.files
             if key.startswith('state.')}
    converted = convert_state_dict(state)
    model = HcNet(dict(embed_dims=[16, 32, 48, 64], depths=[1, 2, 2, 1]), stencil='isotropic',
                  out_indices=(3, )).eval()
    model.load_state_dict({key[len('backbone.'):]: value for key, value in converted.items()
                           if key.startswith('backbone.')})

    def check(ours, name):
        torch.testing.assert_close(ours, torch.from_numpy(data[name]), rtol=0, atol=1e-5)

    with torch.no_grad():
        x = model.stem(torch.from_numpy(data['input']))
        check(x, 'stem')
        for i, stage in enumerate(model.stages):
            if i:
                x = model.downsamples[i - 1](x)
            x = model.forward_stage(stage, x)
            check(x, f'stage{i}')
        pooled = model(torch.from_numpy(data['input']))[0].mean(dim=(2, 3))
        check(pooled @ converted['head.fc.weight'].T + converted['head.fc.bias'], 'logits')


@pytest.mark.parametrize('dtype', [torch.bfloat16, *HALF])
@pytest.mark.parametrize('stencil', ['anisotropic', 'isotropic'])
def test_autocast_is_finite_and_close(stencil, dtype):
    model, x = HcNet(SMALL, stencil=stencil), torch.randn(2, 3, 64, 48)
    expected = model(x)
    with torch.autocast('cpu', dtype=dtype):
        outs = model(x)
    for ours, reference in zip(outs, expected):
        assert ours.isfinite().all()
        # The outputs are normalised: their deviation is 1.
        assert (ours.float() - reference).abs().max() < 0.1
    sum(out.float().square().mean() for out in outs).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
