import json

import pytest
import torch

from mmhcnet import HcNet, convert_state_dict


def official_state_dict(embed_dims, depths, classes=5):
    """Keys and shapes of the published HcNet, written down from its layout."""
    c = embed_dims[0]
    shapes = {}

    def conv(name, *shape, bias=True):
        shapes[f'{name}.weight'] = shape
        if bias:
            shapes[f'{name}.bias'] = shape[:1]

    conv('patch_embed.conv1', c // 2, 3, 3, 3)
    conv('patch_embed.norm1', c // 2)
    conv('patch_embed.conv2', c, c // 2, 3, 3)
    conv('patch_embed.norm2', c)
    for i, (c, depth) in enumerate(zip(embed_dims, depths)):
        for j in range(depth):
            block = f'layers.{i}.blocks.{j}'
            shapes[f'{block}.mean_num'] = (1, 1, 8, 8)
            conv(f'{block}.fc_0', c, c, 1, 1, bias=False)
            conv(f'{block}.norm2', c)
            conv(f'{block}.mlp.fc1', 4 * c, c, 1, 1)
            conv(f'{block}.mlp.fc2', c, 4 * c, 1, 1)
            conv(f'{block}.mlp.dwconv', 4 * c, 1, 3, 3, bias=False)
        if i + 1 < len(depths):
            conv(f'layers.{i}.downsample.reduction', embed_dims[i + 1], c, 3, 3, bias=False)
            conv(f'layers.{i}.downsample.norm', embed_dims[i + 1])
    conv('norm', c)
    conv('head', classes, c)
    return {name: torch.randn(shape) for name, shape in shapes.items()}


@pytest.fixture
def small():
    return official_state_dict([8, 12, 16, 20], [1, 2, 1, 1])


def model_of(embed_dims, depths):
    return HcNet(dict(embed_dims=embed_dims, depths=depths), stencil='isotropic',
                 out_indices=(len(depths) - 1, ))


def test_fills_the_whole_model(small):
    converted = convert_state_dict(small)
    head = {key for key in converted if key.startswith('head.')}
    assert head == {'head.fc.weight', 'head.fc.bias'}
    backbone = {key[len('backbone.'):]: converted[key] for key in converted if key not in head}
    model_of([8, 12, 16, 20], [1, 2, 1, 1]).load_state_dict(backbone)


def test_values_arrive_where_they_belong(small):
    converted = convert_state_dict(small)
    fc = 'layers.1.blocks.1.mlp.fc2.weight'
    assert torch.equal(converted['backbone.stages.1.1.refinement.fc2.weight'], small[fc])
    gate = small['layers.2.blocks.0.fc_0.weight'].view(16, 16)
    assert torch.equal(converted['backbone.stages.2.0.conduction.to_k.weight'], gate)
    assert torch.equal(converted['backbone.norm3.weight'], small['norm.weight'])


def test_distributed_prefix_is_removed(small):
    wrapped = {f'module.{key}': value for key, value in small.items()}
    assert convert_state_dict(wrapped).keys() == convert_state_dict(small).keys()


def test_source_is_not_changed(small):
    before = list(small)
    convert_state_dict(small)
    assert list(small) == before


def test_unknown_keys_are_listed(small):
    small['layers.0.blocks.0.attn.weight'] = torch.zeros(1)
    with pytest.raises(ValueError, match=r'1 keys .*: layers\.0\.blocks\.0\.attn\.weight'):
        convert_state_dict(small)


@pytest.mark.parametrize('state', [{}, {'conv1.weight': torch.zeros(1)}])
def test_another_model_is_refused(state):
    with pytest.raises(ValueError, match="not a state dict of the authors' HcNet"):
        convert_state_dict(state)


@pytest.mark.parametrize('arch', ['tiny', 'small', 'base'])
def test_published_layouts(golden, arch):
    layouts = json.loads((golden / 'official_state_dict_layouts.json').read_text())
    state = {key: torch.empty(shape, device='meta')
             for key, shape in layouts[f'hcnet_{arch}'].items()}
    converted = convert_state_dict(state)
    with torch.device('meta'):
        model = HcNet(arch, stencil='isotropic', out_indices=(3, ))
    ours = {f'backbone.{key}': value.shape for key, value in model.state_dict().items()}
    ours.update({'head.fc.weight': (1000, converted['head.fc.weight'].shape[1]),
                 'head.fc.bias': (1000, )})
    assert {key: tuple(value.shape) for key, value in converted.items()} == {
        key: tuple(shape) for key, shape in ours.items()}
