import errno
import logging
import os
import shutil
from collections import OrderedDict

import pytest
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.visualization import vis_backend

from mmhcnet.training.tolerant_logs import tolerate_errors

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


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='needs /dev/full')
def test_a_log_file_on_a_full_disk(capsys, monkeypatch):
    # The newest logger is everybody's, and this one cannot be written to.
    monkeypatch.setattr(MMLogger, '_instance_dict', OrderedDict())
    logger = MMLogger.get_instance('on a full disk', log_file='/dev/full')
    tolerate_errors(logger)
    for i in range(3):
        logger.info(f'line {i}')
    said = capsys.readouterr()
    assert said.err == ''
    assert [said.out.count(f'line {i}') for i in range(3)] == [1, 1, 1]
    assert said.out.count('Not all lines of this log are written to /dev/full') == 1
    # What is no error of the disk is shown as before.
    logger.info('%d', 'text')
    assert 'TypeError' in capsys.readouterr().err
    for handler in logger.handlers:
        if isinstance(handler, logging.FileHandler):
            with pytest.raises(OSError):
                handler.close()
