"""Runs whose processes are killed, as a user starts them."""

import json
import os
import re
import shutil
import signal
import sys
import time

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from mmhcnet.checkpoints.files import fault_of

from ..processes import Started
from .conftest import CONFIGS, ROOT
from .test_train_and_test import free_port, losses

EPOCHS = {'train_cfg.max_epochs': 3, 'train_dataloader.batch_size': 8, 'randomness.seed': 1}


def start(*command, **env):
    """Start a tool, as a user does."""
    env = {**os.environ, 'PYTHON': sys.executable, 'CUDA_VISIBLE_DEVICES': '', **env}
    return Started(command, ROOT, env)


def weights_of(folder):
    return torch.load(folder / 'epoch_3.pth', weights_only=False)['state_dict']


@pytest.mark.slow
def test_sigterm_to_every_process_of_a_run(tool, small, tmp_path):
    options = small(
        'classification',
        **EPOCHS,
        **{'train_dataloader.num_workers': 1, 'train_dataloader.persistent_workers': True},
    )
    run = [sys.executable, 'tools/train.py', CONFIGS['classification'], '--no-validate']
    with start(*run, '--work-dir', tmp_path / 'a', *options) as started:
        started.wait_for(r'Epoch\(train\) \[2\]\[2/8\]')
        sent = time.monotonic()
        os.killpg(started.process.pid, signal.SIGTERM)
        assert started.wait(60) == 75, started.output[-3000:]
        print(f'SIGTERM to exit: {time.monotonic() - sent:.1f} s')
        log = started.output
    assert 'SIGTERM ended the run in iteration' in log and 'Traceback' not in log
    (interim,) = (tmp_path / 'a').glob('iter_*.pth')
    assert fault_of(interim) is None
    tool(
        'train.py',
        CONFIGS['classification'],
        '--no-validate',
        '--work-dir',
        tmp_path / 'a',
        '--resume',
        *options,
    )
    tool(
        'train.py',
        CONFIGS['classification'],
        '--no-validate',
        '--work-dir',
        tmp_path / 'b',
        *options,
    )
    resumed, whole = weights_of(tmp_path / 'a'), weights_of(tmp_path / 'b')
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)


@pytest.mark.slow
def test_a_killed_rank_is_restarted(small, tmp_path):
    command = start(
        'bash',
        'tools/dist_train.sh',
        CONFIGS['classification'],
        2,
        '--work-dir',
        tmp_path / 'run',
        '--no-validate',
        *small('classification', **EPOCHS),
        MAX_RESTARTS='1',
        PORT=free_port(),
    )
    with command as started:
        started.wait_for(r'Epoch\(train\) \[2\]\[2/4\]')
        (rank,) = (
            child
            for child in psutil.Process(started.process.pid).children(recursive=True)
            if any('train.py' in part for part in child.cmdline())
            and child.environ().get('RANK') == '1'
        )
        rank.send_signal(signal.SIGKILL)
        assert started.wait() == 0, started.output[-3000:]
        log = started.output
    assert 'epoch_1.pth, the newest intact checkpoint' in log
    assert 'resumed epoch: 1, iter: 4' in log
    last = torch.load(tmp_path / 'run' / 'epoch_3.pth', weights_only=False)
    assert (last['meta']['epoch'], last['meta']['iter']) == (3, 12)


@pytest.mark.slow
def test_training_goes_on_past_bad_scenes(tool, small, digits, tmp_path):
    root = tmp_path / 'digits'
    shutil.copytree(digits, root)
    options = {
        'train_dataloader.dataset.data_root': str(root / 'segmentation'),
        'default_hooks.data_faults.max_share': 1,
        'train_cfg.max_iters': 4,
    }
    images = sorted((root / 'segmentation/images/training').iterdir())
    maps = sorted((root / 'segmentation/annotations/training').iterdir())
    images[0].write_bytes(images[0].read_bytes()[:5000])
    images[1].write_bytes(b'')
    images[2].write_text('<html>not found</html>')
    maps[3].unlink()
    Image.new('L', (64, 128)).save(maps[4])
    Image.new('L', (128, 128), 77).save(maps[5])
    log = tool(
        'train.py',
        CONFIGS['segmentation'],
        '--work-dir',
        tmp_path / 'seg',
        '--no-validate',
        *small('segmentation', **options),
    ).stdout
    for i, reason in enumerate(
        [
            '(cut short|rror)',
            'is empty',
            'rror',
            'FileNotFoundError',
            'is 64x128 and the image 128x128',
            'has the id 77, and there are 11 classes',
        ]
    ):
        assert re.search(
            rf'Cannot read {images[i]}: .*{reason}.* Another sample takes its place', log
        ), (i, log[-3000:])
    assert re.search(r'\d+ samples of this epoch could not be read', log)


@pytest.mark.slow
def test_training_goes_on_past_bad_boxes(tool, small, digits, tmp_path):
    root = tmp_path / 'digits'
    shutil.copytree(digits, root)
    file = root / 'detection/annotations/instances_train2017.json'
    content = json.loads(file.read_text())
    first, second = content['annotations'][:2]
    first['bbox'], second['bbox'] = [500, 10, 20, 20], [10, 10, 0, 20]
    emptied = content['images'][5]['id']
    content['annotations'] = [a for a in content['annotations'] if a['image_id'] != emptied]
    file.write_text(json.dumps(content))
    log = tool(
        'train.py',
        CONFIGS['detection'],
        '--work-dir',
        tmp_path / 'det',
        '--no-validate',
        *small(
            'detection', **{'train_dataloader.dataset.data_root': str(root / 'detection') + '/'}
        ),
    ).stdout
    assert f'2 boxes of {file} are without area or outside their image, and are left out' in log
    assert 'bbox [500, 10, 20, 20] in an image of 128x128' in log
    assert losses(log) and np.isfinite(losses(log)).all()


@pytest.mark.slow
def test_a_checkpoint_without_its_head_is_not_tested(tool, small, tmp_path):
    config = CONFIGS['classification']
    tool(
        'train.py',
        config,
        '--work-dir',
        tmp_path / 'run',
        '--no-validate',
        *small('classification', **{'train_cfg.max_epochs': 1, 'train_cfg.val_interval': 1}),
    )
    checkpoint = torch.load(tmp_path / 'run/epoch_1.pth', weights_only=False)
    checkpoint['state_dict'] = {
        key: value for key, value in checkpoint['state_dict'].items() if key.startswith('backbone.')
    }
    torch.save(checkpoint, tmp_path / 'backbone.pth')
    done = tool(
        'test.py',
        config,
        tmp_path / 'backbone.pth',
        '--work-dir',
        tmp_path / 'test',
        *small('classification'),
        fails=True,
    )
    assert 'weights are not in it, as head.fc.bias' in done.stderr
    assert 'Traceback' not in done.stderr
