"""SIGKILL at random moments, half of them inside a save: no run is lost, no parameter differs."""
import os
import random
import signal
import time

import pytest
from mmengine.hooks import Hook

from mmhcnet.checkpoints.files import CheckpointBackend
from mmhcnet.checkpoints.locate import NAMES, newest_intact

from ..test_checkpoints.test_files import CALLS
from ..test_training.test_loops import same, state_of
from ..toy import toy_runner

SETTINGS = dict(
    train_cfg=dict(max_epochs=40), checkpoint=dict(max_keep_ckpts=1), custom_hooks=[
        dict(type='EMAHook', momentum=0.1, update_buffers=True)])


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


def run_and_kill(folder, delay=None, in_save=None):
    """Train in a child process from the newest checkpoint; returns whether it was killed."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            if in_save is not None:
                die_in_a_save(in_save)
            runner = toy_runner(folder, resume=True, **SETTINGS)
            runner.register_hook(Started(writing))
            runner.train()
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    # Not where an earlier kill came between the last save and the end: nothing is left to train.
    began = os.read(reading, 1) == b'.'
    os.close(reading)
    if delay is not None and began:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code != 0


def check(tmp_path, kills):
    toy_runner(tmp_path / 'whole', **SETTINGS).train()
    expected = state_of(tmp_path / 'whole')
    rng = random.Random(0)
    done = {True: 0, False: 0}
    run = 0
    while sum(done.values()) < kills:
        folder = tmp_path / f'run{run}'
        in_save = done[True] < done[False]
        newest, _ = newest_intact(folder, NAMES)
        killed = (run_and_kill(folder, in_save=rng.randrange(60)) if in_save
                  else run_and_kill(folder, delay=rng.uniform(0, 0.5)))
        after, _ = newest_intact(folder, NAMES)
        # Nothing is lost: once there is an intact checkpoint there always is.
        assert newest is None or after is not None
        if killed:
            done[in_save] += 1
        else:
            assert same(state_of(folder), expected)
            run += 1
    folder = tmp_path / f'run{run}'
    assert not run_and_kill(folder, in_save=10**9)
    assert same(state_of(folder), expected)
    print(f'{done[False]} kills at random moments, {done[True]} inside a save, {run + 1} runs')


def test_a_few_kills(tmp_path):
    check(tmp_path, kills=6)


@pytest.mark.faults
def test_50_kills(tmp_path):
    check(tmp_path, kills=50)
