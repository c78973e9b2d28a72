import multiprocessing
import time

import pytest
import torch
from mmengine.hooks import Hook
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from mmhcnet.cli.ending import orderly_end

from ..test_checkpoints.test_hook import Scores
from ..toy import ToyDataset, toy_runner


class EndsHow(Hook):
    def __init__(self, error):
        self.error = error

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        assert len(multiprocessing.active_children()) >= 2
        if self.error is not None:
            raise self.error


@pytest.fixture
def group(tmp_path):
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{tmp_path}/group', rank=0, world_size=1
    )
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


# SystemExit is what SIGTERM leads to.
@pytest.mark.parametrize('error', [None, RuntimeError('out of memory'), SystemExit(75)])
@pytest.mark.parametrize('train_cfg', [dict(max_epochs=2), dict(max_iters=3)])
def test_no_worker_and_no_group_outlives_a_run(tmp_path, group, train_cfg, error):
    runner = toy_runner(
        tmp_path,
        {**train_cfg, 'val_interval': 1},
        workers=2,
        custom_hooks=[EndsHow(error)],
        val_cfg=dict(),
        val_evaluator=[Scores(range(3))],
        val_dataloader=dict(
            batch_size=4,
            num_workers=2,
            timeout=60,
            persistent_workers=True,
            sampler=dict(type='DefaultSampler', shuffle=False),
            dataset=ToyDataset(8),
        ),
    )
    runner.model.val_step = lambda data: [0]
    with pytest.raises(type(error)) if error else orderly_end(lambda: None):
        with orderly_end(lambda: runner):
            runner.train()
    assert not torch.distributed.is_initialized()
    # With pin_memory torch registers this to be called at exit.
    start = time.time()
    for worker in multiprocessing.active_children():
        _MultiProcessingDataLoaderIter._clean_up_worker(worker)
    assert time.time() - start < 1


def test_an_error_before_there_is_a_runner(group):
    with pytest.raises(ValueError), orderly_end(lambda: None):
        raise ValueError
    assert not torch.distributed.is_initialized()


def test_loaders_can_be_used_after_their_workers_have_ended(tmp_path):
    runner = toy_runner(tmp_path, dict(max_epochs=1), workers=1)
    for _ in range(2):
        with orderly_end(lambda: runner):
            batches = list(runner.train_dataloader)
        assert len(batches) == 6 and not multiprocessing.active_children()
