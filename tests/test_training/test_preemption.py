import os
import signal

import pytest
import torch
from mmengine.hooks import Hook

from mmhcnet.checkpoints.files import fault_of
from mmhcnet.training.preemption import EXIT_PREEMPTED, PreemptionHook

from ..test_checkpoints.test_hook import Scores, validated
from ..toy import ToyDataset, toy_runner
from .test_loops import AVERAGED, LOOPS, SAVE, same, state_of


class Signal(Hook):
    """Sends SIGTERM to this process in the ``at``-th iteration of training or validation."""

    def __init__(self, at, stage='train'):
        self.at, self.stage = at, stage

    def _send(self, runner):
        if runner.iter == self.at:
            os.kill(os.getpid(), signal.SIGTERM)

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if self.stage == 'train':
            self._send(runner)

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        if self.stage == 'val':
            self._send(runner)


@pytest.fixture(autouse=True)
def default_action():
    yield
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def ended(runner, at, stage='train'):
    runner.register_hook(Signal(at, stage))
    runner.register_hook(PreemptionHook())
    with pytest.raises(SystemExit) as caught:
        runner.train()
    assert caught.value.code == EXIT_PREEMPTED == 75


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory):
    made = {}
    for length in LOOPS:
        folder = tmp_path_factory.mktemp('whole')
        toy_runner(folder, LOOPS[length], SAVE[length], **AVERAGED).train()
        made[length] = state_of(folder)
    return made


@pytest.mark.parametrize('length', LOOPS)
@pytest.mark.parametrize('at', [0, 7, 11, 17])
def test_saves_ends_and_goes_on_exactly(length, at, tmp_path, uninterrupted):
    """In the first iteration, within an epoch, in its last iteration, in the very last one."""
    settings = dict(train_cfg=LOOPS[length], checkpoint=SAVE[length], **AVERAGED)
    ended(toy_runner(tmp_path, dataset=ToyDataset(visits=tmp_path / 'first'), **settings), at)
    assert fault_of(tmp_path / f'iter_{at + 1}.pth') is None
    toy_runner(
        tmp_path, resume=True, dataset=ToyDataset(visits=tmp_path / 'second'), **settings
    ).train()
    assert same(state_of(tmp_path), uninterrupted[length])
    visits = [
        len((tmp_path / name).read_text().split()) if (tmp_path / name).exists() else 0
        for name in ('first', 'second')
    ]
    assert visits == [4 * (at + 1), 4 * (17 - at)]


def test_the_interim_checkpoint_goes_when_the_next_one_stands(tmp_path):
    ended(toy_runner(tmp_path), 8)
    assert sorted(p.name for p in tmp_path.glob('*.pth')) == ['epoch_1.pth', 'iter_9.pth']
    toy_runner(tmp_path, resume=True).train()
    assert sorted(p.name for p in tmp_path.glob('*.pth')) == [
        'epoch_1.pth',
        'epoch_2.pth',
        'epoch_3.pth',
    ]


def test_with_workers(tmp_path):
    """The signal goes to every process, as Slurm sends it."""
    runner = toy_runner(tmp_path, workers=2)

    class All(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            if runner.iter == 3:
                for child in torch.multiprocessing.active_children():
                    os.kill(child.pid, signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGTERM)

    runner.register_hook(All())
    ended(runner, -1)
    assert fault_of(tmp_path / 'iter_4.pth') is None


def test_in_a_validation(tmp_path):
    runner = validated(tmp_path, [0.1, 0.2])
    ended(runner, 12, 'val')
    assert sorted(p.name for p in tmp_path.glob('*.pth')) == [
        'best_score_epoch_1.pth',
        'epoch_2.pth',
    ]


SCORED = dict(
    val_cfg=dict(),
    val_dataloader=dict(
        batch_size=8,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=ToyDataset(),
    ),
)


def scored(folder, length, scores, **settings):
    """6 iterations an epoch; a validation, and the checkpoint before it, after every 6."""
    train_cfg, save = dict(
        epochs=(dict(max_epochs=2, val_interval=1), dict()),
        iterations=(dict(max_iters=12, val_interval=6), dict(by_epoch=False, interval=6)),
    )[length]
    runner = toy_runner(
        folder,
        train_cfg,
        checkpoint=dict(save, max_keep_ckpts=1, save_best='score', rule='greater'),
        val_evaluator=[Scores(scores)],
        **SCORED,
        **settings,
    )
    runner.model.val_step = lambda data: [0]
    return runner


def best_of(folder):
    (path,) = folder.glob('best_*.pth')
    return torch.load(path, weights_only=True)['message_hub']['runtime_info']['best_score']


@pytest.mark.parametrize('length', ['epochs', 'iterations'])
@pytest.mark.parametrize('at, stage', [(5, 'train'), (11, 'train'), (6, 'val'), (12, 'val')])
def test_a_validation_that_was_due_is_made_up_for(tmp_path, length, at, stage):
    done = 0 if at < 7 else 1
    ended(scored(tmp_path, length, [0.1, 0.5]), at, stage)
    left = [0.1, 0.5][done:]
    # The last one is, too, of a run that has nothing left to train.
    scored(tmp_path, length, left, resume=True).train()
    assert best_of(tmp_path) == 0.5
    assert len(list(tmp_path.glob('best_*.pth'))) == 1


@pytest.mark.parametrize('length', ['epochs', 'iterations'])
def test_a_validation_with_a_new_best_is_not_repeated(tmp_path, length):
    scored(tmp_path, length, [0.1, 0.5]).train()
    # No score is left.
    scored(tmp_path, length, [], resume=True).train()


def test_nothing_without_a_signal(tmp_path):
    runner = toy_runner(tmp_path, dict(max_epochs=1))
    runner.register_hook(PreemptionHook())
    runner.train()
    assert [p.name for p in tmp_path.glob('*.pth')] == ['epoch_1.pth']
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.fixture
def own_handler():
    def handler(number, frame):
        raise KeyboardInterrupt('the handler of the program around')

    before = signal.signal(signal.SIGTERM, handler)
    yield handler
    signal.signal(signal.SIGTERM, before)


def test_the_former_handler_is_back(tmp_path, own_handler):
    runner = toy_runner(tmp_path / 'a', dict(max_epochs=1))
    runner.register_hook(PreemptionHook())
    runner.train()
    assert signal.getsignal(signal.SIGTERM) is own_handler
    ended(toy_runner(tmp_path / 'b', dict(max_epochs=1)), 2)
    assert signal.getsignal(signal.SIGTERM) is own_handler


def test_a_second_signal_goes_to_the_former_handler(tmp_path, own_handler):
    runner = toy_runner(tmp_path, dict(max_epochs=1))
    runner.register_hook(PreemptionHook())
    runner.register_hook(Signal(2))
    runner.register_hook(Signal(2))
    with pytest.raises(KeyboardInterrupt, match='of the program around'):
        runner.train()


def test_a_signal_that_was_ignored_ends_the_process_the_second_time(tmp_path):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    hook = PreemptionHook()
    hook.before_train(None)
    hook._receive(signal.SIGTERM, None)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    hook.after_train(None)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


def test_unknown_signal():
    with pytest.raises(KeyError, match='SIGFOO'):
        PreemptionHook(signals=['SIGFOO'])
