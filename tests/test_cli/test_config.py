from pathlib import Path

import pytest
from mmengine.config import Config

from mmhcnet.cli.config import add_tensorboard, check_data, load_config, missing_data, stock_config
from mmhcnet.cli.distributed import _replace_sync_bn
from mmhcnet.cli.trial import FirstSamples


@pytest.fixture
def config(tmp_path):
    (tmp_path / 'c.py').write_text(
        "train_cfg = dict(max_epochs=12)\n"
        "param_scheduler = [dict(type='MultiStepLR', end=12, milestones=[8, 11])]\n")
    return str(tmp_path / 'c.py')


def test_options_and_schedule(config):
    cfg = load_config(config, {'train_cfg.max_epochs': 6}, None)
    assert cfg.param_scheduler[0].milestones == [4, 6]
    assert cfg.work_dir == 'work_dirs/c'


def test_an_explicit_schedule_is_kept(config):
    cfg = load_config(config, {'train_cfg.max_epochs': 6,
                               'param_scheduler.0.milestones': [2, 3]}, 'elsewhere')
    assert (cfg.param_scheduler[0].milestones, cfg.param_scheduler[0].end) == ([2, 3], 12)
    assert cfg.work_dir == 'elsewhere'


def test_missing_config():
    with pytest.raises(FileNotFoundError, match="no config file 'none.py'"):
        load_config('none.py', None, None)


def loaders(tmp_path):
    (tmp_path / 'images').mkdir()
    (tmp_path / 'a.json').write_text('{}')
    dataset = dict(type='CocoDataset', data_root=str(tmp_path), ann_file='a.json',
                   data_prefix=dict(img='images/'))
    return Config(dict(
        data_help='the handbook',
        train_dataloader=dict(dataset=dict(type='RepeatDataset', dataset=dict(
            type='ConcatDataset', datasets=[dataset, dict(dataset)]))),
        val_dataloader=dict(dataset=dict(dataset)),
        val_evaluator=[dict(type='CocoMetric', ann_file=str(tmp_path / 'a.json'))],
        test_dataloader=None))


def test_data_that_is_there(tmp_path):
    check_data(loaders(tmp_path), ['train', 'val', 'test'])


@pytest.mark.parametrize('key, value, name', [
    ('train_dataloader.dataset.dataset.datasets.1.data_root', 'gone', 'gone'),
    ('train_dataloader.dataset.dataset.datasets.0.ann_file', 'b.json', 'b.json'),
    ('val_dataloader.dataset.data_prefix.img', 'pictures/', 'pictures/'),
])
def test_missing_data_names_path_key_and_help(tmp_path, key, value, name):
    cfg = loaders(tmp_path)
    cfg.merge_from_dict({key: value})
    with pytest.raises(FileNotFoundError) as caught:
        check_data(cfg, ['train', 'val'])
    text = str(caught.value)
    assert name in text and 'see the handbook' in text and f'--cfg-options {key}=' in text


def test_missing_annotations_of_the_metric(tmp_path):
    cfg = loaders(tmp_path)
    cfg.val_evaluator[0].ann_file = 'gone.json'
    with pytest.raises(FileNotFoundError, match='val_evaluator.ann_file'):
        check_data(cfg, ['val'])


def test_sync_bn_becomes_bn_everywhere():
    model = dict(norm_cfg=dict(type='SyncBN'), heads=[dict(norm_cfg=dict(type='SyncBN')), 3],
                 other=dict(type='LN'))
    _replace_sync_bn(model)
    assert model == dict(norm_cfg=dict(type='BN'), heads=[dict(norm_cfg=dict(type='BN')), 3],
                         other=dict(type='LN'))


@pytest.mark.parametrize('number, expected', [(3, [0, 1, 2]), (100, [0, 1, 2, 3, 4])])
def test_first_samples(number, expected):
    sampler = FirstSamples(range(5), number)
    assert list(sampler) == expected and len(sampler) == len(expected)


def test_mmpretrains_by_epoch_beside_a_loop_of_ours(tmp_path):
    (tmp_path / 'c.py').write_text(
        "train_cfg = dict(type='mmhcnet.EpochTrainLoop', by_epoch=True, max_epochs=3)")
    assert load_config(str(tmp_path / 'c.py'), None, None).train_cfg == dict(
        type='mmhcnet.EpochTrainLoop', max_epochs=3)


@pytest.mark.parametrize('visualizer, kept', [
    (None, ['LocalVisBackend']),
    (dict(type='A', name='a', vis_backends=[dict(type='WandbVisBackend')]), ['WandbVisBackend']),
    (dict(type='A', vis_backends=[dict(type='TensorboardVisBackend')]), [])])
def test_tensorboard_joins_the_other_backends(visualizer, kept, monkeypatch):
    monkeypatch.setattr('mmhcnet.cli.config.require_packages', lambda *names: None)
    cfg = Config(dict(visualizer=visualizer) if visualizer else {})
    add_tensorboard(cfg)
    types = [backend.type for backend in cfg.visualizer.vis_backends]
    assert types == [*kept, 'TensorboardVisBackend']
    assert cfg.visualizer.type == (visualizer or dict(type='Visualizer'))['type']
    assert cfg.visualizer.get('name') == (visualizer or {}).get('name')


def test_tensorboard_is_not_installed(monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(ModuleNotFoundError, match='pip install tensorboard$'):
        add_tensorboard(Config())


def test_all_that_is_missing(tmp_path):
    dataset = dict(data_root=str(tmp_path), ann_file='a.json', data_prefix=dict(img='images'))
    cfg = Config(dict(train_dataloader=dict(dataset=dict(type='RepeatDataset', dataset=dataset)),
                      train_evaluator=dict(ann_file='nowhere/a.json'), data_help='the manual'))
    found = list(missing_data(cfg, 'train'))
    assert [message.split('--cfg-options ')[1] for message in found] == [
        'train_dataloader.dataset.dataset.ann_file=...',
        'train_dataloader.dataset.dataset.data_prefix.img=...', 'train_evaluator.ann_file=...']
    assert all('see the manual' in message for message in found)
    (tmp_path / 'images').mkdir()
    assert len(list(missing_data(cfg, 'train'))) == 2
    assert list(missing_data(cfg, 'val')) == []


def test_nothing_below_a_missing_root_is_named():
    dataset = dict(data_root='nowhere', ann_file='a.json')
    cfg = Config(dict(train_dataloader=dict(dataset=dataset)))
    assert len(list(missing_data(cfg, 'train'))) == 1


def test_configs_that_openmmlab_packages_carry():
    assert stock_config('configs/a.py') == 'configs/a.py'
    path = stock_config('mmpretrain::resnet/resnet50_8xb32_in1k.py')
    assert path.endswith('resnet50_8xb32_in1k.py') and Path(path).is_file()
    for name, message in (
            ('mmpretrain::resnet/none.py', "mmpretrain carries no config 'resnet/none.py'; those "
             "it has lie below '.*configs'"),
            ('nothing::a.py', "'nothing::a.py' is a config of nothing, which is not installed")):
        with pytest.raises(FileNotFoundError, match=message):
            stock_config(name)
