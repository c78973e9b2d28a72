"""A resumed run whose length, learning rate or batch size is another than in its checkpoint.

mmengine restores the whole state of its schedulers, so that such a run would go on with the old
schedule whatever the config says.
"""

import warnings
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner

from mmhcnet.errors import UserError
from mmhcnet.optim_wrappers import wrappers_of
from mmhcnet.registry import HOOKS

# What of a scheduler's state tells where it stands; the rest says which one it is.
_POSITION = ('last_step', '_global_step', '_last_value', 'verbose')


def _identity(state: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in state.items() if key not in _POSITION}


@HOOKS.register_module()
class ResumedScheduleHook(Hook):
    """Goes on with the schedule of the config, from where the checkpoint stands.

    A schedule that is that of the checkpoint is left to mmengine, which restores it bit for bit.
    For another one the learning rates are those that a run from the start would have reached with
    it.

    Raises:
        UserError: The checkpoint stands within an epoch of batches of another size.
    """

    # Before a hook that writes or counts anything.
    priority = 'VERY_HIGH'

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        # Of a checkpoint that is only loaded nothing is resumed.
        if not runner._resume or 'optimizer' not in checkpoint:
            return
        self._follow_batch_size(runner, checkpoint)
        saved, schedulers = checkpoint.get('param_schedulers'), runner.param_schedulers
        if not isinstance(saved, list) or not isinstance(schedulers, list):
            return
        if list(map(_identity, saved)) != [_identity(s.state_dict()) for s in schedulers]:
            self._go_on(runner, checkpoint, schedulers)

    def _follow_batch_size(self, runner: Runner, checkpoint: dict) -> None:
        """Lets the count of iterations be that of whole epochs of the new batches."""
        meta = checkpoint['meta']
        epoch, iteration = meta['epoch'], meta['iter']
        if not isinstance(runner.train_loop, EpochBasedTrainLoop) or not epoch:
            return
        done = checkpoint['message_hub'].get('runtime_info', {}).get('batches_done', 0)
        before, now = (iteration - done) / epoch, len(runner.train_dataloader)
        if before == now:
            return
        if done:
            raise UserError(
                f'the checkpoint stands within epoch {epoch + 1}, whose {before:g} batches were of '
                f'another size than the {now} of this run: resume from the end of an epoch, or '
                'with the batch size that it was trained with'
            )
        meta['iter'] = epoch * now
        runner.logger.warning(
            f'An epoch has {now} iterations, and {before:g} in the checkpoint: the run goes on '
            f'with epoch {epoch + 1}, iteration {epoch * now + 1}.'
        )

    def _go_on(self, runner: Runner, checkpoint: dict, schedulers: list[Any]) -> None:
        if any(hasattr(scheduler, 'need_val_args') for scheduler in schedulers):
            raise UserError(
                'param_scheduler is another one than in the checkpoint, and one of its parts '
                'follows the validation: resume with the old one, or start from scratch with '
                'load_from'
            )
        meta = checkpoint['meta']
        epoch, iteration = meta['epoch'], meta['iter']
        epochs = isinstance(runner.train_loop, EpochBasedTrainLoop)
        length = len(runner.train_dataloader)
        with warnings.catch_warnings():
            # That the optimizer has not stepped yet.
            warnings.simplefilter('ignore')
            for step in range(iteration):
                self._step(schedulers, by_epoch=False)
                if epochs and (step + 1) % length == 0:
                    self._step(schedulers, by_epoch=True)
        checkpoint['param_schedulers'] = [scheduler.state_dict() for scheduler in schedulers]
        groups = list(checkpoint['optimizer']['param_groups'])
        if 'base_param_settings' in checkpoint['optimizer']:
            groups.append(checkpoint['optimizer']['base_param_settings'])
        names = {scheduler.param_name for scheduler in schedulers}
        # With several optimizers the schedulers are no list.
        (wrapper,) = wrappers_of(runner)
        for group, now in zip(groups, wrapper.param_groups):
            for name in names:
                group[name], group[f'initial_{name}'] = now[name], now[f'initial_{name}']
        where = (
            f'epoch {epoch} of {runner.max_epochs}'
            if epochs
            else f'iteration {iteration} of {runner.max_iters}'
        )
        rate = max(group['lr'] for group in groups)
        runner.logger.warning(
            'The learning-rate schedule of this run is another one than in the checkpoint: it goes '
            f'on from {where}, with the learning rate that it has there, {rate:.3g}.'
        )

    @staticmethod
    def _step(schedulers: list[Any], by_epoch: bool) -> None:
        for scheduler in schedulers:
            if scheduler.by_epoch == by_epoch:
                scheduler.step()
