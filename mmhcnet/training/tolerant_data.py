"""Training goes on past samples that cannot be read, and says which."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.dist import all_reduce, is_distributed, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from mmhcnet.errors import UserError
from mmhcnet.registry import HOOKS

from .coco_annotations import left_out_of
from .image_files import images_seen, read_through_backend
from .sample_rules import (
    boxes_left_out,
    check_sample,
    refuse_absurd_annotations,
    source_of,
    sources,
)

# Under it a batch carries its faults from a worker process to the training loop.
FAULTS = 'mmhcnet_faults'
# Other samples tried in place of one that cannot be read.
TRIES = 20
# Boxes that are named; the others are counted.
NAMED = 5


class Loaded(NamedTuple):
    """A sample or a batch, and what could not be read before it in its place."""

    data: Any
    faults: list[str]


def path_of(dataset: Any, index: int) -> str:
    """Names a sample for a person, by its file where the data set knows it."""
    try:
        return str(dataset.get_data_info(index)['img_path'])
    except Exception:
        # What cannot be read may not be described either.
        return f'sample {index}'


def read_tolerantly(dataset: Any, index: int) -> Loaded:
    """A sample, or another one drawn at random in its place.

    Raises:
        UserError: None of many can be read.
    """
    faults = []
    for _ in range(TRIES):
        try:
            with images_seen() as seen:
                data = dataset[index]
            check_sample(data, source_of(dataset, index)[0], seen)
            return Loaded(data, faults)
        except Exception as error:
            faults.append(
                f'{path_of(dataset, index)}: {type(error).__name__}: '
                f'{" ".join(str(error).split())[:200]}'
            )
            index = np.random.randint(len(dataset))
    raise UserError(
        f'{TRIES} samples in a row could not be read, the last one {faults[-1]}. Check the data set'
    )


class Collate:
    """Batches samples with another function, and keeps their faults with them.

    A batch without faults is what the other function returns. Faults are an entry of a dict; a
    batch of another type is put into a :class:`Loaded` with them.

    Args:
        function (Callable): Makes a batch of a list of samples.
    """

    def __init__(self, function: Callable):
        self.function = function

    def __call__(self, samples: list[Loaded]) -> Any:
        batch = self.function([sample.data for sample in samples])
        faults = [fault for sample in samples for fault in sample.faults]
        if faults and isinstance(batch, dict):
            batch[FAULTS] = faults
        elif faults:
            return Loaded(batch, faults)
        return batch


def take_faults(batch: Any) -> Loaded:
    """A batch that :class:`Collate` made, without the faults in it, and these."""
    if isinstance(batch, Loaded):
        return batch
    return Loaded(batch, batch.pop(FAULTS, []) if isinstance(batch, dict) else [])


def batch_size_of(loader: DataLoader) -> int:
    """Samples of a batch; 1 where a loader's batch sampler does not say."""
    return getattr(loader.batch_sampler, 'batch_size', 1)


@HOOKS.register_module()
class DataFaultHook(Hook):
    """Log samples that could not be read, count them, and end the run if they are too many.

    Boxes of a COCO file that mmdet leaves out silently are named before training. A validation or a
    test does not begin with a file of coordinates that pycocotools crashes on.

    Args:
        max_share (float): Share of the samples drawn so far that may be bad.
        patience (int): Samples, per rank, before the share is looked at.
    """

    priority = 'VERY_HIGH'

    def __init__(self, max_share: float = 0.01, patience: int = 1000):
        if not 0 <= max_share <= 1:
            raise ValueError(f'max_share must lie between 0 and 1, got {max_share}')
        self.max_share = max_share
        self.patience = patience
        self.drawn = self.bad = self.bad_in_epoch = 0
        # Annotation files of validation and testing.
        self._looked_at: set[str] = set()

    def before_train(self, runner: Runner) -> None:
        if not is_main_process():
            return
        found = {
            str(getattr(source, 'ann_file', None)): left_out_of(source)
            for source in sources(runner.train_dataloader.dataset)
        }
        for file, left_out in found.items():
            if left_out is None and file.endswith('.json') and os.path.isfile(file):
                left_out = list(boxes_left_out(file))
            if left_out:
                runner.logger.warning(
                    f'{len(left_out)} boxes of {file} are without area or outside their image, and '
                    f'are left out: {"; ".join(left_out[:NAMED])}'
                    f'{"; ..." * (len(left_out) > NAMED)}'
                )

    def before_val(self, runner: Runner) -> None:
        self._prepare(runner.val_dataloader.dataset)

    def before_test(self, runner: Runner) -> None:
        self._prepare(runner.test_dataloader.dataset)

    def _prepare(self, dataset: Any) -> None:
        for source in sources(dataset):
            # Before the workers start. An empty file is named; others OpenMMLab names itself.
            read_through_backend(source, refuse_cut=False)
            file = str(getattr(source, 'ann_file', None))
            if file.endswith('.json') and file not in self._looked_at and os.path.isfile(file):
                self._looked_at.add(file)
                refuse_absurd_annotations(json.loads(Path(file).read_bytes()), file)

    def after_loading(self, runner: Runner, faults: list[str]) -> None:
        """Our training loops call this with what could not be read for a batch."""
        for fault in faults:
            # Errors are logged by every rank.
            runner.logger.error(f'Cannot read {fault}. Another sample takes its place.')
        self.drawn += batch_size_of(runner.train_dataloader)
        self.bad += len(faults)
        self.bad_in_epoch += len(faults)
        if self.bad and self.drawn >= self.patience and self.bad > self.max_share * self.drawn:
            raise UserError(
                f'{self.bad} of {self.drawn} samples could not be read, more than the share of '
                f'{self.max_share} that default_hooks.data_faults.max_share allows: fix the '
                'files that the log names'
            )

    def after_train_epoch(self, runner: Runner) -> None:
        bad = torch.tensor(self.bad_in_epoch)
        if is_distributed():
            all_reduce(bad)
        if bad:
            runner.logger.warning(f'{int(bad)} samples of this epoch could not be read.')
        self.bad_in_epoch = 0
