"""Training loops that a kill does not change: a resumed run goes on, bit for bit, as it would have.

mmengine restores weights, optimizer and schedulers. Beyond it, these loops draw each iteration's
random numbers from (seed, rank, iteration) and start the data at the iteration where the checkpoint
was written, within an epoch too, without loading what was seen before.
"""

import bisect
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_rank
from mmengine.logging import print_log
from mmengine.registry import FUNCTIONS
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from mmengine.runner.utils import calc_dynamic_intervals
from torch.utils.data import DataLoader

from mmhcnet.errors import UserError
from mmhcnet.registry import FUNCTIONS as OUR_FUNCTIONS
from mmhcnet.registry import LOOPS

from .coco_annotations import build_dataset
from .image_files import read_through_backend
from .resumable_data import NumberedBatches, SeededDataset, seed_process
from .sample_rules import sources
from .tolerant_data import Collate, take_faults


def _seeded_loader(
    runner: Runner, dataloader: dict | DataLoader, endless: bool
) -> dict | DataLoader:
    """The config of a data loader, with its data set and batch sampler wrapped.

    Samples that cannot be read are replaced only where a hook learns of it. A data loader that is
    built already stays as it is.
    """
    if not isinstance(dataloader, dict):
        print_log(
            'train_dataloader is an object, not a config: a resumed run starts its data over.',
            logger='current',
            level=logging.WARNING,
        )
        return dataloader
    loader = dict(dataloader)
    dataset = loader['dataset']
    if isinstance(dataset, dict):
        dataset = build_dataset(dataset)
        if hasattr(dataset, 'full_init'):
            dataset.full_init()
    tolerant = any(hasattr(hook, 'after_loading') for hook in runner.hooks)
    for source in sources(dataset) if tolerant else ():
        read_through_backend(source)
    loader['dataset'] = SeededDataset(dataset, tolerant)
    loader['collate_fn'] = Collate(_function_of(loader.get('collate_fn', 'pseudo_collate')))
    loader.setdefault('worker_init_fn', dict(type='mmhcnet.start_worker'))
    loader['batch_sampler'] = dict(
        type='mmhcnet.NumberedBatches',
        drop_last=loader.pop('drop_last', False),
        batch_sampler=loader.get('batch_sampler'),
        endless=endless,
    )
    return loader


def _function_of(collate_fn: str | dict | Callable) -> Callable:
    """The function that a data loader's ``collate_fn`` stands for."""
    settings = dict(collate_fn) if isinstance(collate_fn, dict) else dict(type=collate_fn)
    function = settings.pop('type')
    return partial(FUNCTIONS.get(function) if isinstance(function, str) else function, **settings)


@OUR_FUNCTIONS.register_module()
def start_worker(worker_id: int) -> None:
    """Let only the process that trains end a worker: a cluster sends SIGTERM to every process."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    parent = os.getppid()

    def wait():
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


def _seed_of(runner: Runner) -> int:
    """The seed that all ranks share."""
    # mmengine adds the rank to it there.
    own = runner._randomness_cfg.get('diff_rank_seed', False)
    return runner.seed - get_rank() if own else runner.seed


def _batches_of(dataloader: DataLoader) -> NumberedBatches | None:
    """The batch sampler that can begin anywhere, or None in a data loader that is not ours."""
    batches = getattr(dataloader, 'batch_sampler', None)
    return batches if isinstance(batches, NumberedBatches) else None


def _prepare(dataloader: DataLoader, endless: bool) -> None:
    """Make sure that there is something to train on, and that hooks find the batch size.

    Raises:
        UserError: There are no samples, or fewer than a batch that has to be full.
    """
    batches = _batches_of(dataloader)
    if batches is None:
        if not len(dataloader):
            raise UserError('the data loader given as train_dataloader has no batches')
        return
    # Read by mmpretrain's PreciseBNHook. Beside a batch sampler torch leaves it None, and a plain
    # assignment is an error.
    vars(dataloader)['batch_size'] = batches.batch_size
    samples = len(dataloader.dataset)
    if not samples:
        raise UserError(
            'the training set has no samples: look at data_root, ann_file, data_prefix '
            'and filter_cfg of train_dataloader.dataset'
        )
    # A sampler without end fills any batch.
    if not len(batches) and not (endless and isinstance(batches.sampler, InfiniteSampler)):
        raise UserError(
            f'the training set has {samples} samples, fewer than a batch of '
            f'{batches.batch_size} for each rank, and drop_last leaves none: lower '
            'train_dataloader.batch_size, or set train_dataloader.drop_last=False'
        )


def _repeated(dataloader: DataLoader) -> Iterator:
    """Batches without end: ours go on by themselves, another data loader begins again."""
    while True:
        yield from dataloader


def _validate_if_due(loop: EpochBasedTrainLoop | BaseLoop, done: int, end: int) -> None:
    """Validate after so many epochs or iterations, if it is time and was not done yet.

    A checkpoint is written before the validation of the same moment. So a run that is resumed from
    there begins with it.
    """
    runner, hub = loop.runner, loop.runner.message_hub
    interval = loop.dynamic_intervals[bisect.bisect(loop.dynamic_milestones, done + 1) - 1]
    loop.val_interval = interval
    if (
        runner.val_loop is None
        or done < max(1, loop.val_begin)
        or (done % interval and done != end)
        or hub.get_info('validated_after') == done
    ):
        return
    # In a checkpoint that is written for its result.
    hub.update_info('validated_after', done)
    runner.val_loop.run()


@LOOPS.register_module()
class EpochTrainLoop(EpochBasedTrainLoop):
    """mmengine's ``EpochBasedTrainLoop``, resumed exactly.

    Args:
        runner (Runner): The runner.
        dataloader (dict or DataLoader): Config of the data loader. With an object a resumed run is
            not exact.
        max_epochs (int): Epochs to train.
        val_begin (int): First epoch after which to validate.
        val_interval (int): Epochs from one validation to the next.
        dynamic_intervals (list[tuple], optional): (first epoch, interval from there on).
    """

    def __init__(
        self,
        runner: Runner,
        dataloader: dict | DataLoader,
        max_epochs: int,
        val_begin: int = 1,
        val_interval: int = 1,
        dynamic_intervals: list[tuple[int, int]] | None = None,
    ):
        super().__init__(
            runner,
            _seeded_loader(runner, dataloader, endless=False),
            max_epochs,
            val_begin,
            val_interval,
            dynamic_intervals,
        )
        _prepare(self.dataloader, endless=False)

    def run(self) -> torch.nn.Module:
        """Train from where the run is to its end."""
        self.runner.call_hook('before_train')
        _validate_if_due(self, self._epoch, self.max_epochs)
        while self._epoch < self.max_epochs and not self.stop_training:
            self.run_epoch()
            _validate_if_due(self, self._epoch, self.max_epochs)
        self.runner.call_hook('after_train')
        return self.runner.model

    def run_epoch(self) -> None:
        batches = _batches_of(self.dataloader)
        if batches is None:
            super().run_epoch()
            return
        hub = self.runner.message_hub
        # Not 0 after resuming from within an epoch.
        done = hub.get_info('batches_done', 0)
        first = self._iter - done
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        if hasattr(batches.sampler, 'set_epoch'):
            batches.sampler.set_epoch(self._epoch)
        batches.start(_seed_of(self.runner), iteration=self._iter, skip=done)
        for index, data_batch in enumerate(self.dataloader, done):
            # In a checkpoint that a hook writes after this iteration.
            hub.update_info('batches_done', index + 1)
            self.run_iter(index, data_batch)
        hub.update_info('batches_done', 0)
        # A hook that reads the data once more, as PreciseBNHook, gets the whole epoch.
        batches.start(_seed_of(self.runner), iteration=first, skip=0)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1

    def run_iter(self, idx: int, data_batch: Any) -> None:
        data_batch, faults = take_faults(data_batch)
        self.runner.call_hook('after_loading', faults=faults)
        seed_process(_seed_of(self.runner), get_rank(), self._iter)
        super().run_iter(idx, data_batch)


@LOOPS.register_module()
class IterTrainLoop(IterBasedTrainLoop):
    """mmengine's ``IterBasedTrainLoop``, resumed exactly and without replaying data.

    Args:
        runner (Runner): The runner.
        dataloader (dict or DataLoader): Config of the data loader. With an object a resumed run is
            not exact.
        max_iters (int): Iterations to train.
        val_begin (int): First iteration after which to validate.
        val_interval (int): Iterations from one validation to the next.
        dynamic_intervals (list[tuple], optional): (first iteration, interval from there on).
    """

    def __init__(
        self,
        runner: Runner,
        dataloader: dict | DataLoader,
        max_iters: int,
        val_begin: int = 1,
        val_interval: int = 1000,
        dynamic_intervals: list[tuple[int, int]] | None = None,
    ):
        # Not IterBasedTrainLoop's: it starts the workers, before it is known where to begin.
        BaseLoop.__init__(self, runner, _seeded_loader(runner, dataloader, endless=True))
        _prepare(self.dataloader, endless=True)
        self._max_iters = max_iters
        # The whole run counts as one epoch, as in mmengine.
        self._max_epochs = 1
        # The runner sets both when it resumes.
        self._epoch = self._iter = 0
        self.val_begin = val_begin
        self.val_interval = val_interval
        self.stop_training = False
        self.dynamic_milestones, self.dynamic_intervals = calc_dynamic_intervals(
            val_interval, dynamic_intervals
        )
        self.runner.visualizer.dataset_meta = getattr(self.dataloader.dataset, 'metainfo', None)

    def run(self) -> torch.nn.Module:
        """Train from where the run is to its end."""
        runner = self.runner
        runner.call_hook('before_train')
        runner.call_hook('before_train_epoch')
        numbered = _batches_of(self.dataloader)
        if numbered is not None:
            numbered.start(_seed_of(runner), iteration=self._iter, skip=self._iter)
        _validate_if_due(self, self._iter, self.max_iters)
        # Without a resumed run that is at its end, because this starts the workers.
        batches = _repeated(self.dataloader) if self._iter < self.max_iters else None
        while self._iter < self.max_iters and not self.stop_training:
            runner.model.train()
            self.run_iter(next(batches))
            _validate_if_due(self, self._iter, self.max_iters)
        runner.call_hook('after_train_epoch')
        runner.call_hook('after_train')
        return runner.model

    def run_iter(self, data_batch: Any) -> None:
        """One training step with its hooks."""
        data_batch, faults = take_faults(data_batch)
        self.runner.call_hook('after_loading', faults=faults)
        seed_process(_seed_of(self.runner), get_rank(), self._iter)
        super().run_iter(data_batch)
