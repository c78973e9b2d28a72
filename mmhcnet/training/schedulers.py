"""mmengine's schedulers for points in time that are parts of an epoch.

A warm-up of 5 epochs of 300 is a sixth of an epoch in a run of 10. mmengine counts by epochs, or
turns whole epochs into iterations. These turn any number of epochs into whole iterations, as soon
as the data loader says how many an epoch has; otherwise they are mmengine's.
"""

import itertools
from typing import Any

from mmengine.optim import scheduler

from mmhcnet.registry import PARAM_SCHEDULERS


class InIterations:
    """Built with ``convert_to_iter_based=True`` from points in epochs that need not be whole."""

    @classmethod
    def build_iter_from_epoch(
        cls,
        *args: Any,
        epoch_length: int,
        begin: float,
        end: float,
        by_epoch: bool = True,
        **settings: Any,
    ):
        """The scheduler by iterations.

        Args:
            epoch_length (int): Iterations of an epoch.
            begin (float): First epoch, and parts of one, of the scheduler's time.
            end (float): The epoch, and parts of one, after it.
            by_epoch (bool): The settings count epochs; nothing else is converted.
            settings: Those of the scheduler; points in time are in epochs after ``begin``.
        """
        first = round(begin * epoch_length)
        last = max(round(end * epoch_length), first + 1)
        if settings.get('T_max') is not None:
            settings['T_max'] = max(1, round(settings['T_max'] * epoch_length))
        if 'milestones' in settings:
            settings['milestones'] = [
                max(1, round(point * epoch_length)) for point in settings['milestones']
            ]
        if 'periods' in settings:
            restarts = [
                round(point * epoch_length) for point in itertools.accumulate(settings['periods'])
            ]
            settings['periods'] = [
                max(1, after - before) for before, after in itertools.pairwise([0, *restarts])
            ]
        if settings.get('total_steps') is not None:
            settings['total_steps'] = max(1, round(settings['total_steps'] * epoch_length))
        if issubclass(cls, (scheduler.ExponentialLR, scheduler.ExponentialMomentum)):
            settings['gamma'] **= 1 / epoch_length
        if last - first < 2:
            # A warm-up needs an iteration to begin with and another one to end with. In a single
            # one mmengine would stay at the start factor for the rest of the run.
            last = first + 2
            for name in {'start_factor', 'factor'} & set(settings):
                settings[name] = settings.get('end_factor', 1.0)
        return cls(*args, begin=first, end=last, by_epoch=False, **settings)


for _base in (
    scheduler.ConstantLR,
    scheduler.ConstantMomentum,
    scheduler.CosineAnnealingLR,
    scheduler.CosineAnnealingMomentum,
    scheduler.CosineRestartLR,
    scheduler.CosineRestartMomentum,
    scheduler.ExponentialLR,
    scheduler.ExponentialMomentum,
    scheduler.LinearLR,
    scheduler.LinearMomentum,
    scheduler.MultiStepLR,
    scheduler.MultiStepMomentum,
    scheduler.OneCycleLR,
    scheduler.PolyLR,
    scheduler.PolyMomentum,
):
    PARAM_SCHEDULERS.register_module(
        module=type(_base.__name__, (InIterations, _base), dict(__doc__=_base.__doc__))
    )
