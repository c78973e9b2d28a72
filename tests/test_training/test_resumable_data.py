import pickle
import random
import time
from itertools import islice

import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler

from mmhcnet.training import resumable_data
from mmhcnet.training.resumable_data import Draw, NumberedBatches, SeededDataset, seed_process

from ..toy import ToyDataset


def sampler_of(cls, length=10):
    return cls(ToyDataset(length), shuffle=True, seed=1)


def taken(batches, number):
    return [(batch, [draw.entropy for draw in batch]) for batch in islice(batches, number)]


@pytest.mark.parametrize('cls', [DefaultSampler, InfiniteSampler])
@pytest.mark.parametrize('skip', [0, 1, 3, 4, 7, 11])
def test_starts_anywhere_in_the_same_stream(cls, skip):
    """Over several passes, and at the end of one."""
    whole = NumberedBatches(sampler_of(cls), 3, endless=True)
    whole.start(seed=5, iteration=0, skip=0)
    rest = NumberedBatches(sampler_of(cls), 3, endless=True)
    rest.start(seed=5, iteration=skip, skip=skip)
    assert taken(whole, 15)[skip:] == taken(rest, 15 - skip)


def test_one_pass_is_that_of_the_sampler():
    sampler = sampler_of(DefaultSampler)
    batches = NumberedBatches(sampler, 4)
    batches.start(seed=1, iteration=20, skip=0)
    assert [index for batch in batches for index in batch] == list(sampler)
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert len(NumberedBatches(sampler, 4, drop_last=True)) == 2
    assert [batch[0].entropy for batch in batches] == [(1, 0, n, 0) for n in (20, 21, 22)]


def test_another_order_in_each_pass_and_seed():
    batches = NumberedBatches(sampler_of(DefaultSampler), 10, endless=True)
    first, second = (tuple(batch) for batch in islice(batches, 2))
    assert sorted(first) == sorted(second) and first != second
    batches.start(seed=9, iteration=0, skip=0)
    batches.sampler.set_epoch(0)
    assert tuple(next(iter(batches))) != first


def test_around_another_batch_sampler():

    class Pairs:
        def __init__(self, sampler, batch_size):
            self.sampler, self.batch_size = sampler, batch_size

        def __iter__(self):
            return iter([[1, 2], [3, 4], [5, 6]])

        def __len__(self):
            return 3

    batches = NumberedBatches(sampler_of(DefaultSampler), 2, batch_sampler=dict(type=Pairs))
    batches.start(seed=0, iteration=7, skip=1)
    assert taken(batches, 9) == [
        ([3, 4], [(0, 0, 7, 0), (0, 0, 7, 1)]),
        ([5, 6], [(0, 0, 8, 0), (0, 0, 8, 1)]),
    ]
    assert len(batches) == 3


def test_reaching_iteration_100000_takes_seconds():
    """Batches of 16 of ADE20K's 20 210 images, without touching the images."""

    class Untouched:
        def __len__(self):
            return 20210

    batches = NumberedBatches(InfiniteSampler(Untouched(), seed=0), 16, endless=True)
    batches.start(seed=0, iteration=100_000, skip=100_000)
    start = time.perf_counter()
    next(iter(batches))
    assert time.perf_counter() - start < 10


def test_a_draw_is_its_index_and_survives_a_queue():
    draw = pickle.loads(pickle.dumps(Draw(7, (1, 2))))
    assert draw == 7 and [0] * 7 + [1] == sorted([0] * 7 + [1]) and draw.entropy == (1, 2)


def test_a_sample_follows_from_its_draw_alone():
    dataset = SeededDataset(ToyDataset())
    one = dataset[Draw(3, (1, 0, 5, 2))].data['inputs']
    seed_process(99)
    assert torch.equal(dataset[Draw(3, (1, 0, 5, 2))].data['inputs'], one)
    others = [
        dataset[Draw(3, entropy)].data['inputs']
        for entropy in ((2, 0, 5, 2), (1, 1, 5, 2), (1, 0, 6, 2), (1, 0, 5, 3))
    ]
    assert not any(torch.equal(a, b) for a in others for b in others + [one] if a is not b)


def test_the_rest_is_that_of_the_data_set_inside():
    dataset = pickle.loads(pickle.dumps(SeededDataset(ToyDataset(5))))
    assert len(dataset) == 5 and dataset.metainfo == ToyDataset.metainfo
    with pytest.raises(AttributeError):
        dataset.nothing


def test_ranks_get_other_noise(monkeypatch):
    batches = NumberedBatches(sampler_of(DefaultSampler), 4)
    mine = next(iter(batches))[0].entropy
    monkeypatch.setattr(resumable_data, 'get_rank', lambda: 1)
    assert next(iter(batches))[0].entropy != mine


def test_seed_process():

    def numbers(*entropy):
        seed_process(*entropy)
        return random.random(), np.random.rand(), torch.rand(1).item()

    assert numbers(1, 2, 3) == numbers(1, 2, 3)
    other = numbers(1, 2, 4)
    assert all(a != b for a, b in zip(numbers(1, 2, 3), other))
