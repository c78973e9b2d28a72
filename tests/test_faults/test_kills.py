"""SIGKILL at random moments, inside a save and inside a validation: no run is lost, no parameter
and no best score differs."""

import os
import random
import signal
import time

import numpy as np
import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook

from mmhcnet.checkpoints.files import CheckpointBackend
from mmhcnet.checkpoints.locate import NAMES, newest_intact

from ..processes import exit_code, fork
from ..test_checkpoints.test_files import CALLS
from ..test_training.test_loops import same, state_of
from ..toy import ToyDataset, toy_runner


class FixedDataset(ToyDataset):
    """Without the noise."""

    def __getitem__(self, index):
        torch.manual_seed(index)
        np.random.seed(index)
        return super().__getitem__(index)


SETTINGS = dict(
    train_cfg=dict(max_epochs=40, val_interval=1),
    checkpoint=dict(max_keep_ckpts=1, save_best='score', rule='greater'),
    custom_hooks=[dict(type='EMAHook', momentum=0.1, update_buffers=True)],
    val_cfg=dict(),
    val_dataloader=dict(
        batch_size=8,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=FixedDataset(),
    ),
)
KINDS = ('at a random moment', 'in a save', 'in a validation')


class Score(BaseMetric):
    """A number that every weight has a part in."""

    def process(self, data_batch, data_samples):
        self.results += [abs(float(value)) for value in data_samples]

    def compute_metrics(self, results):
        return dict(score=sum(results))


class KilledInValidation(Hook):
    """Dies in the ``number``-th validation of this process."""

    def __init__(self, number):
        self.left = number

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        self.left -= batch_idx == 1
        if self.left < 0:
            os.kill(os.getpid(), signal.SIGKILL)


def runner_of(folder, **settings):
    return toy_runner(folder, val_evaluator=[Score()], **SETTINGS, **settings)


def best_of(folder):
    (path,) = folder.glob('best_*.pth')
    found = torch.load(path, weights_only=True)
    return path.name, found['message_hub']['runtime_info']['best_score'], found['state_dict']


class Started(Hook):
    """Tells the parent when the first iteration has begun."""

    def __init__(self, pipe):
        self.pipe = pipe

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if self.pipe is not None:
            os.write(self.pipe, b'.')
            self.pipe = None


def die_in_a_save(number):
    """Let this process kill itself at the ``number``-th change of the disk while it saves."""
    left = [number]
    saving = []
    put = CheckpointBackend.put

    def marked(self, *args):
        saving.append(True)
        put(self, *args)
        saving.pop()

    def counted(original):

        def call(*args, **kwargs):
            if saving:
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        return call

    # This process ends here in any case.
    CheckpointBackend.put = marked
    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))


def run_and_kill(folder, delay=None, in_save=None, in_validation=None):
    """Train in a child process from the newest checkpoint; returns whether it was killed."""
    reading, writing = os.pipe()

    def train():
        if in_save is not None:
            die_in_a_save(in_save)
        runner = runner_of(folder, resume=True)
        runner.register_hook(Started(writing))
        if in_validation is not None:
            runner.register_hook(KilledInValidation(in_validation))
        runner.train()

    child = fork(train)
    os.close(writing)
    # Not where an earlier kill came between the last save and the end: nothing is left to train.
    began = os.read(reading, 1) == b'.'
    os.close(reading)
    if delay is not None and began:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    code = exit_code(child)
    assert code in (0, -signal.SIGKILL)
    return code != 0


def check(tmp_path, kills):
    runner_of(tmp_path / 'whole').train()
    expected, best = state_of(tmp_path / 'whole'), best_of(tmp_path / 'whole')
    rng = random.Random(0)
    done = dict.fromkeys(KINDS, 0)
    run = 0

    def holds(folder):
        name, score, weights = best_of(folder)
        return (
            same(state_of(folder), expected)
            and (name, score) == best[:2]
            and same(weights, best[2])
        )

    while sum(done.values()) < kills:
        folder = tmp_path / f'run{run}'
        kind = min(KINDS, key=done.get)
        newest, _ = newest_intact(folder, NAMES)
        killed = run_and_kill(
            folder,
            **{
                'at a random moment': lambda: dict(delay=rng.uniform(0, 0.5)),
                'in a save': lambda: dict(in_save=rng.randrange(60)),
                'in a validation': lambda: dict(in_validation=rng.randrange(6)),
            }[kind](),
        )
        after, _ = newest_intact(folder, NAMES)
        # Nothing is lost: once there is an intact checkpoint there always is.
        assert newest is None or after is not None
        if killed:
            done[kind] += 1
        else:
            assert holds(folder)
            run += 1
    folder = tmp_path / f'run{run}'
    assert not run_and_kill(folder, in_save=10**9)
    assert holds(folder)
    print(
        ', '.join(f'{number} kills {kind}' for kind, number in done.items()) + f', {run + 1} runs'
    )


def test_a_few_kills(tmp_path):
    check(tmp_path, kills=6)


@pytest.mark.faults
def test_50_kills(tmp_path):
    check(tmp_path, kills=50)
