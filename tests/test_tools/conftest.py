import os
import sys
from pathlib import Path

import pytest

from mmhcnet.datasets.digits import write_digits

from ..forked import run_forked
from ..processes import run

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = dict(
    classification='configs/classification/hcnet_digits.py',
    detection='configs/detection/mask_rcnn_hcnet_digits.py',
    segmentation='configs/segmentation/upernet_hcnet_digits.py',
)


@pytest.fixture(scope='session')
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data') / 'digits'
    write_digits(folder, images=(64, 20), scenes=(16, 4))
    return folder


@pytest.fixture
def tool():
    """Run a tool in a process of its own, as a user does; returns the finished process.

    With ``ranks`` it is run in so many that work together, without the script that starts them;
    with ``fresh`` no library has been imported before.
    """

    def tool(script, *args, fails=False, ranks=None, fresh=False, **env):
        path = ROOT / 'tools' / script
        env = {**os.environ, 'PYTHON': sys.executable, **env}
        if path.suffix == '.sh' or fresh:
            done = run([sys.executable if fresh else 'bash', path, *args], ROOT, env)
        elif ranks:
            # As torchrun.sh.
            done = run_forked(path, [*args, '--launcher', 'pytorch'], ROOT, env, ranks=ranks)
        else:
            done = run_forked(path, args, ROOT, env)
        if fails:
            assert done.returncode != 0, done.stdout
        else:
            assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done

    return tool


@pytest.fixture
def small(digits):
    """Options that point a digits config to the small set and shorten the run."""

    def options(task, **more):
        root = str(digits / task)
        opts = {
            'train_dataloader.dataset.data_root': root,
            'val_dataloader.dataset.data_root': root,
            'test_dataloader.dataset.data_root': root,
            'train_dataloader.num_workers': 0,
            'train_dataloader.persistent_workers': False,
            'val_dataloader.num_workers': 0,
            'val_dataloader.persistent_workers': False,
            'test_dataloader.num_workers': 0,
            'test_dataloader.persistent_workers': False,
            'default_hooks.logger.interval': 1,
        }
        if task == 'detection':
            truth = f'{root}/annotations/instances_val2017.json'
            opts.update({'val_evaluator.ann_file': truth, 'test_evaluator.ann_file': truth})
            # A detector that has hardly learned may not be sure of anything, and without a box
            # there is no mAP.
            opts['model.test_cfg.rcnn.score_thr'] = 0
        length = 'max_iters' if task == 'segmentation' else 'max_epochs'
        opts.update({f'train_cfg.{length}': 2, 'train_cfg.val_interval': 2})
        opts.update(more)
        return ['--cfg-options', *(f'{key}={value}' for key, value in opts.items())]

    return options
