"""A cluster takes the machine back (SIGTERM): write a checkpoint and end."""

import signal
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.dist import all_reduce, is_distributed
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmhcnet.checkpoints.hook import CheckpointHook
from mmhcnet.errors import EXIT_PREEMPTED
from mmhcnet.registry import HOOKS
from mmhcnet.training.process_group import leave_distributed


@HOOKS.register_module()
class PreemptionHook(Hook):
    """On SIGTERM finish the iteration, write a checkpoint and end with exit code 75.

    ``--resume`` then goes on exactly there, within an epoch too. All ranks end after the same
    iteration. In a validation nothing is written: the run ends after the current batch, and goes on
    from the newest checkpoint, with the validation if that was written just before it. A second
    SIGTERM goes to the handler from before training, which ends the process at once unless the
    program around has one of its own.

    Args:
        signals (Sequence[str]): Names of the signals.
    """

    # After the hooks of which a checkpoint keeps the state.
    priority = 'LOWEST'

    def __init__(self, signals: Sequence[str] = ('SIGTERM',)):
        self.signals = [signal.Signals[name] for name in signals]
        self.received: signal.Signals | None = None
        # Signal -> its handler before training.
        self._former: dict[signal.Signals, Any] = {}

    def before_train(self, runner: Runner) -> None:
        for number in self.signals:
            # None stands for a handler that is not of Python and cannot be set again from here.
            self._former[number] = signal.signal(number, self._receive) or signal.SIG_DFL

    def after_train(self, runner: Runner) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: Any) -> None:
        self.received = signal.Signals(number)
        former = self._former[self.received]
        signal.signal(number, signal.SIG_DFL if former is signal.SIG_IGN else former)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        stop = torch.tensor(int(self.received is not None))
        if is_distributed():
            all_reduce(stop, 'max')
        if not stop:
            return
        saved = 'no checkpoint hook of mmhcnet is there to save one'
        for hook in runner.hooks:
            if isinstance(hook, CheckpointHook):
                saved = hook.save_now(runner) or 'the checkpoint could not be written'
        self._end(runner, f'iteration {runner.iter + 1}: {saved}')

    def after_val_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Sequence | None = None,
    ) -> None:
        if self.received is not None:
            self._end(runner, 'a validation: the newest checkpoint stays the last one')

    def _end(self, runner: Runner, where: str) -> None:
        runner.logger.warning(
            f'{self.received.name if self.received else "Another rank"} ended '
            f'the run in {where}. --resume goes on from there.'
        )
        self.after_train(runner)
        leave_distributed()
        raise SystemExit(EXIT_PREEMPTED)
