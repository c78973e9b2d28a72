import errno
import shutil

import pytest
from mmengine.hooks import Hook
from mmengine.visualization import vis_backend

from ..toy import toy_runner

VISUALIZER = dict(type='Visualizer', vis_backends=[dict(type='mmhcnet.LocalVisBackend')])


def test_scalars_are_written(tmp_path):
    toy_runner(tmp_path, dict(max_epochs=2), visualizer=VISUALIZER).train()
    (file,) = tmp_path.rglob('scalars.json')
    assert len(file.read_text().splitlines()) == 2


def test_a_full_disk(tmp_path, monkeypatch):

    def dump(*args, **kwargs):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(vis_backend, 'dump', dump)
    runner = toy_runner(tmp_path, dict(max_epochs=2), visualizer=VISUALIZER)
    runner.train()
    assert runner.epoch == 2
    for backend in runner.visualizer._vis_backends.values():
        assert backend.failed


class Remove(Hook):
    def after_train_epoch(self, runner):
        if runner.epoch == 0:
            shutil.rmtree(runner.work_dir)


def test_a_folder_that_is_gone(tmp_path):
    runner = toy_runner(
        tmp_path / 'run',
        dict(max_epochs=3),
        visualizer=VISUALIZER,
        custom_hooks=[dict(type=Remove, priority='VERY_LOW')],
    )
    runner.train()
    # Checkpoints make their folder again.
    assert (tmp_path / 'run' / 'epoch_3.pth').exists()


def test_other_errors_are_not_hidden(tmp_path, monkeypatch):
    monkeypatch.setattr(vis_backend, 'dump', lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        toy_runner(tmp_path, dict(max_epochs=1), visualizer=VISUALIZER).train()
