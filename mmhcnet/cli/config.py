"""Load a config as the tools do: command-line options, work directory, schedule, data check."""
import importlib.util
import inspect
import os
from pathlib import Path
from typing import Iterable, Iterator, Optional, Tuple

from mmengine.config import Config
from mmengine.registry import OPTIMIZERS
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
        raise FileNotFoundError(f"{package} carries no config '{path}'; those it has lie below "
                                f"'{found.parents[path.count('/')]}'")
    return str(found)


def _check_options(cfg: Config, options: dict) -> None:
    """Refuse options whose first word is nowhere, because mmengine ignores them silently."""
    known = {*cfg, *inspect.signature(Runner).parameters}
    for key in options:
        first = key.split('.')[0]
        if first not in known:
            raise UserError(f"the config has no key '{first}' for the option '{key}'"
                            f'{nearest(first, known)}')


def load_config(path: str, cfg_options: Optional[dict], work_dir: Optional[str]) -> Config:
    """A config with the options of the command line merged into it.

    The work directory is, in this order, ``work_dir``, the one in the config, or
    ``work_dirs/<name of the config>``. The learning-rate schedule is fitted to ``train_cfg``
    unless an option sets ``param_scheduler``.

    Raises:
        FileNotFoundError: No such config file.
        UserError: It cannot be read, or an option's key is not in it.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no config file '{path}'; configs of this project lie below "
                                'configs/')
    try:
        cfg = Config.fromfile(path)
    except Exception as error:
        # What runs in a config can fail in any way.
        raise UserError(f"cannot read the config '{path}': {explain(error)}") from error
    if cfg.get('train_cfg') and 'type' in cfg.train_cfg:
        # mmpretrain's way to name a loop, in a config that inherits from ours; mmengine takes
        # one of the two.
        cfg.train_cfg.pop('by_epoch', None)
    planned = run_length(cfg.train_cfg) if cfg.get('train_cfg') else None
    options = cfg_options or {}
    _check_options(cfg, options)
    for key, value in options.items():
        try:
            cfg.merge_from_dict({key: value})
        except (KeyError, TypeError) as error:
            raise UserError(f"the option '{key}' does not fit the config: {explain(error)}"
                            ) from error
    if not any(key.split('.')[0] == 'param_scheduler' for key in options):
        fit_schedule(cfg, planned)
    cfg.work_dir = work_dir or cfg.get('work_dir') or os.path.join('work_dirs', Path(path).stem)
    return cfg


def check_training(cfg: Config) -> None:
    """Make sure that a config says how to train.

    Raises:
        UserError: It has no ``train_cfg``, or no optimizer of the name that it gives exists.
    """
    if not cfg.get('train_cfg'):
        raise UserError('the config has no train_cfg: add one with max_epochs or max_iters')
    name = cfg.get('optim_wrapper', {}).get('optimizer', {}).get('type')
    # mmengine looks it up in a way that does not name it.
    if isinstance(name, str) and OPTIMIZERS.get(name) is None:
        raise UserError(f"there is no optimizer of type '{name}'"
                        f'{nearest(name, OPTIMIZERS.module_dict)}')


def innermost_datasets(dataset: dict, key: str) -> Iterator[Tuple[str, dict]]:
    """The innermost datasets below wrappers such as RepeatDataset and ConcatDataset."""
    if 'dataset' in dataset:
        yield from innermost_datasets(dataset['dataset'], f'{key}.dataset')
    elif 'datasets' in dataset:
        for i, inner in enumerate(dataset['datasets']):
            yield from innermost_datasets(inner, f'{key}.datasets.{i}')
    else:
        yield key, dataset


def missing_data(cfg: Config, split: str) -> Iterator[str]:
    """Data folders and annotation files of a split that do not exist.

    Args:
        cfg (Config): The config; its ``data_help`` says how the data is prepared.
        split (str): 'train', 'val' or 'test'.

    Yields:
        str: A sentence with the path, the config key that points to it, and ``data_help``.
    """
    help_text = cfg.get('data_help', "README.md, section 'Prepare the data'")

    def paths() -> Iterator[Tuple[str, str]]:
        loader = cfg.get(f'{split}_dataloader')
        if not loader:
            return
        for key, dataset in innermost_datasets(loader['dataset'], f'{split}_dataloader.dataset'):
            root = dataset.get('data_root') or ''
            if root:
                yield root, f'{key}.data_root'
                if not os.path.exists(root):
                    continue
            if dataset.get('ann_file'):
                yield os.path.join(root, dataset['ann_file']), f'{key}.ann_file'
            prefix = dataset.get('data_prefix')
            for name, folder in (prefix.items() if isinstance(prefix, dict) else ()):
                yield os.path.join(root, folder), f'{key}.data_prefix.{name}'
        evaluators = cfg.get(f'{split}_evaluator') or []
        for evaluator in [evaluators] if isinstance(evaluators, dict) else evaluators:
            if evaluator.get('ann_file'):
                yield evaluator['ann_file'], f'{split}_evaluator.ann_file'

    for path, key in paths():
        if '://' not in path and not os.path.exists(path):
            yield (f"the data path '{path}' does not exist. Prepare it (see {help_text}) or point "
                   f'to yours with --cfg-options {key}=...')


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
