"""Fit the learning-rate schedule of a config to the length of the run."""

import copy
import inspect
import itertools
from typing import NamedTuple

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import LOOPS

# Fields of mmengine's parameter schedulers that are points or lengths in time.
_POINTS = ('begin', 'end', 'T_max', 'total_steps', 'step_size')
_LISTS = ('milestones',)
# An end at infinity is mmengine's default.
_ENDLESS = (float('inf'), 10**9)
# Those that mmhcnet.training.schedulers has for parts of an epoch.
_FRACTIONAL = tuple(
    f'{shape}{of}'
    for shape in (
        'Constant',
        'CosineAnnealing',
        'CosineRestart',
        'Exponential',
        'Linear',
        'MultiStep',
        'Poly',
    )
    for of in ('LR', 'Momentum')
) + ('OneCycleLR',)
_EXPONENTIAL = ('ExponentialLR', 'ExponentialMomentum')


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
                raise ValueError(
                    f'train_cfg.{key} must be a whole number from 1 up, got {number!r}'
                )
            return RunLength(number, by_epoch)
    raise ValueError('train_cfg needs max_epochs or max_iters')


def validation_interval(cfg: Config) -> int:
    """Epochs or iterations from one validation to the next, by the default of the training loop.

    Args:
        cfg (Config): The whole config; its ``train_cfg`` has the ``type`` of a registered loop,
            or says by ``max_epochs`` or ``max_iters`` which of mmengine's it means.
    """
    train_cfg = cfg.train_cfg
    if 'val_interval' in train_cfg:
        return train_cfg.val_interval
    default = 'EpochBasedTrainLoop' if run_length(train_cfg).by_epoch else 'IterBasedTrainLoop'
    loop = train_cfg.get('type', default)
    if isinstance(loop, str):
        with LOOPS.switch_scope_and_registry(cfg.get('default_scope')) as registry:
            loop = registry.get(loop)
    interval = inspect.signature(loop).parameters.get('val_interval') if loop else None
    # A loop without that argument, or one that does not exist, which mmengine names itself.
    return interval.default if interval else 1


def written_for(schedulers: list[dict]) -> RunLength | None:
    """The length that a schedule was written for, or None if it does not say.

    Its end is that of the last part. Parts that count iterations next to others that count epochs
    are warm-ups, and say nothing.
    """
    by_epoch = any(scheduler.get('by_epoch', True) for scheduler in schedulers)
    ends = []
    for scheduler in schedulers:
        if scheduler.get('by_epoch', True) == by_epoch:
            length = scheduler.get('T_max')
            end = scheduler.get(
                'end', None if length is None else scheduler.get('begin', 0) + length
            )
            # Without an end a part lasts as long as the run.
            if end in (None, *_ENDLESS):
                return None
            ends.append(end)
    return RunLength(max(ends), by_epoch) if ends else None


def _whole(number: float) -> bool:
    return abs(number - round(number)) < 1e-6


def _scale_part(scheduler: dict, ratio: float, least: int) -> dict:
    """One scheduler with its points multiplied, those above 0 not to less than ``least``."""
    new = copy.deepcopy(scheduler)
    exponential = str(new['type']).split('.')[-1] in _EXPONENTIAL
    if exponential and new.get('gamma') is not None:
        # As many times its factor in the whole run as before.
        new['gamma'] **= 1 / ratio
    _steps_to_milestones(new)
    points = [new[field] for field in _POINTS if new.get(field) not in (None, *_ENDLESS)]
    points += [point for field in _LISTS for point in new.get(field) or []]
    restarts = list(itertools.accumulate(new.get('periods') or []))
    points += restarts
    kind, end = str(new['type']).split('.')[-1], new.get('end')
    # mmengine's warm-up of one step would stay at its start factor.
    short = (
        kind.startswith(('Linear', 'Constant'))
        and end not in (None, *_ENDLESS)
        and (end - new.get('begin', 0)) * ratio < 2
    )
    by_parts = short or not all(_whole(point * ratio) for point in points)
    fractional = (
        new.get('by_epoch', True)
        and by_parts
        and kind in _FRACTIONAL
        # mmengine takes the factor of such a one for that of an iteration.
        and not (exponential and new.get('convert_to_iter_based'))
        and end not in (None, *_ENDLESS)
    )
    if fractional:
        # Parts of an epoch, which become iterations when the data loader tells how many it has.
        new.update(type=f'mmhcnet.{kind}', convert_to_iter_based=True, begin=new.get('begin', 0))

    def scale(point):
        if fractional:
            return round(point * ratio, 9)
        return max(round(point * ratio), least if point else 0)

    for field in _POINTS:
        if new.get(field) not in (None, *_ENDLESS):
            new[field] = scale(new[field])
    for field in _LISTS:
        if new.get(field) is not None:
            new[field] = [scale(point) for point in new[field]]
    if restarts:
        # The restarts are rounded, and not the periods between them, whose errors would add up.
        ends = [scale(point) for point in restarts]
        shortest = 0 if fractional else 1
        new['periods'] = [
            max(shortest, after - before) for before, after in itertools.pairwise([0, *ends])
        ]
    return new


def _steps_to_milestones(scheduler: dict) -> None:
    """Writes StepLR as MultiStepLR, whose points can be scaled one by one."""
    kind, end = str(scheduler['type']), scheduler.get('end')
    if kind.split('.')[-1] in ('StepLR', 'StepMomentum') and end not in (None, *_ENDLESS):
        step = scheduler.pop('step_size')
        scheduler.update(
            type=kind.replace('Step', 'MultiStep'),
            milestones=list(range(step, end - scheduler.get('begin', 0), step)),
        )


def scale_schedule(
    schedulers: list[dict], length: int, per_epoch: float, per_iter: float, to_iters: bool = False
) -> list[dict]:
    """Schedulers whose points in time are multiplied, so that the curve keeps its shape.

    Points in epochs that are not whole are counted in iterations (``mmhcnet.training.schedulers``).
    Points in iterations are rounded, and no part of a run of 8 steps or more ends before the
    second; a part that ends up empty is left out, and so is a warm-up of one step: mmengine would
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
        ratio = per_epoch if scheduler.get('by_epoch', True) else per_iter
        if to_iters:
            scheduler = dict(scheduler, by_epoch=False)
            scheduler.pop('convert_to_iter_based', None)
        least = 1 if scheduler.get('by_epoch', True) else 2 if length >= 8 else 0
        new = _scale_part(scheduler, ratio, least)
        steps = float('inf') if new.get('end') is None else new['end'] - new.get('begin', 0)
        counted = new.get('convert_to_iter_based') and str(new['type']).startswith('mmhcnet.')
        if counted or steps >= (2 if 'start_factor' in new or 'factor' in new else 1):
            scaled.append(new)
    return scaled


def fit_schedule(cfg: Config, planned: RunLength | None = None) -> None:
    """Scale ``cfg.param_scheduler`` in place to the length in ``cfg.train_cfg``.

    A schedule is scaled from the length that it was written for, whatever the configs between it
    and the run say. ``fit_schedule = False`` in a config keeps one that is meant to be longer or
    shorter than the run. What was done is logged.

    Args:
        cfg (Config): The whole config.
        planned (RunLength, optional): The length of the run before options of the command line,
            for a schedule that does not say what it was written for.

    Raises:
        ValueError: The schedule counts epochs and the run iterations.
    """
    schedulers = cfg.get('param_scheduler')
    if not schedulers or not cfg.get('train_cfg'):
        return
    schedulers = [schedulers] if isinstance(schedulers, dict) else list(schedulers)
    length, written = run_length(cfg.train_cfg), written_for(schedulers)
    if not cfg.get('fit_schedule', True):
        if written not in (None, length):
            print_log(
                f'The learning-rate schedule for {written} is kept in a run of {length} '
                '(fit_schedule = False).',
                logger='current',
            )
        return
    if (
        written is None
        or written.by_epoch != length.by_epoch
        and planned is not None
        and planned.by_epoch == length.by_epoch
        and not written.by_epoch
    ):
        # Iterations in a run of epochs: how many there are is known to the data loader only.
        written = planned
    if written in (None, length):
        return
    if written.by_epoch != length.by_epoch:
        raise ValueError(
            f'the schedule was written for {written} and the run has {length}: set '
            'param_scheduler too'
        )
    ratio = length.number / written.number
    cfg.param_scheduler = scale_schedule(schedulers, length.number, ratio, ratio)
    print_log(
        f'The learning-rate schedule for {written} is scaled to the run of {length}. '
        'Set fit_schedule = False in the config to keep it as it is written, or '
        'param_scheduler to have another one.',
        logger='current',
    )
