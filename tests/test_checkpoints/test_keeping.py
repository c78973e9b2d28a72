"""Which checkpoints stay, and that nothing of another run goes."""

import hashlib
import json
import os
import re
import shutil
import sys

import pytest
import torch
from mmengine.hooks import Hook

from mmhcnet.checkpoints.files import (
    CheckpointBackend,
    FolderInUse,
    change_record,
    lock_folder,
    read_record,
    record_of,
)
from mmhcnet.checkpoints.keeping import kept
from mmhcnet.errors import UserError

from ..processes import Started
from ..toy import toy_runner


@pytest.mark.parametrize(
    'steps, number, proved, stay',
    [
        ([1, 2, 3, 4], 2, {1, 2, 3, 4}, [3, 4]),
        ([1, 2, 3, 4], 2, {1, 2, 3}, [3, 4]),
        ([1, 2, 3, 4], 1, {1, 2, 3}, [3, 4]),
        ([1, 2, 3, 4], 1, {1}, [1, 2, 4]),
        ([1, 2, 3, 4], 1, set(), [1, 2, 4]),
        ([1, 2, 3, 4], 2, {1, 2}, [2, 3, 4]),
        ([1, 2, 3, 4], -1, set(), [1, 2, 3, 4]),
        ([1, 2, 3], 5, set(), [1, 2, 3]),
        ([], 1, set(), []),
    ],
)
def test_kept(steps, number, proved, stay):
    assert kept(steps, number, proved.__contains__) == stay


def test_a_step_is_proved_sooner_or_later():
    """However often a run saves: a step is proved 10 steps later, if it is still there."""
    for interval in (1, 3, 7, 10, 11, 25):
        steps = []
        for step in range(interval, 200, interval):
            steps = kept([*steps, step], 1, lambda other: step - other >= 10)
            assert len(steps) <= 3 and steps[-1] == step
            assert min(steps) >= step - 20 - 2 * interval


class Ruin(Hook):
    """One step that ruins the weights, then data that gives no finite loss."""

    priority = 'HIGHEST'

    def __init__(self, at, factor=1e12, until=10**9):
        self.at, self.factor, self.until = at, factor, until

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if self.at < runner.iter < self.until:
            data_batch['inputs'] = [point * float('nan') for point in data_batch['inputs']]

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter == self.at:
            with torch.no_grad():
                for weight in runner.model.parameters():
                    weight.fill_(self.factor)


def largest(path):
    weights = torch.load(path, weights_only=True)['state_dict']
    return max(float(value.abs().max()) for value in weights.values())


def run(folder, interval, at, **settings):
    ruin = settings.pop('ruin', dict(type=Ruin, at=at))
    return toy_runner(
        folder,
        train_cfg=dict(max_iters=60),
        checkpoint=dict(by_epoch=False, interval=interval, max_keep_ckpts=1),
        custom_hooks=[ruin, dict(type='mmhcnet.FiniteHook')],
        **settings,
    )


@pytest.mark.parametrize('at', [30, 34])
@pytest.mark.parametrize('interval', [1, 2, 5, 7, 30])
def test_a_ruinous_step_replaces_no_good_checkpoint(tmp_path, interval, at):
    with pytest.raises(
        UserError, match='10 iterations in a row.*--resume goes on from (.*), which is from before'
    ) as caught:
        run(tmp_path, interval, at).train()
    named = re.search('goes on from (.*), which', str(caught.value))[1]
    assert largest(named) < 1e6
    # The message is true.
    resumed = run(tmp_path, interval, 10**9, resume=True)
    resumed.call_hook('before_run')
    assert resumed._load_from == named
    resumed = run(tmp_path, interval, 10**9, resume=True)
    resumed.train()
    assert largest(tmp_path / 'iter_60.pth') < 1e6
    assert int(re.search(r'(\d+)\.pth', named)[1]) >= at - 10 - 2 * interval


def test_weights_that_are_not_finite_are_not_written(tmp_path):
    runner = run(tmp_path, 10, 0, ruin=dict(type=Ruin, at=33, factor=float('nan')))
    with pytest.raises(UserError, match='iter_20.pth, which is from before'):
        runner.train()
    assert not (tmp_path / 'iter_40.pth').exists()


def test_steps_skipped_for_a_while(tmp_path):
    run(tmp_path, 10, 0, ruin=dict(type=Ruin, at=25, factor=0.1, until=31)).train()
    assert sorted(path.name for path in tmp_path.glob('iter*.pth')) == ['iter_60.pth']


def digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob('*')
        if path.is_file()
    }


BEST = dict(max_keep_ckpts=1, save_best='score', rule='greater')


class Score(Hook):
    """In place of a validation: a score that rises."""

    def after_train_epoch(self, runner):
        for hook in runner.hooks:
            if hasattr(hook, 'after_val_epoch') and hasattr(hook, 'save_best'):
                runner.train_loop._epoch += 1
                hook.after_val_epoch(runner, dict(score=float(runner.epoch)))
                runner.train_loop._epoch -= 1

    priority = 'LOWEST'


def scored(folder, epochs, **settings):
    return toy_runner(
        folder,
        train_cfg=dict(max_epochs=epochs),
        checkpoint=BEST,
        custom_hooks=[dict(type=Score)],
        **settings,
    )


@pytest.mark.parametrize('interim', [True, False])
def test_a_resumed_copy_leaves_the_original_as_it_is(tmp_path, interim):
    scored(tmp_path / 'a', 2).train()
    if interim:
        content = torch.load(tmp_path / 'a' / 'epoch_2.pth', weights_only=True)
        content['message_hub']['runtime_info']['interim_ckpt'] = str(tmp_path / 'a' / 'iter_7.pth')
        (tmp_path / 'a' / 'iter_7.pth').write_bytes(b'x')
        torch.save(content, tmp_path / 'a' / 'epoch_2.pth')
        record_of(tmp_path / 'a' / 'epoch_2.pth').unlink()
    before = digests(tmp_path / 'a')
    shutil.copytree(tmp_path / 'a', tmp_path / 'b')
    scored(tmp_path / 'b', 4, resume=True).train()
    assert digests(tmp_path / 'a') == before
    names = {path.name for path in (tmp_path / 'b').glob('*.pth')}
    assert {'epoch_4.pth', 'best_score_epoch_4.pth'} <= names
    # The copy's former best is its own.
    assert 'best_score_epoch_2.pth' not in names


def test_a_kill_before_the_former_best_is_removed(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(CheckpointBackend, 'remove', lambda self, path: None)
        scored(tmp_path, 2).train()
    assert len(list(tmp_path.glob('best_*.pth'))) == 2
    foreign = [
        tmp_path / name
        for name in (
            'best_score_epoch_0.pth',
            'best_other_epoch_1.pth',
            'best_score_iter_1.pth',
            'best_score_epoch_9.pth',
        )
    ]
    for path in foreign:
        path.write_bytes(b'x')
    # Of this run, and later than the checkpoint that it goes on from.
    change_record(foreign[-1], run=read_record(tmp_path / 'epoch_2.pth')['run'])
    runner = scored(tmp_path, 2, resume=True, load_from=str(tmp_path / 'epoch_2.pth'))
    runner.train()
    assert {path.name for path in tmp_path.glob('best_*.pth')} == {
        'best_score_epoch_2.pth',
        *(path.name for path in foreign),
    }


def test_a_run_resumed_from_another_folder(tmp_path):
    scored(tmp_path / 'a', 2).train()
    scored(tmp_path / 'b', 1, seed=5).train()
    shutil.copy(tmp_path / 'b' / 'epoch_1.pth', tmp_path / 'b' / 'epoch_2.pth')
    originals = {folder: digests(tmp_path / folder) for folder in 'ab'}
    # Into the folder of a third run, whose files have the same names.
    scored(tmp_path / 'b', 4, resume=True, load_from=str(tmp_path / 'a' / 'epoch_2.pth')).train()
    assert digests(tmp_path / 'a') == originals['a']
    after = digests(tmp_path / 'b')
    for name, digest in originals['b'].items():
        assert '.pth' not in name or after.get(name) == digest, name


def test_a_crafted_checkpoint_removes_nothing(tmp_path):
    scored(tmp_path / 'a', 1).train()
    (tmp_path / 'other').mkdir()
    target = tmp_path / 'other' / 'epoch_1.pth'
    target.write_bytes(b'precious')
    (tmp_path / 'b').mkdir()
    foreign = [tmp_path / 'b' / name for name in ('epoch_1.pth', 'best_x.pth', 'iter_3.pth', '7')]
    for path in foreign:
        path.write_bytes(b'precious')
    content = torch.load(tmp_path / 'a' / 'epoch_1.pth', weights_only=True)
    content['message_hub']['runtime_info'].update(
        interim_ckpt=str(target),
        best_ckpt=str(target),
        last_ckpt=str(target),
        run=None,
        keep_ckpt_ids=[1, '../other/epoch_1.pth', -1, 10**9, None, 7],
        best_score=-1.0,
    )
    torch.save(content, tmp_path / 'c.pth')
    scored(tmp_path / 'b', 4, resume=True, load_from=str(tmp_path / 'c.pth')).train()
    assert target.read_bytes() == b'precious'
    assert all(path.read_bytes() == b'precious' for path in foreign)


def test_records_name_the_run(tmp_path):
    toy_runner(tmp_path / 'a', train_cfg=dict(max_epochs=1)).train()
    toy_runner(tmp_path / 'b', train_cfg=dict(max_epochs=1)).train()
    toy_runner(tmp_path / 'a', train_cfg=dict(max_epochs=2), resume=True).train()
    names = [
        read_record(tmp_path / path)['run']
        for path in ('a/epoch_1.pth', 'a/epoch_2.pth', 'b/epoch_1.pth')
    ]
    assert names[0] == names[1] != names[2]


def test_a_second_run_in_the_same_folder_stops(tmp_path):
    code = (
        'import sys, time; from mmhcnet.checkpoints.files import lock_folder; '
        'held = lock_folder(sys.argv[1]); print("held", flush=True); time.sleep(600)'
    )
    with Started([sys.executable, '-c', code, tmp_path]) as started:
        started.wait_for('^held\n')
        pid = started.process.pid
        with pytest.raises(FolderInUse, match=f'process {pid} on '):
            lock_folder(tmp_path)
        with pytest.raises(
            UserError, match=f'another run .process {pid} on .* give another --work-dir'
        ):
            toy_runner(tmp_path, train_cfg=dict(max_epochs=1)).train()
        assert not list(tmp_path.glob('*.pth'))
    # A killed run holds nothing.
    toy_runner(tmp_path, train_cfg=dict(max_epochs=1)).train()
    assert os.listdir(tmp_path)


@pytest.mark.parametrize('content', ['', '[]', '{"run": 3}', 'x', json.dumps(dict(size='a'))])
def test_a_record_of_other_contents(tmp_path, content):
    record_of(tmp_path / 'a.pth').write_text(content)
    assert isinstance(read_record(tmp_path / 'a.pth'), dict)
