"""Wrong settings and options that end in one line."""

import argparse

import pytest
from mmengine.config import Config

from mmhcnet.cli.config import DICTS, LISTS, NEEDED, OPTIONAL, check_training, load_config
from mmhcnet.cli.distributed import check_launcher
from mmhcnet.cli.errors import explain
from mmhcnet.cli.parser import add_config, add_shape, at_least, make_parser
from mmhcnet.errors import UserError

GOOD = dict(
    train_cfg=dict(max_epochs=1, val_interval=1),
    randomness=dict(seed=0),
    optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1, weight_decay=0)),
    data_preprocessor=dict(mean=[0, 0, 0], std=[1, 1, 1]),
)


@pytest.mark.parametrize(
    'key, value, message',
    [
        ('train_cfg.val_interval', 0, 'must be a whole number of at least 1, got 0; --no-validate'),
        ('train_cfg.val_interval', 'x', "must be a whole number of at least 1, got 'x'"),
        (
            'randomness.seed',
            'abc',
            "randomness.seed must be a whole number of at least 0, got 'abc'",
        ),
        ('randomness.seed', -1, 'at least 0, got -1'),
        ('optim_wrapper.optimizer.lr', 'fast', "lr must be a number of at least 0, got 'fast'"),
        ('optim_wrapper.optimizer.lr', True, 'lr must be a number'),
        ('optim_wrapper.optimizer.lr', float('nan'), 'lr must be a number'),
        ('optim_wrapper.optimizer.weight_decay', [1], 'weight_decay must be a number'),
        (
            'data_preprocessor.std',
            [1, 0, 1],
            'std of data_preprocessor is .1, 0, 1., and images are',
        ),
        ('train_cfg', {}, 'the config has no train_cfg'),
    ],
)
def test_a_setting_of_another_kind(key, value, message):
    cfg = Config(GOOD)
    check_training(cfg)
    parts = key.split('.')
    holder = cfg
    for part in parts[:-1]:
        holder = holder[part]
    holder[parts[-1]] = value
    if key == 'train_cfg':
        cfg.train_cfg = None
    with pytest.raises(UserError, match=message):
        check_training(cfg)


def test_settings_that_are_absent():
    check_training(Config(dict(train_cfg=dict(max_iters=3))))
    check_training(Config(dict(GOOD, randomness=dict(seed=None))))


def test_a_circle_of_configs(tmp_path):
    (tmp_path / 'a.py').write_text("_base_ = 'b.py'\n")
    (tmp_path / 'b.py').write_text("_base_ = 'a.py'\n")
    with pytest.raises(UserError, match='its _base_ leads back to a config that inherits from it'):
        load_config(str(tmp_path / 'a.py'), None, None)


NESTED = dict(
    GOOD,
    model=dict(backbone=dict(type='mmhcnet.HcNet')),
    default_hooks=dict(timer=dict(type='IterTimerHook')),
    **{f'{split}_dataloader': dict(dataset=dict()) for split in ('train', 'val', 'test')},
)


@pytest.mark.parametrize('value', ['x', 5, ['x'], []])
@pytest.mark.parametrize('key', [key.replace('*', 'timer') for key in DICTS])
def test_something_else_in_place_of_a_dict(key, value, tmp_path):
    path = tmp_path / 'config.py'
    Config(NESTED).dump(str(path))
    cure = (
        rf'^{key} is a dict, and is set to .+: set one of its keys, as in {key}\.'
        r'[\w.]+=VALUE$'
    )
    with pytest.raises(UserError, match=cure):
        load_config(str(path), {key: value}, None)
    cfg = Config.fromfile(path)
    cfg.merge_from_dict({key: value})
    cfg.dump(str(path))
    with pytest.raises(UserError, match=cure):
        load_config(str(path), None, None)


MODEL = dict(
    backbone=dict(type='mmhcnet.HcNet'),
    neck=[dict(type='FPN'), dict(type='GlobalAveragePooling')],
    roi_head=dict(
        type='StandardRoIHead',
        bbox_head=dict(type='Shared2FCBBoxHead', loss_cls=dict(type='CrossEntropyLoss')),
    ),
    train_cfg=dict(rcnn=dict(assigner=dict(type='MaxIoUAssigner'), pos_weight=-1)),
)


@pytest.mark.parametrize(
    'key, shown',
    [
        ('model.neck.0', 'type'),
        ('model.roi_head', 'type'),
        ('model.roi_head.bbox_head', 'type'),
        ('model.roi_head.bbox_head.loss_cls', 'type'),
        ('model.train_cfg.rcnn.assigner', 'type'),
        ('train_dataloader.sampler', 'type'),
        ('optim_wrapper.paramwise_cfg', 'norm_decay_mult'),
    ],
)
def test_something_else_in_place_of_a_dict_within(key, shown, tmp_path):
    path = tmp_path / 'config.py'
    cfg = Config(dict(NESTED, model=MODEL))
    cfg.train_dataloader.sampler = dict(type='DefaultSampler')
    cfg.optim_wrapper.paramwise_cfg = dict(norm_decay_mult=0.0)
    cfg.dump(str(path))
    for value in ('abc', 5, True, ['abc'], []):
        with pytest.raises(UserError) as error:
            load_config(str(path), {key: value}, None)
        assert str(error.value) == (
            f'{key} is a dict, and is set to {value!r}: set one of its keys, as in '
            f'{key}.{shown}=VALUE'
        )
    free = [dict(type='Other')]
    if 'neck' not in key:
        # An element of a list stays a dict.
        free += [None, [dict(type='Other')]]
    for value in free:
        load_config(str(path), {key: value}, None)
    # In a file, by its name.
    if shown == 'type' and 'neck' not in key:
        cfg.merge_from_dict({key: 'abc'})
        cfg.dump(str(path))
        with pytest.raises(UserError, match=f"^{key} is a dict, and is set to 'abc'"):
            load_config(str(path), None, None)


@pytest.mark.parametrize('key', ['model.backbone.arch', 'train_dataloader.collate_fn'])
def test_a_name_in_place_of_a_dict_where_either_is_taken(key, tmp_path):
    cfg = Config(NESTED)
    cfg.merge_from_dict({key: dict(type='x')})
    cfg.dump(str(tmp_path / 'config.py'))
    load_config(str(tmp_path / 'config.py'), {key: 'tiny'}, None)


@pytest.mark.parametrize('key', NEEDED)
def test_a_part_that_cannot_be_left_out(key, tmp_path):
    path = tmp_path / 'config.py'
    Config(NESTED).dump(str(path))
    with pytest.raises(UserError, match=f'^{key} is set to None, and nothing can be built without'):
        load_config(str(path), {key: None}, None)


@pytest.mark.parametrize('key', ['train_dataloader', 'optim_wrapper'])
def test_what_cannot_be_left_out_of_a_training(key, tmp_path):
    path = tmp_path / 'config.py'
    Config(NESTED).dump(str(path))
    cfg = load_config(str(path), {key: None}, None)
    with pytest.raises(UserError, match=f'^{key} is set to None, and nothing can be trained'):
        check_training(cfg)


@pytest.mark.parametrize('key', OPTIONAL)
def test_none_is_the_default(key, tmp_path):
    """As Runner.from_cfg has it, which takes a key that is there for a setting."""
    path = tmp_path / 'config.py'
    Config(NESTED).dump(str(path))
    assert key not in load_config(str(path), {key: None}, None)


@pytest.mark.parametrize('key', LISTS)
def test_something_else_in_place_of_dicts_in_a_list(key, tmp_path):
    path = tmp_path / 'config.py'
    Config(dict(NESTED, **{key: []})).dump(str(path))
    for value in ('x', 5, ['x']):
        with pytest.raises(
            UserError,
            match=rf'^{key} is a dict or a list of dicts, .* or '
            rf'{key}\.0\.\w+=VALUE$',
        ):
            load_config(str(path), {key: value}, None)
    for value in (None, []):
        load_config(str(path), {key: value}, None)


def test_a_dict_that_is_left_out(tmp_path):
    path = tmp_path / 'config.py'
    Config(NESTED).dump(str(path))
    for key in ('default_hooks.timer', 'val_cfg', 'val_dataloader', 'visualizer'):
        load_config(str(path), {key: None}, None)


@pytest.mark.parametrize(
    'launcher, message',
    [
        (
            'pytorch',
            'is given by torchrun, which sets RANK: start the run with tools/dist_train.sh',
        ),
        ('slurm', 'is given by srun, which sets SLURM_PROCID'),
        ('mpi', 'is given by mpirun, which sets OMPI_COMM_WORLD_LOCAL_RANK'),
    ],
)
def test_a_launcher_that_was_not_there(launcher, message, monkeypatch):
    for name in ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_LOCAL_RANK'):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=message):
        check_launcher(launcher)
    check_launcher('none')
    monkeypatch.setenv('RANK', '0')
    check_launcher('pytorch')


@pytest.mark.parametrize(
    'options, message',
    [
        (['--cfg-options', 'a'], "takes KEY=VALUE, got 'a'"),
        (
            ['--cfg-options', 'a.b=dict(c=1)'],
            'takes no dict: name each key in it, as in a.b.KEY=VALUE',
        ),
        (['--cfg-options', 'a={"c": 1}'], 'takes no dict: name each key in it, as in a.KEY=VALUE'),
        (['--shape', '0'], '--shape takes pixels, got 0'),
        (['--shape', '32', '-5'], '--shape takes pixels, got -5'),
        (['--interval', '0'], 'must be at least 1, got 0'),
        (['--interval', 'x'], "invalid int value: 'x'"),
    ],
)
def test_wrong_options(options, message, capsys):
    parser = make_parser('')
    add_config(parser)
    add_shape(parser, help='')
    parser.add_argument('--interval', type=at_least(1))
    with pytest.raises(SystemExit):
        parser.parse_args(['config.py', *options])
    assert message in capsys.readouterr().err
    assert parser.parse_args(['a.py', '--interval', '3']) == argparse.Namespace(
        config='a.py', cfg_options=None, shape=None, interval=3
    )


def test_channels_of_the_images():
    error = RuntimeError(
        'Given groups=1, weight of size [32, 3, 3, 3], expected input[2, 1, 48, '
        '48] to have 3 channels, but got 1 channels instead'
    )
    assert 'the images have 1: set model.backbone.in_channels=1, with as many' in explain(error)
