import numpy as np
import pytest
import torch
from torch import nn

from mmhcnet import HcNet, convert_state_dict
from mmhcnet.models.backbones.hcnet import ARCHS

from ..old_torch import HALF

SMALL = dict(embed_dims=[8, 12, 16, 20], depths=[1, 2, 1, 1])


def parameters(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    'arch, expected', [('tiny', 27_903_936), ('small', 61_963_776), ('base', 98_837_760)]
)
def test_parameters_of_the_published_sizes(arch, expected):
    with torch.device('meta'):
        model = HcNet(arch, stencil='isotropic', out_indices=(3,))
    assert parameters(model) == expected
    channels, depths = ARCHS[arch]['embed_dims'], ARCHS[arch]['depths']
    with torch.device('meta'):
        paper = HcNet(arch, out_indices=(3,))
    assert parameters(paper) - expected == 4 * sum(c * d for c, d in zip(channels, depths))


@pytest.mark.parametrize('mlp_ratio', [2.0, 4.0])
@pytest.mark.parametrize('channels', [64, 320, 768])
def test_no_filter_has_as_many_parameters(channels, mlp_ratio):
    arch = dict(embed_dims=[channels], depths=[1])
    counts = [
        parameters(HcNet(arch, mlp_ratio=mlp_ratio, with_filter=f, out_indices=(0,)))
        for f in (True, False)
    ]
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
    model = HcNet('tiny', out_indices=(1,))
    block = model.stages[1][2]
    assert torch.equal(block.conduction.w, torch.full((128, 4), 0.25))
    for weight in (
        block.refinement.fc1.weight,
        block.refinement.dwconv.weight,
        block.conduction.to_k.weight,
    ):
        assert weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not block.refinement.fc1.bias.any()


def test_init_cfg_loads_a_checkpoint(tmp_path):
    source = HcNet(SMALL)
    state = {f'backbone.{k}': v for k, v in source.state_dict().items()}
    torch.save(dict(state_dict=state), tmp_path / 'a.pth')
    model = HcNet(
        SMALL,
        init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'a.pth'), prefix='backbone.'),
    )
    model.init_weights()
    for (name, p), q in zip(source.named_parameters(), model.parameters()):
        assert torch.equal(p, q), name


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(arch=dict(embed_dims=[8, 8])), r"needs exactly the keys \['depths', 'embed_dims'\]"),
        (dict(stencil='circular'), r"stencil must be one of \('anisotropic', 'isotropic'\)"),
        (
            dict(k='dynamic'),
            r"k must be one of \('input_dependent', 'learnable'\) or a number >= 0",
        ),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        HcNet(**{'arch': SMALL, **kwargs})


def test_equals_the_published_model(golden):
    data = np.load(golden / 'hcnet_official_small.npz')
    state = {
        key[len('state.') :]: torch.from_numpy(data[key])
        for key in data.files
        if key.startswith('state.')
    }
    converted = convert_state_dict(state)
    model = HcNet(
        dict(embed_dims=[16, 32, 48, 64], depths=[1, 2, 2, 1]),
        stencil='isotropic',
        out_indices=(3,),
    ).eval()
    model.load_state_dict(
        {
            key[len('backbone.') :]: value
            for key, value in converted.items()
            if key.startswith('backbone.')
        }
    )

    def check(ours, name):
        torch.testing.assert_close(ours, torch.from_numpy(data[name]), rtol=0, atol=1e-5)

    with torch.no_grad():
        x = model.stem(torch.from_numpy(data['input']))
        check(x, 'stem')
        for i, stage in enumerate(model.stages):
            if i:
                x = model.downsamples[i - 1](x)
            x = stage(x)
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
