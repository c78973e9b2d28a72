"""Training data whose every random choice follows from (seed, rank, iteration, place in the batch).

So neither the number of worker processes nor an interruption changes what a run sees, and a resumed
run starts at any iteration without loading the data before it.
"""

import random
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_rank
from torch.utils.data import BatchSampler, Dataset, Sampler

from mmhcnet.registry import DATA_SAMPLERS

from .tolerant_data import Loaded, read_tolerantly


def _number(entropy: Sequence[int]) -> int:
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])


def seed_process(*entropy: int) -> None:
    """Seed every generator of this process, those of the GPUs included."""
    number = _number(entropy)
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.manual_seed(number % 2**63)


class Draw(int):
    """Index of a sample, with what its random augmentation is to be seeded from."""

    def __new__(cls, index: int, entropy: Sequence[int]):
        draw = super().__new__(cls, index)
        draw.entropy = tuple(entropy)
        return draw

    def __reduce__(self):
        return Draw, (int(self), self.entropy)


@DATA_SAMPLERS.register_module()
class NumberedBatches:
    """Batches of another batch sampler, from any position on, with a seed for each sample.

    Args:
        sampler (Sampler): Order of the samples.
        batch_size (int): Samples per batch.
        drop_last (bool): Leave an incomplete last batch out.
        batch_sampler (dict, optional): Config of another batch sampler, as mmdet's
            ``AspectRatioBatchSampler``.
        endless (bool): Start over instead of ending.
    """

    def __init__(
        self,
        sampler: Sampler,
        batch_size: int,
        drop_last: bool = False,
        batch_sampler: dict | None = None,
        endless: bool = False,
    ):
        self.sampler = sampler
        self.batch_size = batch_size
        self.endless = endless
        if batch_sampler is None:
            self.batches = BatchSampler(sampler, batch_size, drop_last)
        else:
            self.batches = DATA_SAMPLERS.build(
                dict(batch_sampler), default_args=dict(sampler=sampler, batch_size=batch_size)
            )
        self.start(seed=0, iteration=0, skip=0)

    def start(self, seed: int, iteration: int, skip: int) -> None:
        """Where the next pass begins.

        Args:
            seed (int): Seed of the run, for the order and for each sample.
            iteration (int): Number of the first batch that is given out.
            skip (int): Batches of the pass that are passed over.
        """
        self.seed, self.iteration, self.skip = seed, iteration, skip
        if hasattr(self.sampler, 'seed'):
            self.sampler.seed = seed

    def _passes(self) -> Iterator[list[int]]:
        yield from self.batches
        epoch = 0
        while self.endless:
            epoch += 1
            if hasattr(self.sampler, 'set_epoch'):
                self.sampler.set_epoch(epoch)
            yield from self.batches

    def __iter__(self) -> Iterator[list[Draw]]:
        rank = get_rank()
        if isinstance(self.sampler, InfiniteSampler):
            # It has one generator for all passes: what else reads the data would take from the
            # training's, and end it.
            self.sampler.indices = self.sampler._indices_of_rank()
        for number, batch in enumerate(islice(self._passes(), self.skip, None), self.iteration):
            yield [
                Draw(index, (self.seed, rank, number, place)) for place, index in enumerate(batch)
            ]

    def __len__(self) -> int:
        return len(self.batches)


class SeededDataset(Dataset):
    """A data set whose samples are drawn with the seed that comes with their index.

    Everything else is that of the data set inside.

    Args:
        dataset (Dataset): The data set.
        tolerant (bool): A sample that cannot be read is replaced, and reported with the one in its
            place.
    """

    def __init__(self, dataset: Dataset, tolerant: bool = False):
        self.dataset = dataset
        self.tolerant = tolerant

    def __len__(self) -> int:
        return len(self.dataset)

    def __deepcopy__(self, memo: dict) -> 'SeededDataset':
        # mmengine copies the config of a data loader, and with it what may be gigabytes.
        return self

    def __getitem__(self, draw: Draw) -> Loaded:
        number = _number(draw.entropy)
        random.seed(number)
        np.random.seed(number % 2**32)
        # Not torch.manual_seed: in a worker that would touch CUDA.
        torch.default_generator.manual_seed(number % 2**63)
        index = int(draw)
        if self.tolerant:
            return read_tolerantly(self.dataset, index)
        return Loaded(self.dataset[index], [])

    def __getattr__(self, name: str) -> Any:
        # Not found here. While unpickling, there is no data set yet.
        if name == 'dataset' or name.startswith('__'):
            raise AttributeError(name)
        return getattr(self.dataset, name)
