"""What the pictures of heat show is what the layers do."""

import math

import pytest
import torch
from mmengine.registry import MODELS

import mmhcnet
from mmhcnet.inference.model import load_model
from mmhcnet.inference.pictures import read_picture
from mmhcnet.ops import heat_spectral
from mmhcnet.ops.stencil import heat_step_ref
from mmhcnet.visualization import heat as heat_maps

ARCH = dict(embed_dims=[8, 12], depths=[2, 1])
HCNET = mmhcnet.config('classification/hcnet_digits.py')


class Model(torch.nn.Module):
    """A backbone as the tools see it."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone


def test_heat_of_hcnet():
    model = Model(MODELS.build(dict(type='mmhcnet.HcNet', arch=ARCH, out_indices=(1,)))).eval()
    torch.nn.init.uniform_(model.backbone.stages[0][1].conduction.w, 0.1, 0.4)
    heats = heat_maps.record(model, torch.randn(1, 3, 40, 48))
    assert list(heats) == [f'backbone.stages.{i}.conduction' for i in ('0.0', '0.1', '1.0')]
    layer, heat = model.backbone.stages[0][1].conduction, heats['backbone.stages.0.1.conduction']
    assert heat.before.shape == (8, 10, 12)
    k = torch.sigmoid(layer.to_k.weight @ heat.before.mean(dim=(1, 2)))
    torch.testing.assert_close(heat.k, k)
    torch.testing.assert_close(heat.fourier, k * layer.w.sum(dim=1))
    torch.testing.assert_close(
        heat.after, heat_step_ref(heat.before[None], layer.w, k[:, None, None])[0]
    )
    # The field goes on from one layer to the next through the refinement.
    first = heats['backbone.stages.0.0.conduction']
    torch.testing.assert_close(
        model.backbone.stages[0][0].refinement(first.after[None])[0], heat.before
    )
    assert heat_maps.stages(heats) == [list(heats)[:2], list(heats)[2:]]


@pytest.mark.parametrize('k', ['frequency', 'learnable', 0.3])
def test_heat_of_vheat(k):
    arch = dict(ARCH, post_norm=False, layer_scale=None)
    model = Model(MODELS.build(dict(type='mmhcnet.VHeat', arch=arch, k=k, out_indices=(1,)))).eval()
    heats = heat_maps.record(model, torch.randn(1, 3, 40, 48))
    heat = heats['backbone.stages.0.1.conduction']
    layer = model.backbone.stages[0][1].conduction
    embedding = model.backbone.freq_embed.at(0, (10, 12)) if k == 'frequency' else None
    decay = layer.decay_table(10, 12, embedding)
    torch.testing.assert_close(heat.left, decay.mean(dim=2))
    after = heat_spectral(heat.before.permute(1, 2, 0)[None], decay)[0].permute(2, 0, 1)
    torch.testing.assert_close(heat.after, after)
    if k != 'frequency':
        rate = k if k == 0.3 else math.log(2)  # softplus(0)
        torch.testing.assert_close(heat.k, torch.full((8,), rate))


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(layers=['backbone.stages.0.0']), 'choose one of: backbone.stages.0.0.conduction, '),
        (dict(layers=['stages.9']), 'choose one of: backbone.stages.0.0.conduction, '),
        (dict(stage=5), '--stage must be from 1 to 4, got 5'),
        (dict(channel=32), '--channel must be from 0 to 31 in stage 1, got 32'),
    ],
)
def test_wrong_names_and_numbers(photo, tmp_path, options, message):
    _, model = load_model(HCNET, 'none')
    with pytest.raises(ValueError, match=message):
        heat_maps.draw(model, read_picture(str(photo), 64), tmp_path / 'out', **options)
    assert not (tmp_path / 'out').exists()


def test_a_model_without_heat(photo, tmp_path):
    _, model = load_model('mmpretrain::resnet/resnet18_8xb32_in1k.py', 'none')
    with pytest.raises(ValueError, match='ResNet has no heat conduction layer: choose a config'):
        heat_maps.draw(model, read_picture(str(photo), 64), tmp_path / 'out')
