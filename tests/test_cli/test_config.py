import ast
import inspect
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from mmhcnet.cli.config import (
    MMENGINE_HOOKS,
    RUNNER_KEYS,
    TOOL_KEYS,
    add_tensorboard,
    check_data,
    check_optimizer,
    fuse_optimizer,
    load_config,
    missing_data,
    stock_config,
)
from mmhcnet.cli.distributed import _replace_sync_bn
from mmhcnet.errors import UserError

from ..toy import toy_runner

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def config(tmp_path):
    (tmp_path / 'c.py').write_text(
        "train_cfg = dict(max_epochs=12)\n"
        "param_scheduler = [dict(type='MultiStepLR', end=12, milestones=[8, 11])]\n"
    )
    return str(tmp_path / 'c.py')


def test_options_and_schedule(config):
    cfg = load_config(config, {'train_cfg.max_epochs': 6}, None)
    assert cfg.param_scheduler[0].milestones == [4, 5.5]
    assert cfg.work_dir == 'work_dirs/c'


def test_an_explicit_schedule_is_kept(config):
    cfg = load_config(
        config, {'train_cfg.max_epochs': 6, 'param_scheduler.0.milestones': [2, 3]}, 'elsewhere'
    )
    assert (cfg.param_scheduler[0].milestones, cfg.param_scheduler[0].end) == ([2, 3], 12)
    assert cfg.work_dir == 'elsewhere'


def test_missing_config():
    with pytest.raises(FileNotFoundError, match="no config file 'none.py'"):
        load_config('none.py', None, None)


def loaders(tmp_path):
    (tmp_path / 'images').mkdir()
    (tmp_path / 'a.json').write_text('{}')
    dataset = dict(
        type='CocoDataset',
        data_root=str(tmp_path),
        ann_file='a.json',
        data_prefix=dict(img='images/'),
    )
    return Config(
        dict(
            data_help='the handbook',
            train_dataloader=dict(
                dataset=dict(
                    type='RepeatDataset',
                    dataset=dict(type='ConcatDataset', datasets=[dataset, dict(dataset)]),
                )
            ),
            val_dataloader=dict(dataset=dict(dataset)),
            val_evaluator=[dict(type='CocoMetric', ann_file=str(tmp_path / 'a.json'))],
            test_dataloader=None,
        )
    )


def test_data_that_is_there(tmp_path):
    check_data(loaders(tmp_path), ['train', 'val', 'test'])


@pytest.mark.parametrize(
    'key, value, name',
    [
        ('train_dataloader.dataset.dataset.datasets.1.data_root', 'gone', 'gone'),
        ('train_dataloader.dataset.dataset.datasets.0.ann_file', 'b.json', 'b.json'),
        ('val_dataloader.dataset.data_prefix.img', 'pictures/', 'pictures/'),
    ],
)
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
    model = dict(
        norm_cfg=dict(type='SyncBN'),
        heads=[dict(norm_cfg=dict(type='SyncBN')), 3],
        other=dict(type='LN'),
    )
    _replace_sync_bn(model)
    assert model == dict(
        norm_cfg=dict(type='BN'), heads=[dict(norm_cfg=dict(type='BN')), 3], other=dict(type='LN')
    )


def test_mmpretrains_by_epoch_beside_a_loop_of_ours(tmp_path):
    (tmp_path / 'c.py').write_text(
        "train_cfg = dict(type='mmhcnet.EpochTrainLoop', by_epoch=True, max_epochs=3)"
    )
    assert load_config(str(tmp_path / 'c.py'), None, None).train_cfg == dict(
        type='mmhcnet.EpochTrainLoop', max_epochs=3
    )


@pytest.mark.parametrize(
    'visualizer, kept',
    [
        (None, ['LocalVisBackend']),
        (
            dict(type='A', name='a', vis_backends=[dict(type='WandbVisBackend')]),
            ['WandbVisBackend'],
        ),
        (dict(type='A', vis_backends=[dict(type='TensorboardVisBackend')]), []),
    ],
)
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
    cfg = Config(
        dict(
            train_dataloader=dict(dataset=dict(type='RepeatDataset', dataset=dataset)),
            train_evaluator=dict(ann_file='nowhere/a.json'),
            data_help='the manual',
        )
    )
    found = list(missing_data(cfg, 'train'))
    assert [message.split('--cfg-options ')[1] for message in found] == [
        'train_dataloader.dataset.dataset.ann_file=...',
        'train_dataloader.dataset.dataset.data_prefix.img=...',
        'train_evaluator.ann_file=...',
    ]
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
        (
            'mmpretrain::resnet/none.py',
            "mmpretrain has no config 'resnet/none.py'; its configs are below '.*configs'",
        ),
        ('nothing::a.py', "'nothing::a.py' is a config of nothing, which is not installed"),
    ):
        with pytest.raises(FileNotFoundError, match=message):
            stock_config(name)


def keys_read(source):
    """Keys of a config that a source reads as an attribute ``cfg`` or a name ``cfg``."""

    def is_config(node):
        return (
            isinstance(node, ast.Name)
            and node.id == 'cfg'
            or (isinstance(node, ast.Attribute) and node.attr == 'cfg')
        )

    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and (is_config(node.func.value) and node.func.attr in ('get', 'pop', 'setdefault'))
        ):
            yield getattr(node.args[0], 'value', None)
        elif isinstance(node, ast.Subscript) and is_config(node.value):
            yield getattr(node.slice, 'value', None)
        elif isinstance(node, ast.Attribute) and is_config(node.value):
            yield node.attr


def test_every_key_that_mmengine_reads_is_an_option(config):
    """Fails when a Runner of mmengine reads a key that is no argument of it and not on our list."""
    source = inspect.getsource(inspect.getmodule(Runner))
    # Attributes and methods of a config itself.
    keys = set(keys_read(source)) - {'_cfg_dict', *dir(Config), *dir(dict)}
    assert {'work_dir', 'compile', 'find_unused_parameters', 'sync_bn'} <= keys
    # A model cannot be left out.
    for key in keys - {'model'}:
        load_config(config, {key: None}, None)
    assert set(RUNNER_KEYS) <= keys


@pytest.mark.parametrize(
    'key', ['tta_model.type', 'tta_pipeline', 'runner_type', 'data_help', 'compile.backend']
)
def test_keys_that_tools_and_hooks_read_are_options(config, key):
    assert load_config(config, {key: 'Runner'}, None)


def test_keys_of_another_runner(config):
    options = {'runner_type': 'FlexibleRunner', 'strategy.type': 'DeepSpeedStrategy'}
    assert load_config(config, options, None).strategy.type == 'DeepSpeedStrategy'
    with pytest.raises(UserError, match="no key 'strategy'"):
        load_config(config, {'strategy.type': 'DeepSpeedStrategy'}, None)


def with_optimizer(name, scope='mmpretrain'):
    return Config(dict(default_scope=scope, optim_wrapper=dict(optimizer=dict(type=name))))


def test_an_optimizer_of_the_tasks_package():
    pytest.importorskip('mmpretrain')
    check_optimizer(with_optimizer('Lamb'))
    check_optimizer(with_optimizer('AdamW'))
    check_optimizer(with_optimizer('mmpretrain.Lamb', None))
    with pytest.raises(UserError, match="no optimizer of type 'Lamm'; did you mean 'Lamb'?"):
        check_optimizer(with_optimizer('Lamm'))


def test_other_ways_to_give_an_optimizer():
    check_optimizer(with_optimizer(torch.optim.SGD, None))
    check_optimizer(Config(dict(optim_wrapper=dict(constructor='Two'))))
    with pytest.raises(UserError, match="did you mean 'AdamW'?"):
        check_optimizer(with_optimizer('AdamWW', None))


@pytest.mark.parametrize(
    'optimizer, fused',
    [
        (dict(type='AdamW'), True),
        (dict(type='AdamW', fused=False), False),
        (dict(type='AdamW', foreach=True), None),
        (dict(type='Lamb'), None),
        (dict(type='LBFGS'), None),
        (dict(type=torch.optim.AdamW), None),
    ],
)
def test_on_a_gpu_an_optimizer_is_fused(monkeypatch, optimizer, fused):
    cfg = Config(dict(optim_wrapper=dict(optimizer=optimizer)))
    fuse_optimizer(cfg)
    assert cfg.optim_wrapper.optimizer == optimizer
    monkeypatch.setattr('mmhcnet.cli.config.get_device', lambda: 'cuda')
    fuse_optimizer(cfg)
    assert cfg.optim_wrapper.optimizer.get('fused') == fused
    fuse_optimizer(Config())


@pytest.mark.parametrize(
    'storage',
    [
        dict(backend_args=dict(backend='petrel', path_mapping={'data/': 's3://bucket/'})),
        dict(backend_args=dict(path_mapping={'data/': 's3://bucket/'})),
        dict(file_client_args=dict(backend='petrel')),
    ],
)
@pytest.mark.parametrize('where', ['dataset', 'step', 'inner step', 'metric'])
def test_data_in_another_storage_is_not_looked_for(storage, where, capsys):
    steps = [dict(type='LoadImageFromFile')]
    dataset = dict(
        data_root='data/coco/', ann_file='a.json', data_prefix=dict(img='b/'), pipeline=steps
    )
    metric = dict(ann_file='data/coco/a.json')
    dict(dataset=dataset, step=steps[0], metric=metric).get(where, {}).update(storage)
    if where == 'inner step':
        dataset['pipeline'] = [dict(type='RandomChoice', transforms=[[dict(steps[0], **storage)]])]
    cfg = Config(
        dict(train_dataloader=dict(dataset=dict(dataset=dataset)), train_evaluator=[metric])
    )
    found = [message.split('--cfg-options ')[1] for message in missing_data(cfg, 'train')]
    key = 'train_dataloader.dataset.dataset.'
    assert found == {
        'dataset': ['train_evaluator.ann_file=...'],
        'metric': [f'{key}data_root=...'],
    }.get(where, [f'{key}ann_file=...', 'train_evaluator.ann_file=...'])


@pytest.mark.parametrize(
    'storage',
    [
        dict(backend_args=dict(backend='local')),
        dict(backend_args=None),
        dict(file_client_args=dict(backend='disk')),
    ],
)
def test_data_on_this_machine_by_name(storage):
    cfg = Config(dict(train_dataloader=dict(dataset=dict(data_root='nowhere', **storage))))
    assert len(list(missing_data(cfg, 'train'))) == 1


def test_what_was_not_looked_for_is_said(monkeypatch):
    lines = []
    monkeypatch.setattr('mmhcnet.cli.config.print_log', lambda line, logger: lines.append(line))
    check_data(
        Config(
            dict(
                train_dataloader=dict(dataset=dict(data_root='s3://bucket/coco', ann_file='a.json'))
            )
        ),
        ['train'],
    )
    assert lines == [
        'Not looked for, because they are in another storage: s3://bucket/coco, '
        's3://bucket/coco/a.json'
    ]


def test_any_default_hook_can_be_left_out(config, tmp_path):
    (tmp_path / 'hooks.py').write_text(
        f"_base_ = '{config}'\n"
        "default_hooks = dict(finite=dict(type='mmhcnet.FiniteHook'), preemption=None, timer=None)"
    )
    cfg = load_config(str(tmp_path / 'hooks.py'), {'default_hooks.finite': None}, None)
    assert cfg.default_hooks == dict(timer=None)
    runner = toy_runner(tmp_path / 'run')
    runner._hooks.clear()
    runner.register_default_hooks(cfg.default_hooks)
    assert len(runner.hooks) == len(MMENGINE_HOOKS) - 1


def test_the_hooks_that_mmengine_leaves_out_itself(tmp_path):
    runner = toy_runner(tmp_path)
    runner._hooks.clear()
    runner.register_default_hooks(dict.fromkeys(MMENGINE_HOOKS))
    assert not runner.hooks


def test_every_key_that_our_tools_read_is_an_option():
    sources = [
        path
        for folder in ('mmhcnet', 'tools', 'demo')
        for path in (ROOT / folder).rglob('*.py')
        if '.mim' not in path.parts
    ]
    keys = {key for path in sources for key in keys_read(path.read_text()) if isinstance(key, str)}
    known = {*inspect.signature(Runner).parameters, *RUNNER_KEYS, *TOOL_KEYS}
    assert 'data_help' in keys
    assert keys - {*dir(Config), *dir(dict)} <= known
