"""Load a config as the tools do: command-line options, work directory, schedule, data check."""
import inspect
import os
from pathlib import Path
from typing import Iterable, Iterator, Optional, Tuple

from mmengine.config import Config, DictAction
from mmengine.registry import OPTIMIZERS
from mmengine.runner import Runner

from .errors import UserError, explain, nearest
from .schedule import fit_schedule, run_length


class Options(DictAction):
    """``--cfg-options KEY=VALUE ...`` of the tools."""

    def __call__(self, parser, namespace, values, option_string=None):
        for value in values:
            if '=' not in value or value.startswith('='):
                parser.error(f"{option_string} takes KEY=VALUE, got '{value}'")
        super().__call__(parser, namespace, values, option_string)


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


def _datasets(dataset: dict, key: str) -> Iterator[Tuple[str, dict]]:
    """The innermost datasets below wrappers such as RepeatDataset and ConcatDataset."""
    if 'dataset' in dataset:
        yield from _datasets(dataset['dataset'], f'{key}.dataset')
    elif 'datasets' in dataset:
        for i, inner in enumerate(dataset['datasets']):
            yield from _datasets(inner, f'{key}.datasets.{i}')
    else:
        yield key, dataset


def check_data(cfg: Config, splits: Iterable[str]) -> None:
    """Make sure that the data folders exist before a model is built.

    Args:
        cfg (Config): The config; its ``data_help`` says how the data is prepared.
        splits (Iterable[str]): Of 'train', 'val', 'test'.

    Raises:
        FileNotFoundError: A folder or annotation file is missing. The message names it, the
            config key that points to it, and ``data_help``.
    """
    help_text = cfg.get('data_help', "README.md, section 'Prepare the data'")

    def require(path: str, key: str) -> None:
        if '://' not in path and not os.path.exists(path):
            raise FileNotFoundError(
                f"the data path '{path}' does not exist. Prepare it (see {help_text}) or point "
                f'to yours with --cfg-options {key}=...')

    for split in splits:
        loader = cfg.get(f'{split}_dataloader')
        if not loader:
            continue
        for key, dataset in _datasets(loader['dataset'], f'{split}_dataloader.dataset'):
            root = dataset.get('data_root') or ''
            if root:
                require(root, f'{key}.data_root')
            if dataset.get('ann_file'):
                require(os.path.join(root, dataset['ann_file']), f'{key}.ann_file')
            prefix = dataset.get('data_prefix')
            for name, folder in (prefix.items() if isinstance(prefix, dict) else ()):
                require(os.path.join(root, folder), f'{key}.data_prefix.{name}')
        evaluators = cfg.get(f'{split}_evaluator') or []
        for evaluator in [evaluators] if isinstance(evaluators, dict) else evaluators:
            if evaluator.get('ann_file'):
                require(evaluator['ann_file'], f'{split}_evaluator.ann_file')
