from argparse import Namespace

import pytest
from mmengine.config import Config
from mmengine.logging import MMLogger, print_log
from mmengine.registry import RUNNERS

from mmhcnet.cli.main import run

from ..toy import toy_runner


@RUNNERS.register_module(force=True)
class ToyMain:
    """Builds the toy runner from a config."""

    @staticmethod
    def from_cfg(cfg):
        return toy_runner(cfg.work_dir, dict(max_epochs=1), log_level='INFO')


@pytest.fixture
def started(tmp_path):
    """Run a tool whose parts log and fail as they are told; returns its log file's text."""

    def start(config=lambda: None, training=lambda: None, runner='ToyMain', **args):
        arguments = Namespace(
            config=str(tmp_path / 'own.py'),
            work_dir=str(tmp_path / 'run'),
            local_rank=0,
            trust_checkpoint=False,
            launcher='none',
            **dict(dict(traceback=False), **args),
        )
        (tmp_path / 'own.py').write_text('a = 1')

        def build_config(args):
            print_log('said while the config is built', logger='current')
            config()
            return Config(dict(runner_type=runner, work_dir=args.work_dir, launcher='none'))

        def train(args, cfg, build_runner):
            print_log('said before the runner', logger='current')
            runner = build_runner()
            print_log('said with the runner', logger='current')
            training()
            runner.train()

        before = len(MMLogger.get_current_instance().handlers)
        logger = MMLogger.get_current_instance()
        try:
            run(lambda: arguments, build_config, train)
        finally:
            assert len(logger.handlers) == before
        return '\n'.join(path.read_text() for path in (tmp_path / 'run').rglob('*.log'))

    return start


def test_what_is_said_before_the_runner_is_in_its_log_file(started):
    log = started()
    for line in ('while the config is built', 'before the runner', 'with the runner'):
        assert log.count(f'said {line}') == 1
    assert log.index('is built') < log.index('before the') < log.index('with the')


def test_where_the_traceback_goes(started, tmp_path, monkeypatch):
    def fail():
        raise ValueError('bad')

    monkeypatch.setattr('tempfile.tempdir', str(tmp_path))
    with pytest.raises(SystemExit, match=rf'^Error: bad \(the traceback is in {tmp_path}/mmhcnet'):
        started(config=fail)
    with pytest.raises(SystemExit, match=rf'^Error: bad \(the traceback is in {tmp_path}/run/err'):
        started(training=fail)
    assert 'in fail' in (tmp_path / 'run/error.log').read_text()


def test_a_runner_that_is_not_registered(started):
    with pytest.raises(
        SystemExit, match="^Error: runner_type 'Nosuch' is not in the registry.*cust"
    ):
        started(runner='Nosuch')


def test_the_whole_traceback_where_it_is_asked_for(started, tmp_path):
    def fail():
        raise ValueError('bad')

    with pytest.raises(ValueError, match='bad'):
        started(training=fail, traceback=True)
    assert 'in fail' in (tmp_path / 'run/error.log').read_text()
