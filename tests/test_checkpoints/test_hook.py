import errno
import os
import time

import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook

from mmhcnet.checkpoints import files
from mmhcnet.checkpoints.files import CheckpointBackend, fault_of, record_of
from mmhcnet.checkpoints.hook import CheckpointHook
from mmhcnet.checkpoints.locate import newest_intact
from mmhcnet.errors import UserError

from ..toy import ToyDataset, toy_runner

NAMES = ('epoch_{}.pth', 'iter_{}.pth')


def names(folder):
    return sorted(path.name for path in folder.glob('*.pth'))


def epoch_of(path):
    return torch.load(path, weights_only=False)['meta']['epoch']


def test_an_unknown_argument_is_refused_at_once():
    with pytest.raises(TypeError, match="unexpected keyword argument 'max_keep_ckpt'"):
        CheckpointHook(interval=1, max_keep_ckpt=3)


def test_keeps_the_newest_with_their_records(tmp_path):
    toy_runner(tmp_path, checkpoint=dict(max_keep_ckpts=2), train_cfg=dict(max_epochs=4)).train()
    assert names(tmp_path) == ['epoch_3.pth', 'epoch_4.pth']
    assert all(
        fault_of(path) is None and record_of(path).exists() for path in tmp_path.glob('*.pth')
    )
    assert not record_of(tmp_path / 'epoch_2.pth').exists()
    assert (tmp_path / 'last_checkpoint').read_text() == str(tmp_path / 'epoch_4.pth')


def test_the_old_one_goes_after_the_new_one_stands(tmp_path, monkeypatch):
    removed = []

    def remove(self, path):
        assert fault_of(tmp_path / 'epoch_2.pth') is None
        removed.append(os.path.basename(path))

    monkeypatch.setattr(CheckpointBackend, 'remove', remove)
    toy_runner(tmp_path, checkpoint=dict(max_keep_ckpts=1), train_cfg=dict(max_epochs=2)).train()
    assert removed == ['epoch_1.pth']


def test_a_kill_before_the_old_one_is_removed(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(CheckpointBackend, 'remove', lambda self, path: None)
        toy_runner(
            tmp_path, checkpoint=dict(max_keep_ckpts=1), train_cfg=dict(max_epochs=2)
        ).train()
    assert names(tmp_path) == ['epoch_1.pth', 'epoch_2.pth']
    toy_runner(tmp_path, checkpoint=dict(max_keep_ckpts=1), resume=True).train()
    assert names(tmp_path) == ['epoch_3.pth']


def test_a_killed_writers_file_is_removed(tmp_path):
    (tmp_path / '.epoch_1.pth.tmp').write_text('half')
    toy_runner(tmp_path, train_cfg=dict(max_epochs=1)).train()
    assert not (tmp_path / '.epoch_1.pth.tmp').exists()


def test_resumes_from_the_newest_intact_one(tmp_path):
    toy_runner(tmp_path).train()
    raw = (tmp_path / 'epoch_3.pth').read_bytes()
    (tmp_path / 'epoch_3.pth').write_bytes(raw[:-100])
    (tmp_path / 'epoch_2.pth').write_bytes(b'')
    runner = toy_runner(tmp_path, train_cfg=dict(max_epochs=4), resume=True)
    lines = []
    runner.logger.warning = lines.append
    runner.train()
    assert any('epoch_3.pth: it has' in line for line in lines)
    assert any('epoch_2.pth: it has 0 bytes' in line for line in lines)
    assert epoch_of(tmp_path / 'epoch_4.pth') == 4
    # Epochs 2 and 3 have been trained again.
    assert fault_of(tmp_path / 'epoch_3.pth') is None


def test_newest_by_time_and_only_checkpoints_of_the_run(tmp_path):
    for i, name in enumerate(['epoch_9.pth', 'iter_1.pth', 'best_top1_epoch_9.pth', 'my.pth']):
        torch.save(dict(i=i), tmp_path / name)
        os.utime(tmp_path / name, (time.time() + i,) * 2)
    assert newest_intact(tmp_path, NAMES) == (tmp_path / 'iter_1.pth', [])


def test_a_dangling_link_is_passed_over(tmp_path):
    torch.save(dict(i=1), tmp_path / 'epoch_1.pth')
    (tmp_path / 'epoch_2.pth').symlink_to(tmp_path / 'nowhere')
    path, skipped = newest_intact(tmp_path, NAMES)
    assert path == tmp_path / 'epoch_1.pth' and 'cannot be read' in skipped[0]


def test_nothing_to_resume_starts_anew(tmp_path):
    toy_runner(tmp_path, train_cfg=dict(max_epochs=1), resume=True).train()
    assert names(tmp_path) == ['epoch_1.pth']


def test_only_damaged_ones_do_not_start_anew(tmp_path):
    (tmp_path / 'epoch_7.pth').write_text('?')
    with pytest.raises(UserError, match='none of the 1 checkpoints .* is intact .*from scratch'):
        toy_runner(tmp_path, resume=True).train()


def test_a_given_path_is_checked(tmp_path):
    (tmp_path / 'mine.pth').write_text('?')
    with pytest.raises(UserError, match="cannot resume from '.*mine.pth': .* Leave the path out"):
        toy_runner(tmp_path, load_from=str(tmp_path / 'mine.pth'), resume=True).train()


def test_last_checkpoint_is_not_trusted(tmp_path):
    toy_runner(tmp_path).train()
    (tmp_path / 'last_checkpoint').write_text('/nowhere/epoch_9.pth')
    runner = toy_runner(tmp_path, train_cfg=dict(max_epochs=4), resume=True)
    runner.train()
    assert runner.epoch == 4


class Probe(Hook):
    """A hook after the checkpoint hook."""

    priority = 'LOWEST'

    def __init__(self, look):
        self.look = look

    def after_train_epoch(self, runner):
        self.look()


@pytest.fixture
def full_disk(monkeypatch):
    """Let writing fail for files whose name is in the returned set."""
    full = set()
    original = files.write_file

    def write_file(path, content):
        if os.path.basename(path) in full:
            raise OSError(errno.ENOSPC, 'No space left on device')
        original(path, content)

    monkeypatch.setattr(files, 'write_file', write_file)
    return full


def errors_of(runner):
    lines = []
    runner.logger.error = lines.append
    return lines


def test_a_full_disk_does_not_stop_training(tmp_path, full_disk):
    full_disk.add('epoch_2.pth')
    runner = toy_runner(tmp_path, checkpoint=dict(max_keep_ckpts=1))
    lines = errors_of(runner)
    during = []
    runner.register_hook(Probe(lambda: during.append(names(tmp_path))))
    runner.train()
    assert len(lines) == 1 and 'No space left on device' in lines[0] and 'free space' in lines[0]
    assert during == [['epoch_1.pth'], ['epoch_1.pth'], ['epoch_3.pth']]
    kept = torch.load(tmp_path / 'epoch_3.pth', weights_only=False)['message_hub']
    assert 2 not in kept['runtime_info']['keep_ckpt_ids']


def test_a_full_disk_at_the_end_is_an_error(tmp_path, full_disk):
    full_disk.add('epoch_3.pth')
    runner = toy_runner(tmp_path)
    errors_of(runner)
    with pytest.raises(UserError, match='has ended, but the checkpoint could not be written'):
        runner.train()
    assert newest_intact(tmp_path, NAMES)[0].name == 'epoch_2.pth'


class Scores(BaseMetric):
    """The scores given, one per validation."""

    def __init__(self, scores):
        super().__init__()
        self.scores = iter(scores)

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        return dict(score=next(self.scores))


def validated(work_dir, scores, epochs=None, **settings):
    runner = toy_runner(
        work_dir,
        train_cfg=dict(max_epochs=epochs or len(scores), val_interval=1),
        checkpoint=dict(max_keep_ckpts=1, save_best='score', rule='greater'),
        val_cfg=dict(),
        val_dataloader=dict(
            batch_size=8,
            num_workers=0,
            sampler=dict(type='DefaultSampler', shuffle=False),
            dataset=ToyDataset(),
        ),
        val_evaluator=[Scores(scores)],
        **settings,
    )
    runner.model.val_step = lambda data: [0]
    return runner


def test_the_best_one(tmp_path):
    validated(tmp_path, [0.1, 0.5, 0.3]).train()
    assert names(tmp_path) == ['best_score_epoch_2.pth', 'epoch_3.pth']
    assert all(fault_of(path) is None for path in tmp_path.glob('*.pth'))


def test_the_best_by_a_metric_that_nothing_reports(tmp_path, monkeypatch):
    runner = validated(tmp_path, [0.1])
    monkeypatch.setattr(Scores, 'compute_metrics', lambda self, results: dict(a=1, b=2))
    with pytest.raises(UserError, match="hook is 'score', and the validation reports 'a', 'b': "):
        runner.train()


def test_the_former_best_goes_after_the_new_one_stands(tmp_path, monkeypatch):
    original = CheckpointBackend.remove

    def remove(self, path):
        if os.path.basename(path).startswith('best'):
            assert path.endswith('epoch_1.pth')
            assert fault_of(tmp_path / 'best_score_epoch_2.pth') is None
        original(self, path)

    monkeypatch.setattr(CheckpointBackend, 'remove', remove)
    validated(tmp_path, [0.1, 0.5]).train()
    assert names(tmp_path) == ['best_score_epoch_2.pth', 'epoch_2.pth']


def test_a_full_disk_keeps_the_former_best(tmp_path, full_disk):
    full_disk.add('best_score_epoch_2.pth')
    runner = validated(tmp_path, [0.1, 0.5, 0.3])
    lines = errors_of(runner)
    runner.train()
    assert 'the best checkpoint could not be written' in lines[0]
    # 0.5 was not kept, so that 0.3 is the best after 0.1.
    assert names(tmp_path) == ['best_score_epoch_3.pth', 'epoch_3.pth']


def test_a_resumed_run_knows_the_best(tmp_path):
    validated(tmp_path, [0.4]).train()
    runner = validated(tmp_path, [0.3, 0.6], epochs=3, resume=True)
    runner.train()
    assert names(tmp_path) == ['best_score_epoch_3.pth', 'epoch_3.pth']


def test_another_optimizer(tmp_path):
    toy_runner(tmp_path, dict(max_epochs=1)).train()
    with pytest.raises(
        UserError, match="it is of another optimizer, without 'momentum'. Resume with the optimizer"
    ):
        toy_runner(
            tmp_path,
            resume=True,
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9)),
        ).train()


def test_a_checkpoint_without_optimizer_says_so(tmp_path):
    validated(tmp_path, [0.1]).train()
    runner = validated(
        tmp_path, [0.1, 0.2], resume=True, load_from=str(tmp_path / 'best_score_epoch_1.pth')
    )
    warned = []
    runner.logger.warning = warned.append
    runner.train()
    assert [line for line in warned if 'holds no state of the optimizer' in line]


def test_weights_that_are_not_finite_are_passed_over(tmp_path):
    """As another program may have written them."""
    toy_runner(tmp_path, dict(max_epochs=1)).train()
    content = torch.load(tmp_path / 'epoch_1.pth', weights_only=True)
    content['state_dict']['body.0.bias'][2] = float('inf')
    torch.save(content, tmp_path / 'epoch_2.pth')
    path, skipped = newest_intact(tmp_path, NAMES)
    assert path == tmp_path / 'epoch_1.pth'
    assert skipped == [f"{tmp_path}/epoch_2.pth: its weight 'body.0.bias' is not finite"]
