"""A model from a config, and checkpoints of another model."""

import copy

import pytest
import torch

import mmhcnet
from mmhcnet.cli.config import load_config
from mmhcnet.errors import UserError
from mmhcnet.inference.model import build_model, load_model, named_layer

from ..hostile import RAW, archive

CONFIG = mmhcnet.config('classification/hcnet_digits.py')


def test_weights_of_the_checkpoint(tmp_path):
    _, model = load_model(CONFIG, 'none')
    state = {key: value + 1 for key, value in model.state_dict().items()}
    torch.save(dict(state_dict=state), tmp_path / 'a.pth')
    _, loaded = load_model(CONFIG, str(tmp_path / 'a.pth'))
    for key, value in loaded.state_dict().items():
        assert torch.equal(value, state[key])
    assert not loaded.training


@pytest.mark.parametrize(
    'state, message',
    [
        ({'backbone.conv1.weight': torch.zeros(1)}, 'checkpoint of another model than this config'),
        ({'head.fc.bias': torch.zeros(7)}, 'checkpoint of another model than this config'),
    ],
)
def test_checkpoint_of_another_model(tmp_path, state, message):
    torch.save(dict(state_dict=state), tmp_path / 'a.pth')
    with pytest.raises(ValueError, match=message):
        load_model(CONFIG, str(tmp_path / 'a.pth'))


def test_missing_files():
    with pytest.raises(FileNotFoundError, match="'none' stands for untrained weights"):
        load_model(CONFIG, 'nowhere.pth')
    with pytest.raises(FileNotFoundError, match='no config file'):
        load_model('configs/none.py', 'none')


def test_unknown_layer_lists_those_there_are():
    model = torch.nn.ModuleDict(dict(a=torch.nn.Linear(1, 1)))
    assert named_layer(model, 'a', ['a']) is model['a']
    with pytest.raises(ValueError, match="no layer 'b'; choose one of: a, c"):
        named_layer(model, 'b', ['a', 'c'])


@pytest.mark.parametrize('part', ['decode_head', 'auxiliary_head', 'backbone'])
def test_an_init_cfg_of_any_part_is_read_safely(tmp_path, part):
    cfg = load_config(mmhcnet.config('segmentation/upernet_hcnet_digits.py'), None, None)
    archive(tmp_path / 'a.pth', RAW['renamed module'](str(tmp_path / 'made')))
    cfg.model[part].init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'a.pth'))
    model = build_model(cfg)
    # What a training would start from is not read of the backbone.
    if part == 'backbone':
        model.backbone.init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'a.pth'))
    with pytest.raises(UserError, match='is refused'):
        model.init_weights()
    assert not (tmp_path / 'made').exists()


def test_build_model_leaves_the_config_alone(tmp_path):
    cfg = load_config(mmhcnet.config('segmentation/upernet_hcnet_digits.py'), None, None)
    cfg.model.decode_head.norm_cfg = dict(type='SyncBN', requires_grad=True)
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint='nowhere.pth')
    before = copy.deepcopy(cfg.to_dict())
    model = build_model(cfg)
    assert cfg.to_dict() == before
    assert not any(isinstance(module, torch.nn.SyncBatchNorm) for module in model.modules())
    model.init_weights()  # Reads nothing.
    torch.save(
        dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes='ab'))),
        tmp_path / 'a.pth',
    )
    assert model.dataset_meta is None
    assert build_model(cfg, str(tmp_path / 'a.pth')).dataset_meta == dict(classes='ab')
