"""Load a config as the tools do: command-line options, work directory, schedule, data check."""

import importlib.util
import inspect
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.registry import OPTIMIZERS, RUNNERS
from mmengine.runner import Runner

from mmhcnet.errors import UserError, nearest, require_packages

from .errors import explain
from .schedule import fit_schedule, run_length


def stock_config(name: str) -> str:
    """Path of a config that an OpenMMLab package carries.

    Args:
        name (str): ``'package::path'``, the path below the package's ``configs``, as in
            ``'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py'``. A name without ``::`` is
            taken as a path already.

    Raises:
        FileNotFoundError: The package is not installed, or carries no such config.
    """
    package, separator, path = name.rpartition('::')
    if not separator:
        return path
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise FileNotFoundError(f"'{name}' is a config of {package}, which is not installed")
    found = Path(spec.origin).parent / '.mim' / 'configs' / path
    if not found.is_file():
        raise FileNotFoundError(
            f"{package} has no config '{path}'; its configs are below "
            f"'{found.parents[path.count('/')]}'"
        )
    return str(found)


# What a config may hold besides the arguments of a runner. The first are read by mmengine's Runner
# itself, which tests/test_cli/test_config.py compares with its source; the others by mmengine's
# PrepareTTAHook and by the tools.
RUNNER_KEYS = (
    'activation_checkpointing',
    'compile',
    'efficient_conv_bn_eval',
    'find_unused_parameters',
    'model_wrapper_cfg',
    'sync_bn',
)
TOOL_KEYS = ('data_help', 'fit_schedule', 'runner_type', 'tta_model', 'tta_pipeline')


# mmengine leaves one of these out where a config sets it to None, and fails on any other name.
MMENGINE_HOOKS = (
    'runtime_info',
    'timer',
    'sampler_seed',
    'logger',
    'param_scheduler',
    'checkpoint',
)


SPLITS = ('train', 'val', 'test')


# Settings that are a dict, parents first, each with a key in it for the message; * is any name.
DICTS = {
    'model': 'backbone.arch',
    'model.backbone': 'arch',
    'data_preprocessor': 'mean',
    'train_cfg': 'max_epochs',
    'val_cfg': 'type',
    'test_cfg': 'type',
    'optim_wrapper': 'optimizer.lr',
    'optim_wrapper.optimizer': 'lr',
    **{f'{split}_dataloader': 'batch_size' for split in SPLITS},
    **{f'{split}_dataloader.dataset': 'data_root' for split in SPLITS},
    'default_hooks': 'logger.interval',
    'default_hooks.*': 'type',
    'env_cfg': 'cudnn_benchmark',
    'log_processor': 'window_size',
    'randomness': 'seed',
    'auto_scale_lr': 'base_batch_size',
    'visualizer': 'type',
}
# Of these there may be several, in a list.
LISTS = {
    'param_scheduler': 'end',
    'val_evaluator': 'type',
    'test_evaluator': 'type',
    'custom_hooks': 'type',
}


# Parts of a model and of what trains it, by the names that OpenMMLab's configs have for them.
_PART = re.compile(
    r'(\w+_)?(backbone|neck|head|assigner|sampler|coder|extractor|generator|cfg)'
    r'|roi_layer|loss|loss_(cls|bbox|mask|decode|iou|obj|centerness)'
)
# Nothing can be built without them; without the others mmengine takes its defaults.
NEEDED = ('model', 'model.backbone', *(f'{split}_dataloader.dataset' for split in SPLITS))
OPTIONAL = (
    'auto_scale_lr',
    'custom_hooks',
    'default_hooks',
    'env_cfg',
    'log_level',
    'log_processor',
    'randomness',
)


def _refuse(key: str, value: Any, inner: str) -> None:
    raise UserError(
        f'{key} is a dict, and is set to {value!r}: set one of its keys, as in {key}.{inner}=VALUE'
    )


def _is_no_dict(value: Any) -> bool:
    """Whether a value is neither a dict, nor a list of them, nor left out."""
    if isinstance(value, (list, tuple)):
        return not value or any(map(_is_no_dict, value))
    return isinstance(value, (str, int, float))


def _check_option(cfg: Config, key: str, value: Any) -> None:
    """Refuse an option that would put text, a number or their like in place of a dict."""
    old: Any = cfg
    for name in key.split('.'):
        if isinstance(old, (list, tuple)) and name.isdigit() and int(name) < len(old):
            old = old[int(name)]
        else:
            old = old.get(name) if isinstance(old, dict) or old is cfg else None
    # Other arguments, as arch and collate_fn, take a dict or a name.
    part = next((name for name in reversed(key.split('.')) if not name.isdigit()), '')
    known = key in DICTS or _PART.fullmatch(part)
    if known and isinstance(old, dict) and old and _is_no_dict(value):
        _refuse(key, value, DICTS.get(key) or ('type' if 'type' in old else next(iter(old))))


def _check_parts(settings: Any, key: str) -> None:
    """Refuse text as a part of a model, an optimizer or a data loader, however deep inside."""
    for name, value in settings.items() if isinstance(settings, dict) else ():
        if isinstance(value, str) and _PART.fullmatch(name):
            _refuse(f'{key}.{name}', value, 'type')
        _check_parts(value, f'{key}.{name}')
    for i, value in enumerate(settings) if isinstance(settings, (list, tuple)) else ():
        _check_parts(value, f'{key}.{i}')


def _check_dicts(cfg: Config) -> None:
    """Refuse text, a number or a list where a dict is read, before anything reads it.

    Raises:
        UserError: Names the setting, and how one of its keys is set.
    """
    for key, inner in DICTS.items():
        holder, _, last = key.rpartition('.')
        settings = cfg.get(holder) if holder else cfg
        for name in list(settings or ()) if last == '*' else [last]:
            value = (settings or {}).get(name)
            at = f'{holder}.{name}' if holder else name
            if isinstance(value, (str, int, float, list, tuple)):
                _refuse(at, value, inner)
            if at in NEEDED and value is None and name in (settings or {}):
                raise UserError(
                    f'{at} is set to None, and nothing can be built without it: leave that out, '
                    f'or set one of its keys, as in {at}.{inner}=VALUE'
                )
    for key in ('model', 'optim_wrapper', *(f'{split}_dataloader' for split in SPLITS)):
        _check_parts(cfg.get(key), key)
    for key, inner in LISTS.items():
        value = cfg.get(key)
        items = value if isinstance(value, (list, tuple)) else [value]
        if any(isinstance(item, (str, int, float, list, tuple)) for item in items):
            raise UserError(
                f'{key} is a dict or a list of dicts, and is set to {value!r}: set one '
                f'of its keys, as in {key}.{inner}=VALUE or {key}.0.{inner}=VALUE'
            )


def _leave_out(cfg: Config) -> None:
    """Take what is set to None out of a config, where mmengine leaves out only what is not there.

    Those are settings with a default, and hooks of ours and of the task's package.
    """
    for key in OPTIONAL:
        if key in cfg and cfg[key] is None:
            cfg.pop(key)
    hooks = cfg.get('default_hooks') or {}
    for name in [name for name, hook in hooks.items() if hook is None]:
        if name not in MMENGINE_HOOKS:
            del hooks[name]


def _check_options(cfg: Config, options: dict) -> None:
    """Refuse options whose first word is nowhere, because mmengine ignores them silently."""
    runner = RUNNERS.get(options.get('runner_type', cfg.get('runner_type', 'Runner'))) or Runner
    known = {*cfg, *inspect.signature(runner).parameters, *RUNNER_KEYS, *TOOL_KEYS}
    for key in options:
        first = key.split('.')[0]
        if first not in known:
            raise UserError(
                f"the config has no key '{first}' for the option '{key}'{nearest(first, known)}"
            )


def load_config(path: str, cfg_options: dict | None, work_dir: str | None) -> Config:
    """A config with the options of the command line merged into it.

    The work directory is, in this order, ``work_dir``, the one in the config, or
    ``work_dirs/<name of the config>``. A default hook that is set to None is left out. The
    learning-rate schedule is fitted to ``train_cfg`` unless an option sets ``param_scheduler``.

    Raises:
        FileNotFoundError: No such config file.
        UserError: It cannot be read, an option's key is not in it, or it has another value where
            a dict is read.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"no config file '{path}'; configs of this project are below configs/"
        )
    try:
        cfg = Config.fromfile(path)
    except RecursionError as error:
        raise UserError(
            f"cannot read the config '{path}': its _base_ leads back to a config that "
            'inherits from it'
        ) from error
    except Exception as error:
        # What runs in a config can fail in any way.
        raise UserError(f"cannot read the config '{path}': {explain(error)}") from error
    _check_dicts(cfg)
    if cfg.get('train_cfg') and 'type' in cfg.train_cfg:
        # mmpretrain's way to name a loop, in a config that inherits from ours; mmengine takes
        # one of the two.
        cfg.train_cfg.pop('by_epoch', None)
    planned = run_length(cfg.train_cfg) if cfg.get('train_cfg') else None
    options = cfg_options or {}
    _check_options(cfg, options)
    for key, value in options.items():
        _check_option(cfg, key, value)
        try:
            cfg.merge_from_dict({key: value})
        except (AttributeError, KeyError, TypeError) as error:
            raise UserError(
                f"the option '{key}' does not fit the config: {explain(error)}"
            ) from error
    _check_dicts(cfg)
    _leave_out(cfg)
    if not any(key.split('.')[0] == 'param_scheduler' for key in options):
        fit_schedule(cfg, planned)
    cfg.work_dir = work_dir or cfg.get('work_dir') or os.path.join('work_dirs', Path(path).stem)
    return cfg


def check_training(cfg: Config) -> None:
    """Make sure that a config says how to train, in numbers where numbers are meant.

    Raises:
        UserError: It lacks what a training needs, or a setting is of another kind.
    """
    if not cfg.get('train_cfg'):
        raise UserError('the config has no train_cfg: add one with max_epochs or max_iters')
    for key in ('model', 'train_dataloader', 'optim_wrapper'):
        if key in cfg and cfg[key] is None:
            raise UserError(f'{key} is set to None, and nothing can be trained without it')
    for key, kind, least in (
        ('train_cfg.val_interval', int, 1),
        ('randomness.seed', int, 0),
        ('optim_wrapper.optimizer.lr', (int, float), 0),
        ('optim_wrapper.optimizer.weight_decay', (int, float), 0),
    ):
        value = cfg
        for part in key.split('.'):
            value = (value or {}).get(part)
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, kind) or not value >= least
        ):
            what = 'a whole number' if kind is int else 'a number'
            hint = '; --no-validate leaves the validation out' if 'val_interval' in key else ''
            raise UserError(f'{key} must be {what} of at least {least}, got {value!r}{hint}')
    settings = cfg.get('model', {}).get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    std = settings.get('std')
    if isinstance(std, (list, tuple)) and 0 in std:
        raise UserError(
            f'std of data_preprocessor is {list(std)}, and images are divided by it: '
            'write the standard deviation of the pixels'
        )


def check_optimizer(cfg: Config) -> None:
    """Make sure that the optimizer of a config exists, once the task's package is imported.

    mmengine looks it up in a way that does not name it.

    Raises:
        UserError: No optimizer of the name that the config gives exists.
    """
    name = ((cfg.get('optim_wrapper') or {}).get('optimizer') or {}).get('type')
    if not isinstance(name, str):
        return
    with OPTIMIZERS.switch_scope_and_registry(cfg.get('default_scope')) as registry:
        if registry.get(name) is None:
            known = {*registry.module_dict, *OPTIMIZERS.module_dict}
            raise UserError(f"there is no optimizer of type '{name}'{nearest(name, known)}")


def fuse_optimizer(cfg: Config) -> None:
    """Let an optimizer of torch run as one kernel on a GPU, unless the config says how it runs.

    torch does not do it by default. It is faster, and can leave a step out without the host
    (:class:`mmhcnet.training.finite_steps.FiniteHook`).

    Args:
        cfg (Config): Changed in place: ``optim_wrapper.optimizer.fused``.
    """
    optimizer = (cfg.get('optim_wrapper') or {}).get('optimizer') or {}
    cls = getattr(torch.optim, str(optimizer.get('type')), None)
    ways = ('fused', 'foreach', 'capturable', 'differentiable')
    if get_device() != 'cuda' or cls is None or any(way in optimizer for way in ways):
        return
    if 'fused' in inspect.signature(cls).parameters:
        optimizer.fused = True


# Constructors of mmdet, mmseg and mmpretrain, and their names for the rate of decay.
_LAYER_WISE = {
    'LearningRateDecayOptimizerConstructor': 'decay_rate',
    'LearningRateDecayOptimWrapperConstructor': 'layer_decay_rate',
}


def use_constructor(cfg: Config) -> None:
    """Let our constructors make the optimizer of our backbones, unless the config names another.

    mmengine's default constructor lets stencil weights and frequency embeddings decay. Those of
    mmdet and mmseg for layer-wise decay know ConvNeXt only, and mmpretrain's is as the default.

    Args:
        cfg (Config): Changed in place.
    """
    wrapper, backbone = cfg.get('optim_wrapper') or {}, cfg.get('model', {}).get('backbone') or {}
    if 'optimizer' not in wrapper or not str(backbone.get('type')).startswith('mmhcnet.'):
        return
    given = wrapper.get('constructor')
    scope, _, name = str(given).rpartition('.')
    if given is None:
        wrapper.constructor = 'mmhcnet.OptimWrapperConstructor'
    elif scope != 'mmhcnet' and name in _LAYER_WISE:
        wrapper.constructor = 'mmhcnet.LearningRateDecayOptimizerConstructor'
        paramwise = wrapper.get('paramwise_cfg') or {}
        if _LAYER_WISE[name] in paramwise:
            paramwise['decay_rate'] = paramwise.pop(_LAYER_WISE[name])
    else:
        return
    print_log(
        f'optim_wrapper.constructor is {wrapper.constructor}: '
        f'{given or "the default of mmengine"} does not know the backbones of mmhcnet.',
        logger='current',
    )


def as_list(value: Any) -> list:
    """A config's value that may be one dict, a list of them, or missing."""
    return [value] if isinstance(value, dict) else list(value or [])


def is_type(settings: dict, name: str) -> bool:
    """Whether a config's ``type`` is a class of this name, of whatever package."""
    found = settings.get('type')
    return (
        found.split('.')[-1] if isinstance(found, str) else getattr(found, '__name__', '')
    ) == name


def innermost_datasets(dataset: dict, key: str) -> Iterator[tuple[str, dict]]:
    """The innermost datasets below wrappers such as RepeatDataset and ConcatDataset."""
    if 'dataset' in dataset:
        yield from innermost_datasets(dataset['dataset'], f'{key}.dataset')
    elif 'datasets' in dataset:
        for i, inner in enumerate(dataset['datasets']):
            yield from innermost_datasets(inner, f'{key}.datasets.{i}')
    else:
        yield key, dataset


def _is_local(*holders: dict) -> bool:
    """Whether data sets, loading steps or metrics read files of this machine, by their configs."""
    for holder in holders:
        storage = holder.get('backend_args') or holder.get('file_client_args')
        # 'disk' is the name of it in mmengine's older file client.
        if storage and storage.get('backend') not in ('local', 'disk'):
            return False
    return True


def _loading_steps(pipeline: Any) -> Iterator[dict]:
    for step in pipeline or ():
        if isinstance(step, dict):
            yield step
            yield from _loading_steps(step.get('transforms'))
        elif isinstance(step, (list, tuple)):
            yield from _loading_steps(step)


def data_paths(cfg: Config, split: str) -> Iterator[tuple[str, str, bool]]:
    """Data folders and annotation files of a split.

    Nothing is given of a data set below a root that is missing here.

    Args:
        cfg (Config): The config.
        split (str): 'train', 'val' or 'test'.

    Yields:
        tuple: The path, the config key that points to it, and whether it is on this machine, as
        far as ``backend_args`` and the path itself tell.
    """
    loader = cfg.get(f'{split}_dataloader')
    if not loader:
        return
    for key, dataset in innermost_datasets(loader['dataset'], f'{split}_dataloader.dataset'):
        listed = _is_local(dataset)
        local = listed and _is_local(*_loading_steps(dataset.get('pipeline')))
        root = dataset.get('data_root') or ''
        if root:
            yield root, f'{key}.data_root', local and '://' not in root
            if local and '://' not in root and not os.path.exists(root):
                continue
        if dataset.get('ann_file'):
            path = os.path.join(root, dataset['ann_file'])
            yield path, f'{key}.ann_file', listed and '://' not in path
        prefix = dataset.get('data_prefix')
        for name, folder in prefix.items() if isinstance(prefix, dict) else ():
            path = os.path.join(root, folder)
            yield path, f'{key}.data_prefix.{name}', local and '://' not in path
    evaluators = cfg.get(f'{split}_evaluator') or []
    for evaluator in as_list(evaluators):
        path = evaluator.get('ann_file')
        if path:
            yield path, f'{split}_evaluator.ann_file', _is_local(evaluator) and '://' not in path


def missing_data(cfg: Config, split: str) -> Iterator[str]:
    """Data folders and annotation files of a split that do not exist on this machine.

    Those in another storage are not looked for.

    Args:
        cfg (Config): The config; its ``data_help`` says how the data is prepared.
        split (str): 'train', 'val' or 'test'.

    Yields:
        str: A sentence with the path, the config key that points to it, and ``data_help``.
    """
    help_text = cfg.get('data_help', 'docs/data.md')
    for path, key, local in data_paths(cfg, split):
        if local and not os.path.exists(path):
            yield (
                f"the data path '{path}' does not exist. Prepare it (see {help_text}) or point "
                f'to yours with --cfg-options {key}=...'
            )


def check_data(cfg: Config, splits: Iterable[str]) -> None:
    """Make sure that the data folders exist before a model is built.

    Args:
        cfg (Config): The config.
        splits (Iterable[str]): Of 'train', 'val', 'test'.

    Raises:
        FileNotFoundError: The first message of :func:`missing_data`.
    """
    for split in splits:
        for message in missing_data(cfg, split):
            raise FileNotFoundError(message)
        elsewhere = [path for path, _, local in data_paths(cfg, split) if not local]
        if elsewhere:
            print_log(
                f'Not looked for, because they are in another storage: '
                f'{", ".join(dict.fromkeys(elsewhere))}',
                logger='current',
            )


def add_tensorboard(cfg: Config) -> None:
    """Let the visualizer of a config write to TensorBoard besides what it does already.

    Args:
        cfg (Config): Changed in place.

    Raises:
        ModuleNotFoundError: The package tensorboard is not installed.
    """
    require_packages('tensorboard')
    visualizer = cfg.get('visualizer') or dict(type='Visualizer')
    backends = list(visualizer.get('vis_backends') or [dict(type='LocalVisBackend')])
    if not any('TensorboardVisBackend' in str(backend['type']) for backend in backends):
        backends.append(dict(type='TensorboardVisBackend'))
    cfg.visualizer = dict(visualizer, vis_backends=backends)
