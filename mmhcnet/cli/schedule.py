"""Fit the learning-rate schedule of a config to the length of the run."""
import copy
import inspect
from typing import List, NamedTuple, Optional

from mmengine.config import ConfigDict
from mmengine.logging import print_log
from mmengine.registry import LOOPS

# Fields of mmengine's parameter schedulers that are points or lengths in time.
_POINTS = ('begin', 'end', 'T_max', 'total_steps', 'step_size')
_LISTS = ('milestones', 'periods')


class RunLength(NamedTuple):
    """Length of a training run: ``number`` epochs (``by_epoch``) or iterations."""
    number: int
    by_epoch: bool

    def __str__(self) -> str:
        return f'{self.number} {"epochs" if self.by_epoch else "iterations"}'


def run_length(train_cfg: dict) -> RunLength:
    """The length that a ``train_cfg`` asks for.

    Raises:
        ValueError: It names neither ``max_epochs`` nor ``max_iters``, or no number for it.
    """
    for key, by_epoch in (('max_epochs', True), ('max_iters', False)):
        number = train_cfg.get(key)
        if number is not None:
            if not isinstance(number, int) or number < 1:
                raise ValueError(f'train_cfg.{key} must be a whole number from 1 up, got '
                                 f'{number!r}')
            return RunLength(number, by_epoch)
    raise ValueError('train_cfg needs max_epochs or max_iters')


def validation_interval(train_cfg: dict) -> int:
    """Epochs or iterations from one validation to the next, by the default of the training loop.

    Args:
        train_cfg (dict): With the ``type`` of a registered loop, or as mmengine reads it without.
    """
    if 'val_interval' in train_cfg:
        return train_cfg['val_interval']
    default = 'EpochBasedTrainLoop' if run_length(train_cfg).by_epoch else 'IterBasedTrainLoop'
    loop = train_cfg.get('type', default)
    loop = LOOPS.get(loop) if isinstance(loop, str) else loop
    interval = inspect.signature(loop).parameters.get('val_interval') if loop else None
    # A loop without that argument, or one that does not exist, which mmengine names itself.
    return interval.default if interval else 1


def scale_schedule(schedulers: List[dict],
                   length: int,
                   per_epoch: float,
                   per_iter: float,
                   to_iters: bool = False) -> List[dict]:
    """Schedulers whose points in time are multiplied, so that the curve keeps its shape.

    Points are rounded to whole steps, and no part of a run of 8 steps or more ends before the
    second. A part that ends up empty is left out, and so is a warm-up of one step: mmengine would
    stay at its start factor for the rest of the run.

    Args:
        schedulers (list[dict]): mmengine scheduler configs. They are not changed.
        length (int): Steps of the new run.
        per_epoch (float): New steps per old epoch, for the schedulers that count epochs.
        per_iter (float): New steps per old iteration, for the others.
        to_iters (bool): The new schedule counts iterations throughout.

    Returns:
        list[dict]: New configs.
    """
    scaled = []
    for scheduler in schedulers:
        new = copy.deepcopy(scheduler)
        by_epoch = new.get('by_epoch', True)
        ratio = per_epoch if by_epoch else per_iter

        def scale(point):
            # An end at infinity is mmengine's default.
            if point in (0, float('inf'), 10**9):
                return point
            return max(round(point * ratio), 2 if length >= 8 else 0)

        for field in _POINTS:
            if new.get(field) is not None:
                new[field] = scale(new[field])
        for field in _LISTS:
            if new.get(field) is not None:
                new[field] = sorted({scale(point) for point in new[field]})
        if to_iters:
            new['by_epoch'] = False
            new.pop('convert_to_iter_based', None)
        steps = float('inf') if new.get('end') is None else new['end'] - new.get('begin', 0)
        if steps >= (2 if 'start_factor' in new or 'factor' in new else 1):
            scaled.append(new)
    return scaled


def fit_schedule(cfg: ConfigDict, planned: Optional[RunLength] = None) -> None:
    """Scale ``cfg.param_scheduler`` in place to the length in ``cfg.train_cfg``.

    mmengine stops with "end should be larger than begin" where a schedule does not fit a
    shortened run.

    Args:
        cfg (ConfigDict): The whole config.
        planned (RunLength, optional): The length that the schedule was written for. By default
            the end of the schedule itself, if that is behind the end of the run.
    """
    schedulers = cfg.get('param_scheduler')
    if not schedulers or not cfg.get('train_cfg'):
        return
    schedulers = [schedulers] if isinstance(schedulers, dict) else list(schedulers)
    length = run_length(cfg.train_cfg)
    if planned is None or planned == length:
        ends = [s['end'] for s in schedulers
                if s.get('end') is not None and s.get('by_epoch', True) == length.by_epoch]
        planned = RunLength(max(ends, default=0), length.by_epoch)
        if planned.number <= length.number:
            return
    if planned.by_epoch != length.by_epoch:
        raise ValueError(f'the schedule was written for {planned} and the run has {length}: set '
                         'param_scheduler too')
    ratio = length.number / planned.number
    cfg.param_scheduler = scale_schedule(schedulers, length.number, ratio, ratio)
    print_log(f'The learning-rate schedule for {planned} is scaled to the run of {length}. '
              'Set param_scheduler yourself to have another one.', logger='current')
