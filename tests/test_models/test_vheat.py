import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from mmhcnet import VHeat, convert_state_dict

from ..old_torch import HALF, compiles

SMALL = dict(embed_dims=[8, 12, 16, 20], depths=[1, 2, 1, 1], post_norm=False, layer_scale=None)
POST = dict(SMALL, post_norm=True, layer_scale=0.5)


def build(**options):
    return VHeat(**{'arch': SMALL, **options})


def lively(model):
    """With weights of order 1, so that the frequency embedding matters."""
    for name, parameter in model.named_parameters():
        if 'conduction' in name or 'freq_embed' in name:
            nn.init.normal_(parameter, std=0.5)
    return model


def parameters(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    'arch, expected, without',
    [
        ('tiny', 30_853_480, 30_289_000),
        ('small', 52_220_392, 51_655_912),
        ('base', 92_132_328, 91_379_688),
    ],
)
def test_parameters_of_the_published_sizes(arch, expected, without):
    with torch.device('meta'):
        model = VHeat(arch, out_indices=(3,))
        head = nn.Linear(model.norm3.num_channels, 1000)
    assert parameters(model) + parameters(head) == expected
    assert expected - parameters(model.freq_embed) == without


def test_freq_embed_belongs_to_the_stages_that_are_built():
    model = build(out_indices=(0, 1), img_size=200)
    assert [tuple(p.shape) for p in model.freq_embed] == [(50, 50, 8), (25, 25, 12)]
    assert {'freq_embed.0', 'freq_embed.1'} <= set(model.state_dict())
    assert not any('freq_embed' in key for key in build(k='learnable').state_dict())


def test_frequency_embedding_and_switches_matter():
    x = torch.randn(1, 3, 48, 48)
    model = lively(build()).eval()
    before = model(x)[3]
    nn.init.constant_(model.freq_embed[0], 3.0)
    assert not torch.allclose(model(x)[3], before)
    sizes = {
        parameters(build(**o))
        for o in (
            {},
            dict(with_dwconv=False),
            dict(with_gate=False),
            dict(k='learnable'),
            dict(k=0.0),
        )
    }
    assert len(sizes) == 5


@pytest.mark.parametrize('change', ['in place', 'load', 'data', 'to'])
def test_resized_embedding_follows_the_parameter(change):
    model, x = lively(build()).eval(), torch.randn(1, 3, 64, 48)
    with torch.no_grad():
        before = model(x)[3]
        if change == 'in place':
            for p in model.freq_embed:
                p.add_(1)
        elif change == 'load':
            state = {k: v + 1 if 'freq_embed' in k else v for k, v in model.state_dict().items()}
            model.load_state_dict(state)
        elif change == 'data':
            # As mmengine's EMA hook swaps parameters.
            for p in model.freq_embed:
                p.data.copy_(p.data + 1)
        else:
            for p in model.freq_embed:
                p.add_(1)
            model, x = model.double(), x.double()
        fresh = copy.deepcopy(model)
        assert torch.equal(model(x)[3], fresh(x)[3])
        assert not torch.allclose(model(x)[3].float(), before)


def test_copies_and_state_dict_round_trip():
    model, x = lively(build()).eval(), torch.randn(1, 3, 48, 32)
    with torch.no_grad():
        expected = model(x)
        other = build().eval()
        other.load_state_dict(model.state_dict())
        for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), other):
            for a, b in zip(expected, copied(x)):
                assert torch.equal(a, b)


def test_load_resizes_the_frequency_embedding_and_says_so(monkeypatch):
    lines = []
    monkeypatch.setattr(
        'mmhcnet.models.layers.freq_embed.print_log', lambda line, logger: lines.append(line)
    )
    source, model = lively(build(img_size=64)), build(img_size=96)
    state = source.state_dict()
    model.load_state_dict(state)
    assert len(lines) == 4
    assert 'freq_embed.0: resized from 16x16 of the checkpoint to the 24x24' in lines[0]
    assert state['freq_embed.0'].shape == (16, 16, 8)
    torch.testing.assert_close(model.freq_embed[0], source.freq_embed.at(0, (24, 24)))
    # What is made for an image size is not resized at that size.
    x = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x), source.eval()(x))


def test_load_names_what_does_not_fit():
    other = build(arch=dict(SMALL, embed_dims=[8, 12, 16, 24]))
    with pytest.raises(
        ValueError,
        match=r'of VHeat with embed_dims \[8, 12, 16, 24\].* the model '
        r'is VHeat with embed_dims \[8, 12, 16, 20\]',
    ):
        build().load_state_dict(other.state_dict())


@pytest.mark.parametrize(
    'options',
    [
        {},
        dict(arch=POST),
        dict(k='learnable'),
        dict(k=0.3),
        dict(with_gate=False, with_dwconv=False),
    ],
)
@pytest.mark.parametrize('size', [(224, 224), (64, 50)])
def test_deploy(options, size):
    model, x = lively(build(**options)).eval(), torch.randn(1, 3, *size)
    with torch.no_grad():
        expected = model(x)
        model.switch_to_deploy(size)
        for a, b in zip(expected, model(x)):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    assert not [key for key in model.state_dict() if 'freq_embed' in key or 'to_k' in key]
    with pytest.raises(ValueError, match=f'images of {size[0]}x{size[1]}, got 96x64: rebuild'):
        model(torch.randn(1, 3, 96, 64))
    with pytest.raises(ValueError, match='already: rebuild'):
        model.switch_to_deploy(size)
    again = build(**options)
    again.switch_to_deploy(size)
    again.load_state_dict(copy.deepcopy(model).state_dict())
    with torch.no_grad():
        assert torch.equal(again.eval()(x)[3], model(x)[3])


@pytest.mark.parametrize('input_size', [16, (64, 16), (64, 64, 64)])
def test_deploy_size_is_checked(input_size):
    with pytest.raises(ValueError, match='input_size must be H and W of at least 32'):
        build().switch_to_deploy(input_size)


@pytest.mark.parametrize('dtype', [torch.bfloat16, *HALF])
@pytest.mark.parametrize('options', [{}, dict(arch=POST)], ids=['pre', 'post'])
def test_autocast(dtype, options):
    model, x = build(**options).eval(), torch.randn(2, 3, 64, 80)
    with torch.no_grad():
        expected = model(x)
        with torch.autocast('cpu', dtype=dtype):
            outs = model(x)
    for a, b in zip(expected, outs):
        assert b.isfinite().all()
        # The outputs are normed: of order 1.
        assert (a - b.float()).abs().mean() < 0.03


def test_autocast_trains():
    model = build()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        loss = sum(out.float().square().mean() for out in model(torch.randn(2, 3, 64, 80)))
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@compiles
def test_compiles():
    model, x = build().eval(), torch.randn(1, 3, 64, 48)
    with torch.no_grad():
        compiled = torch.compile(model, backend='aot_eager')
        torch.testing.assert_close(compiled(x)[3], model(x)[3], rtol=1e-4, atol=1e-5)
    assert torch.equal(copy.deepcopy(model)(x)[3], model(x)[3])


def test_result_is_independent_of_the_rest_of_the_batch():
    """With weights of order 1, beyond what test_backbones.py does with the initial ones."""
    model, x = lively(build()).eval(), torch.randn(3, 3, 40, 40)
    together = model(x)
    for i in range(3):
        for a, b in zip(together, model(x[i : i + 1])):
            torch.testing.assert_close(a[i : i + 1], b, rtol=1e-4, atol=1e-4)


def test_init_cfg_loads_a_checkpoint_of_another_size(tmp_path):
    source = build(img_size=64)
    state = {f'backbone.{k}': v for k, v in source.state_dict().items()}
    torch.save(dict(state_dict=state), tmp_path / 'a.pth')
    model = build(
        init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'a.pth'), prefix='backbone.')
    )
    model.init_weights()
    for (name, p), q in zip(source.named_parameters(), model.parameters()):
        if 'freq_embed' not in name:
            assert torch.equal(p, q), name
    torch.testing.assert_close(model.freq_embed[1], source.freq_embed.at(1, (28, 28)))


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (
            dict(arch=dict(embed_dims=[8], depths=[1])),
            r"needs exactly the keys \['depths', 'embed_dims', 'layer_scale', 'post_norm'\]",
        ),
        (dict(arch=dict(SMALL, post_norm='yes')), "True or False, got 'yes'"),
        (dict(arch=dict(SMALL, layer_scale=0)), 'None or a number > 0, got 0'),
        (dict(arch=dict(SMALL, layer_scale='small')), "got 'small'"),
        (dict(k='dynamic'), r"k must be one of \('frequency', 'learnable'\) or a number >= 0"),
        (dict(img_size=31), 'img_size must be an integer of at least 32, got 31'),
        (dict(img_size=(224, 224)), 'img_size must be an integer'),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(**kwargs)


@pytest.mark.parametrize(
    'name, post_norm, layer_scale', [('prenorm', False, None), ('postnorm_layerscale', True, 1e-5)]
)
def test_equals_the_published_model(golden, name, post_norm, layer_scale):
    data = np.load(golden / f'vheat_official_small_{name}.npz')
    state = {
        key[len('state.') :]: torch.from_numpy(data[key])
        for key in data.files
        if key.startswith('state.')
    }
    converted = convert_state_dict(state)
    arch = dict(
        embed_dims=[16, 32, 48, 64],
        depths=[1, 1, 2, 1],
        post_norm=post_norm,
        layer_scale=layer_scale,
    )
    model = VHeat(arch, img_size=64, out_indices=(3,)).eval()
    model.load_state_dict(
        {
            key[len('backbone.') :]: value
            for key, value in converted.items()
            if key.startswith('backbone.')
        }
    )

    def check(ours, name):
        torch.testing.assert_close(ours, torch.from_numpy(data[name]), rtol=0, atol=1e-5)

    def logits():
        pooled = model(torch.from_numpy(data['input']))[0].mean(dim=(2, 3))
        return pooled @ converted['head.fc.weight'].T + converted['head.fc.bias']

    with torch.no_grad():
        check(logits(), 'logits')
        x = model.stem(torch.from_numpy(data['downstream_input']))
        for i, stage in enumerate(model.stages):
            if i:
                x = model.downsamples[i - 1](x)
            x = stage(x, *model.stage_inputs(i, x))
            check(x, f'downstream_stage{i}')
        model.switch_to_deploy(64)
        check(logits(), 'logits')
