"""Checkpoints of another family, size or naming are refused, with both sides named."""

import json

import pytest
import torch
from mmengine.runner import load_checkpoint

from mmhcnet import HcNet, VHeat
from mmhcnet.models.backbones.state_dict_family import describe

DIMS = dict(embed_dims=[8, 16, 24, 32], depths=[1, 2, 1, 1])
MODELS = {
    'hcnet': lambda **kwargs: HcNet(**dict(dict(arch=DIMS), **kwargs)),
    'vheat': lambda **kwargs: VHeat(
        **dict(dict(arch=dict(DIMS, post_norm=False, layer_scale=None), img_size=64), **kwargs)
    ),
}


@pytest.mark.parametrize('name', MODELS)
def test_own_weights_load_also_with_fewer_stages(name):
    full, part = MODELS[name](), MODELS[name](out_indices=(0, 1))
    full.load_state_dict(MODELS[name]().state_dict())
    part.load_state_dict(full.state_dict(), strict=False)
    full.load_state_dict(part.state_dict(), strict=False)
    assert torch.equal(full.stem.conv1.weight, part.stem.conv1.weight)


@pytest.mark.parametrize('model, other', [('hcnet', 'vheat'), ('vheat', 'hcnet')])
def test_another_family(model, other):
    with pytest.raises(
        ValueError,
        match=r'of (VHeat|HcNet) with embed_dims \[8, 16, 24, 32\] and '
        r'depths \[1, 2, 1, 1\], the model is (HcNet|VHeat)',
    ):
        MODELS[model]().load_state_dict(MODELS[other]().state_dict())


@pytest.mark.parametrize('change', [dict(depths=[1, 2, 1, 2]), dict(embed_dims=[8, 16, 24, 40])])
def test_another_size(change):
    with pytest.raises(
        ValueError,
        match=r'embed_dims \[8, 16, 24, (32|40)\] and depths '
        r'\[1, 2, 1, [12]\], the model is HcNet.*: give a checkpoint',
    ):
        HcNet(dict(DIMS, **change)).load_state_dict(HcNet(DIMS).state_dict())


def test_through_mmengine_inside_a_model(tmp_path):
    """mmengine's own loading only warns of a mismatch."""
    torch.save(
        {'backbone.' + key: value for key, value in HcNet(DIMS).state_dict().items()},
        tmp_path / 'weights.pth',
    )
    model = torch.nn.ModuleDict(dict(backbone=MODELS['vheat']()))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match='the checkpoint is of HcNet.*the model is VHeat'):
        load_checkpoint(model, str(tmp_path / 'weights.pth'))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    'keys, family',
    [
        (['layers.0.blocks.0.norm2.weight', 'patch_embed.conv1.weight'], 'HcNet'),
        (['layers.0.0.norm1.weight', 'freq_embed.0'], 'vHeat'),
    ],
)
def test_the_authors_names(keys, family):
    state = {key: torch.zeros(8) for key in keys}
    with pytest.raises(ValueError, match=f"the authors' {family} .*official_to_mmhcnet.py"):
        HcNet(DIMS).load_state_dict(state)


@pytest.mark.parametrize(
    'name, dims, depths',
    [
        ('hcnet_tiny', [64, 128, 320, 512], [5, 5, 14, 5]),
        ('hcnet_base', [96, 192, 384, 768], [10, 10, 28, 10]),
        ('vheat_tiny', [96, 192, 384, 768], [2, 2, 6, 2]),
        ('vheat_base', [128, 256, 512, 1024], [2, 2, 18, 2]),
    ],
)
def test_the_authors_layouts_are_recognised(golden, name, dims, depths):
    layout = json.loads((golden / 'official_state_dict_layouts.json').read_text())[name]
    found = describe({key: torch.empty(shape, device='meta') for key, shape in layout.items()})
    assert found.family == "the authors' " + ('HcNet' if 'hcnet' in name else 'vHeat')
    assert (found.embed_dims, found.depths) == (dims, depths)
