"""Several ranks do what one process does, on one machine and on two hosts."""

import os
import shutil
import sys
import uuid
from contextlib import ExitStack

import pytest
import torch
from mmengine.config import Config

from ..processes import Started, run
from .conftest import CONFIGS, ROOT

# Of the largest weight: float32 sums over 16 images, in one order or in two halves, for 8 steps.
TOLERANCE = 1e-5


@pytest.fixture
def config(digits, tmp_path):
    """A classifier without random augmentation, which differs from rank to rank.

    And with SGD: Adam divides by the gradient's own size, so where that should be zero it takes
    steps in the direction of the rounding.
    """
    cfg = Config.fromfile(ROOT / CONFIGS['classification'])
    cfg.train_dataloader.dataset.pipeline = cfg.val_dataloader.dataset.pipeline
    cfg.optim_wrapper.optimizer = dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=0.05)
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
        loader.dataset.data_root = str(digits / 'classification')
    cfg.train_cfg.update(max_epochs=2, val_interval=2)
    cfg.randomness = dict(seed=3)
    path = tmp_path / 'config.py'
    cfg.dump(path)
    return path


def weights(folder, epoch=2):
    return torch.load(folder / f'epoch_{epoch}.pth', weights_only=False)['state_dict']


def batch(size):
    return ['--no-validate', '--cfg-options', f'train_dataloader.batch_size={size}']


@pytest.mark.slow
def test_two_ranks_are_one_process(tool, config, tmp_path):
    env = dict(CUDA_VISIBLE_DEVICES='')
    tool('train.py', config, '--work-dir', tmp_path / 'one', *batch(16), **env)
    tool(
        'train.py',
        config,
        '--work-dir',
        tmp_path / 'two',
        *batch(8),
        ranks=2,
        **env,
    )
    one, two = weights(tmp_path / 'one'), weights(tmp_path / 'two')
    start = weights(tmp_path / 'one', 1)
    assert any(not torch.equal(start[key], one[key]) for key in one)
    for key, value in one.items():
        difference = (value - two[key]).abs().max() / value.abs().max().clamp(min=1)
        assert difference < TOLERANCE, (key, difference)

    # Two ranks that go on from the first epoch end as two that were not interrupted.
    resumed = tmp_path / 'resumed'
    tool(
        'train.py',
        config,
        '--work-dir',
        resumed,
        '--resume',
        tmp_path / 'two' / 'epoch_1.pth',
        *batch(8),
        ranks=2,
        **env,
    )
    assert all(torch.equal(value, two[key]) for key, value in weights(resumed).items())


def netns(*args):
    return run(['ip', *args])


@pytest.fixture
def hosts():
    """Two network namespaces joined by a cable: each has its own addresses and ports."""
    if os.geteuid() or not shutil.which('ip'):
        pytest.skip('two hosts are network namespaces, which need root and iproute2')
    mark = uuid.uuid4().hex[:6]
    names = [f'mmh{mark}{i}' for i in range(2)]
    if netns('netns', 'add', names[0]).returncode:
        pytest.skip('no network namespace can be made on this machine')
    try:
        netns('netns', 'add', names[1])
        netns(
            'link',
            'add',
            f'v{mark}0',
            'netns',
            names[0],
            'type',
            'veth',
            'peer',
            'name',
            f'v{mark}1',
            'netns',
            names[1],
        )
        for i, name in enumerate(names):
            for command in (
                ['addr', 'add', f'10.213.7.{i + 1}/24', 'dev', f'v{mark}{i}'],
                ['link', 'set', f'v{mark}{i}', 'up'],
                ['link', 'set', 'lo', 'up'],
            ):
                done = netns('-n', name, *command)
                if done.returncode:
                    pytest.skip(f'no cable between two namespaces here: {done.stderr}')
        yield [(name, f'v{mark}{i}') for i, name in enumerate(names)]
    finally:
        for name in names:
            netns('netns', 'del', name)


@pytest.mark.slow
def test_two_hosts(hosts, config, tmp_path):
    train = ['bash', 'tools/dist_train.sh', config, 1, '--work-dir', tmp_path / 'run', *batch(8)]
    with ExitStack() as stack:
        ranks = []
        for rank, (name, interface) in enumerate(hosts):
            env = {
                **os.environ,
                'PYTHON': sys.executable,
                'NNODES': '2',
                'NODE_RANK': str(rank),
                'MASTER_ADDR': '10.213.7.1',
                'PORT': '29555',
                'GLOO_SOCKET_IFNAME': interface,
                'CUDA_VISIBLE_DEVICES': '',
            }
            command = ['ip', 'netns', 'exec', name, *train]
            ranks.append(stack.enter_context(Started(command, ROOT, env)))
        for rank in ranks:
            assert rank.wait() == 0, rank.output[-3000:]
    # 64 images: 4 iterations of twice 8.
    last = torch.load(tmp_path / 'run' / 'epoch_2.pth', weights_only=False)
    assert last['meta']['iter'] == 8
