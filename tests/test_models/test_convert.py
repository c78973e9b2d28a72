import functools
import json

import pytest
import torch

from mmhcnet import HcNet, VHeat, convert_state_dict


class Layout(dict):
    """Shapes by name."""

    def add(self, name, *shape, bias=True):
        self[f'{name}.weight'] = shape
        if bias:
            self[f'{name}.bias'] = shape[:1]

    def add_stem(self, c, norm):
        for i, (c_in, c_out) in enumerate(((3, c // 2), (c // 2, c)), 1):
            self.add(f'patch_embed.conv{i}', c_out, c_in, 3, 3)
            self.add(f'patch_embed.{norm.format(i)}', c_out)

    def random(self):
        return {name: torch.randn(shape) for name, shape in self.items()}


def official_state_dict(embed_dims, depths, classes=5):
    """Keys and shapes of the published HcNet, written down from its layout."""
    shapes = Layout()
    conv = shapes.add
    shapes.add_stem(embed_dims[0], 'norm{}')
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
    return shapes.random()


@pytest.fixture
def small():
    return official_state_dict([8, 12, 16, 20], [1, 2, 1, 1])


def model_of(embed_dims, depths):
    return HcNet(
        dict(embed_dims=embed_dims, depths=depths),
        stencil='isotropic',
        out_indices=(len(depths) - 1,),
    )


def test_fills_the_whole_model(small):
    converted = convert_state_dict(small)
    head = {key for key in converted if key.startswith('head.')}
    assert head == {'head.fc.weight', 'head.fc.bias'}
    backbone = {key[len('backbone.') :]: converted[key] for key in converted if key not in head}
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


def test_missing_keys_are_listed(small):
    del small['layers.0.blocks.0.norm2.bias']
    with pytest.raises(
        ValueError, match=r"1 keys .*HcNet are missing: layers\.0\.blocks\.0\.norm2"
    ):
        convert_state_dict(small)


@pytest.mark.parametrize(
    'state',
    [{}, {'conv1.weight': torch.zeros(1)}, {'backbone.stages.0.0.norm1.weight': torch.zeros(1)}],
)
def test_another_model_is_refused(state):
    with pytest.raises(ValueError, match="not a state dict of the authors' HcNet or vHeat"):
        convert_state_dict(state)


@pytest.mark.parametrize('arch', ['tiny', 'small', 'base'])
@pytest.mark.parametrize(
    'name, build', [('hcnet', functools.partial(HcNet, stencil='isotropic')), ('vheat', VHeat)]
)
def test_published_layouts(golden, arch, name, build):
    layouts = json.loads((golden / 'official_state_dict_layouts.json').read_text())
    state = {
        key: torch.empty(shape, device='meta') for key, shape in layouts[f'{name}_{arch}'].items()
    }
    converted = convert_state_dict(state)
    # Only HcNet's counts of neighbours carry no weight.
    assert len(converted) == len([key for key in state if not key.endswith('mean_num')])
    with torch.device('meta'):
        model = build(arch, out_indices=(3,))
    ours = {f'backbone.{key}': value.shape for key, value in model.state_dict().items()}
    ours.update(
        {'head.fc.weight': (1000, converted['head.fc.weight'].shape[1]), 'head.fc.bias': (1000,)}
    )
    assert {key: tuple(value.shape) for key, value in converted.items()} == {
        key: tuple(shape) for key, shape in ours.items()
    }


def official_vheat(embed_dims, depths, scaled=False, classes=5):
    """Keys and shapes of the published vHeat, written down from its layout."""
    shapes = Layout()
    both = shapes.add
    shapes.add_stem(embed_dims[0], 'norm{}.1')
    for i, (c, depth) in enumerate(zip(embed_dims, depths)):
        shapes[f'freq_embed.{i}'] = (56 // 2**i, 56 // 2**i, c)
        for j in range(depth):
            block = f'layers.{i}.{j}'
            if scaled:
                shapes[f'{block}.gamma1'] = shapes[f'{block}.gamma2'] = (c,)
            both(f'{block}.norm1', c)
            both(f'{block}.op.dwconv', c, 1, 3, 3)
            both(f'{block}.op.linear', 2 * c, c)
            both(f'{block}.op.out_norm', c)
            both(f'{block}.op.out_linear', c, c)
            both(f'{block}.op.to_k.0', c, c)
            both(f'{block}.norm2', c)
            both(f'{block}.mlp.fc1', 4 * c, c, 1, 1)
            both(f'{block}.mlp.fc2', c, 4 * c, 1, 1)
        if i + 1 < len(depths):
            shapes[f'layers.{i}.{depth}.0.weight'] = (embed_dims[i + 1], c, 3, 3)
            both(f'layers.{i}.{depth}.1', embed_dims[i + 1])
    both('classifier.0', c)
    both('classifier.3', classes, c)
    return shapes.random()


def downstream_vheat(*args, **kwargs):
    """The same inside a detector: output norms instead of the classifier, and heads."""
    state = {
        f'backbone.{key}': value
        for key, value in official_vheat(*args, **kwargs).items()
        if not key.startswith('classifier')
    }
    for i, c in enumerate(args[0]):
        state[f'backbone.outnorm{i}.weight'] = torch.randn(c)
        state[f'backbone.outnorm{i}.bias'] = torch.randn(c)
    state['neck.lateral_convs.0.conv.weight'] = torch.randn(4, args[0][0], 1, 1)
    state['rpn_head.rpn_cls.bias'] = torch.randn(3)
    return state


VHEAT = [8, 12, 16, 20], [1, 2, 1, 1]


@pytest.fixture
def vheat():
    return official_vheat(*VHEAT)


def vheat_of(scaled, **kwargs):
    return VHeat(
        dict(
            embed_dims=VHEAT[0],
            depths=VHEAT[1],
            post_norm=scaled,
            layer_scale=1e-5 if scaled else None,
        ),
        **kwargs,
    )


def backbone_of(converted):
    return {
        key[len('backbone.') :]: value
        for key, value in converted.items()
        if key.startswith('backbone.')
    }


@pytest.mark.parametrize('scaled', [False, True])
def test_vheat_classifier_fills_the_whole_model(scaled):
    state = official_vheat(*VHEAT, scaled=scaled)
    converted = convert_state_dict(state)
    assert len(converted) == len(state)
    assert torch.equal(converted['head.fc.weight'], state['classifier.3.weight'])
    assert torch.equal(converted['backbone.norm3.bias'], state['classifier.0.bias'])
    assert torch.equal(
        converted['backbone.stages.1.1.mlp.fc2.weight'],
        state['layers.1.1.mlp.fc2.weight'][:, :, 0, 0],
    )
    vheat_of(scaled, out_indices=(3,)).load_state_dict(backbone_of(converted))


@pytest.mark.parametrize('scaled', [False, True])
def test_vheat_in_a_detector(scaled):
    state = downstream_vheat(*VHEAT, scaled=scaled)
    converted = convert_state_dict({'state_dict': state, 'meta': {}})
    assert len(converted) == len(state)
    vheat_of(scaled).load_state_dict(backbone_of(converted))
    for key in ('neck.lateral_convs.0.conv.weight', 'rpn_head.rpn_cls.bias'):
        assert torch.equal(converted[key], state[key])
    assert torch.equal(converted['backbone.norm1.weight'], state['backbone.outnorm1.weight'])


def test_training_checkpoint_and_its_moving_average(vheat):
    average = {key: value + 1 for key, value in vheat.items()}
    checkpoint = dict(model=vheat, model_ema=average, epoch=3)
    for ema, expected in ((False, vheat), (True, average)):
        converted = convert_state_dict(checkpoint, ema=ema)
        assert torch.equal(converted['backbone.freq_embed.2'], expected['freq_embed.2'])
    with pytest.raises(ValueError, match="no 'model_ema'"):
        convert_state_dict(dict(model=vheat), ema=True)


@pytest.mark.parametrize(
    'key',
    [
        'freq_embed.1',
        'freq_embed.3',
        'layers.1.0.op.to_k.0.bias',
        'layers.2.1.0.weight',
        'patch_embed.norm1.1.weight',
        'layers.3.0.gamma2',
        'classifier.0.weight',
        'classifier.3.bias',
    ],
)
def test_missing_keys_of_vheat_are_listed(key):
    state = official_vheat(*VHEAT, scaled=True)
    del state[key]
    with pytest.raises(ValueError, match=f'1 keys of .*vHeat are missing: {key}$'):
        convert_state_dict(state)


@pytest.mark.parametrize(
    'key',
    ['layers.0.0.op.attn', 'absolute_pos', 'outnorm7.weight', 'head.weight', 'neck.conv.weight'],
)
def test_unknown_keys_of_vheat_are_listed(vheat, key):
    if key.startswith('outnorm'):
        vheat.update({'outnorm3.weight': torch.zeros(1), 'outnorm3.bias': torch.zeros(1)})
        for part in ('0.weight', '0.bias', '3.weight', '3.bias'):
            del vheat[f'classifier.{part}']
    vheat[key] = torch.zeros(1)
    with pytest.raises(ValueError, match=f"1 keys are not those of the authors' vHeat: {key}$"):
        convert_state_dict(vheat)


def test_unknown_keys_in_the_backbone_of_a_detector_are_listed():
    state = downstream_vheat(*VHEAT)
    state['backbone.extra'] = torch.zeros(1)
    with pytest.raises(ValueError, match=r'1 keys .*: backbone\.extra$'):
        convert_state_dict(state)
