"""Runs whose processes are killed, as a user starts them."""
import os
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch

from mmhcnet.engine.checkpoint_file import fault_of

from .conftest import CONFIGS, ROOT
from .test_train_and_test import free_port

EPOCHS = {'train_cfg.max_epochs': 3, 'train_dataloader.batch_size': 8,
          'randomness.seed': 1}


@pytest.fixture
def started(tmp_path):
    """Start a tool in a process group of its own, with its output in a file."""
    processes = []

    def start(*command, **env):
        log = open(tmp_path / 'log', 'w')
        processes.append(subprocess.Popen(
            [str(part) for part in command], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, 'PYTHON': sys.executable, 'CUDA_VISIBLE_DEVICES': '', **env}))
        return processes[-1]

    yield start
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for(log, pattern, process, seconds=300):
    end = time.monotonic() + seconds
    while not re.search(pattern, log.read_text()):
        assert process.poll() is None and time.monotonic() < end, log.read_text()[-3000:]
        time.sleep(0.1)


def weights_of(folder):
    return torch.load(folder / 'epoch_3.pth', weights_only=False)['state_dict']


@pytest.mark.slow
def test_sigterm_to_every_process_of_a_run(tool, small, started, tmp_path):
    options = small('classification', **EPOCHS, **{
        'train_dataloader.num_workers': 1, 'train_dataloader.persistent_workers': True})
    run = [sys.executable, 'tools/train.py', CONFIGS['classification'], '--no-validate']
    process = started(*run, '--work-dir', tmp_path / 'a', *options)
    wait_for(tmp_path / 'log', r'Epoch\(train\) \[2\]\[2/8\]', process)
    sent = time.monotonic()
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(timeout=60) == 75, (tmp_path / 'log').read_text()[-3000:]
    print(f'SIGTERM to exit: {time.monotonic() - sent:.1f} s')
    log = (tmp_path / 'log').read_text()
    assert 'SIGTERM ended the run in iteration' in log and 'Traceback' not in log
    interim, = (tmp_path / 'a').glob('iter_*.pth')
    assert fault_of(interim) is None
    tool('train.py', CONFIGS['classification'], '--no-validate', '--work-dir', tmp_path / 'a',
         '--resume', *options)
    tool('train.py', CONFIGS['classification'], '--no-validate', '--work-dir', tmp_path / 'b',
         *options)
    resumed, whole = weights_of(tmp_path / 'a'), weights_of(tmp_path / 'b')
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)


@pytest.mark.slow
def test_a_killed_rank_is_restarted(small, started, tmp_path):
    process = started(
        'bash', 'tools/dist_train.sh', CONFIGS['classification'], 2, '--work-dir', tmp_path / 'run',
        '--no-validate', *small('classification', **EPOCHS), MAX_RESTARTS='1', PORT=free_port())
    wait_for(tmp_path / 'log', r'Epoch\(train\) \[2\]\[2/4\]', process)
    rank, = (child for child in psutil.Process(process.pid).children(recursive=True)
             if any('train.py' in part for part in child.cmdline())
             and child.environ().get('RANK') == '1')
    rank.send_signal(signal.SIGKILL)
    assert process.wait(timeout=400) == 0, (tmp_path / 'log').read_text()[-3000:]
    log = (tmp_path / 'log').read_text()
    assert 'epoch_1.pth, the newest checkpoint that is whole' in log
    assert 'resumed epoch: 1, iter: 4' in log
    last = torch.load(tmp_path / 'run' / 'epoch_3.pth', weights_only=False)
    assert (last['meta']['epoch'], last['meta']['iter']) == (3, 12)
