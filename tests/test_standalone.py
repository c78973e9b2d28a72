"""Models by name, and their folder of safetensors and JSON."""

import json

import pytest
import torch
from mmengine.config import Config

import mmhcnet
from mmhcnet import HcNet, VHeat, create_model, from_pretrained, save_pretrained
from mmhcnet.errors import UserError
from mmhcnet.inference.model import build_model

ARCHS = {
    'hcnet': dict(embed_dims=[8, 16], depths=[1, 1]),
    'vheat': dict(embed_dims=[8, 16], depths=[1, 1], post_norm=True, layer_scale=1e-5),
}


def small(family, **options):
    return create_model(family, arch=ARCHS[family], **options)


@pytest.mark.parametrize('cls', [HcNet, VHeat])
@pytest.mark.parametrize('out_indices', [(0, 1, 2, 3), (1, 3), (2,)])
def test_channels_and_strides_are_those_of_the_maps(cls, out_indices):
    arch = dict(embed_dims=[4, 6, 8, 10], depths=[1, 1, 1, 1])
    if cls is VHeat:
        arch.update(post_norm=False, layer_scale=None)
    model = cls(arch, out_indices=out_indices).eval()
    with torch.no_grad():
        maps = model(torch.randn(1, 3, 64, 96))
    assert model.out_channels == tuple(x.shape[1] for x in maps)
    assert model.out_strides == tuple(64 // x.shape[2] for x in maps)
    assert model.out_strides == tuple(96 // x.shape[3] for x in maps)


@pytest.mark.parametrize('name', ['hcnet_t', 'hcnet_s', 'hcnet_b', 'vheat_t', 'vheat_s', 'vheat_b'])
def test_names(name):
    arch = dict(t='tiny', s='small', b='base')[name[-1]]
    cls = dict(hcnet=HcNet, vheat=VHeat)[name[:5]]
    with torch.device('meta'):
        found = create_model(name, features_only=True, drop_path_rate=0.2)
        wanted = cls(arch).state_dict()
        classifier = create_model(name, num_classes=7)
    assert type(found) is cls
    assert {k: v.shape for k, v in found.state_dict().items()} == {
        k: v.shape for k, v in wanted.items()
    }
    assert classifier.head.fc.out_features == 7
    assert classifier.backbone.out_indices == (3,)


@pytest.mark.parametrize('family', ARCHS)
@pytest.mark.parametrize('features_only', [False, True])
def test_a_folder_gives_the_model_back(family, features_only, tmp_path):
    options = dict(features_only=True, out_indices=(0, 1)) if features_only else {}
    model = small(family, num_classes=5, **options).eval()
    save_pretrained(model, str(tmp_path / 'new'))
    assert {path.name for path in (tmp_path / 'new').iterdir()} == {
        'config.json',
        'model.safetensors',
    }
    found = from_pretrained(str(tmp_path / 'new'))
    assert not found.training
    assert found.config == json.loads(json.dumps(model.config))
    x = torch.randn(2, 3, 40, 48)
    with torch.no_grad():
        torch.testing.assert_close(found(x), model(x), rtol=0, atol=0)


@pytest.mark.parametrize('family', ARCHS)
def test_weights_of_a_training_with_mmpretrain(family, tmp_path):
    cfg = Config.fromfile(mmhcnet.config(f'classification/{family}_digits.py'))
    trained = build_model(cfg)
    torch.save(dict(state_dict=trained.state_dict()), tmp_path / 'a.pth')
    arch = dict(cfg.model.backbone.arch)
    img_size = {} if family == 'hcnet' else dict(img_size=cfg.model.backbone.img_size)
    options = dict(arch=arch, checkpoint=str(tmp_path / 'a.pth'), **img_size)
    x = torch.randn(2, 3, 48, 48)
    model = create_model(family, num_classes=10, **options).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(x), trained(x, mode='tensor'))
        # A backbone takes its part, with an output norm for the last stage only.
        features = create_model(family, features_only=True, out_indices=(3,), **options).eval()
        torch.testing.assert_close(features(x)[0], trained.backbone(x)[-1])


def test_mistakes(tmp_path):
    with pytest.raises(UserError, match="no model 'hcnet_tiny'; did you mean 'hcnet_t'.* vheat_b"):
        create_model('hcnet_tiny')
    with pytest.raises(TypeError, match='drop_path'):
        create_model('hcnet_t', drop_path=0.1)
    with pytest.raises(UserError, match="nowhere' has no config.json: give a folder that"):
        from_pretrained(str(tmp_path / 'nowhere'))
    with pytest.raises(UserError, match=r'takes a model of mmhcnet\.create_model'):
        save_pretrained(HcNet(ARCHS['hcnet'], out_indices=(1,)), str(tmp_path))
    folded = small('vheat')
    folded.backbone.switch_to_deploy(32)
    with pytest.raises(UserError, match='save it before'):
        save_pretrained(folded, str(tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda text: text[:-9], 'is not complete JSON'),
        (lambda text: '[1]', 'is not the config of a model'),
        (
            lambda text: text.replace('num_classes', 'classes'),
            'is not the config of a model: .*classes',
        ),
        (lambda text: text.replace('"hcnet"', '"other"'), "no model 'other'"),
        (
            lambda text: text.replace('"num_classes": 1000', '"num_classes": 3'),
            'checkpoint of another model: 2 weights differ',
        ),
    ],
)
def test_files_that_do_not_belong_together(change, message, tmp_path):
    save_pretrained(small('hcnet'), str(tmp_path))
    config = tmp_path / 'config.json'
    json.loads(config.read_text())
    config.write_text(change(config.read_text()))
    with pytest.raises(UserError, match=message):
        from_pretrained(str(tmp_path))


def test_a_damaged_weights_file(tmp_path):
    save_pretrained(small('hcnet'), str(tmp_path))
    weights = tmp_path / 'model.safetensors'
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match='not a checkpoint that torch can read'):
        from_pretrained(str(tmp_path))
