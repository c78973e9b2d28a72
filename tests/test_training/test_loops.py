"""A run that is killed and resumed ends bit for bit like an uninterrupted one."""

import itertools
import runpy
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch
from mmengine.hooks import Hook

import mmhcnet
from mmhcnet.cli.config import load_config
from mmhcnet.cli.errors import import_task
from mmhcnet.errors import UserError

from ..toy import ToyDataset, toy_runner

LOOPS = dict(epochs=dict(max_epochs=3), iterations=dict(max_iters=18))
# 6 iterations an epoch.
SAVE = dict(
    epochs=dict(interval=1),
    iterations=dict(by_epoch=False, interval=4),
    within=dict(by_epoch=False, interval=4),
)
AVERAGED = dict(
    custom_hooks=[dict(type='EMAHook', momentum=0.1, update_buffers=True)],
    optim_wrapper=dict(
        optimizer=dict(type='SGD', lr=0.05, momentum=0.9), clip_grad=dict(max_norm=1.0)
    ),
    param_scheduler=[
        dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=5),
        dict(type='MultiStepLR', milestones=[1, 2], gamma=0.5),
        dict(type='CosineAnnealingMomentum', by_epoch=False, T_max=18),
    ],
)


class Killed(BaseException):
    pass


class Kill(Hook):
    """Dies in the ``at``-th iteration, before anything of it is saved."""

    priority = 'VERY_HIGH'

    def __init__(self, at):
        self.at = at

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter == self.at:
            raise Killed


def state_of(folder):
    newest = (folder / 'last_checkpoint').read_text()
    checkpoint = torch.load(newest, weights_only=False)
    return {
        key: checkpoint[key]
        for key in ('state_dict', 'optimizer', 'param_schedulers', 'ema_state_dict')
        if key in checkpoint
    }


def same(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def killed_at(folder, at, **settings):
    runner = toy_runner(folder, **settings)
    runner.register_hook(Kill(at))
    with pytest.raises(Killed):
        runner.train()


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory):
    """The end of an uninterrupted run, made once for each setting."""
    made = {}

    def run(length, save, averaged):
        key = length, save, averaged
        if key not in made:
            folder = tmp_path_factory.mktemp('whole')
            toy_runner(folder, LOOPS[length], SAVE[save], **(AVERAGED if averaged else {})).train()
            made[key] = state_of(folder)
        return made[key]

    return run


@pytest.mark.parametrize('averaged', [False, True])
@pytest.mark.parametrize(
    'length, save', [('epochs', 'epochs'), ('epochs', 'within'), ('iterations', 'iterations')]
)
@pytest.mark.parametrize('at', [4, 9, 17])
def test_exact(length, save, averaged, at, tmp_path, uninterrupted):
    settings = dict(
        train_cfg=LOOPS[length], checkpoint=SAVE[save], **(AVERAGED if averaged else {})
    )
    killed_at(tmp_path, at, **settings)
    toy_runner(tmp_path, resume=True, **settings).train()
    assert same(state_of(tmp_path), uninterrupted(length, save, averaged))


@pytest.mark.parametrize('length', LOOPS)
def test_exact_with_workers(length, tmp_path, uninterrupted):
    settings = dict(train_cfg=LOOPS[length], checkpoint=SAVE[length], workers=2)
    killed_at(tmp_path, 13, **settings)
    # Other workers, other prefetching: the same run.
    toy_runner(tmp_path, resume=True, **dict(settings, workers=1)).train()
    assert same(state_of(tmp_path), uninterrupted(length, length, False))


def test_the_comparison_sees_a_difference(tmp_path, uninterrupted):
    toy_runner(tmp_path, LOOPS['epochs'], SAVE['epochs'], seed=4).train()
    assert not same(state_of(tmp_path), uninterrupted('epochs', 'epochs', False))


@pytest.mark.parametrize('diff_rank_seed', [False, True])
def test_without_a_seed_in_the_config(tmp_path, diff_rank_seed):
    """The seed that was drawn is the one that the resumed run goes on with."""
    drawn = dict(seed=None, diff_rank_seed=diff_rank_seed)
    killed_at(tmp_path / 'a', 9, randomness=dict(drawn))
    seed = torch.load(tmp_path / 'a' / 'epoch_1.pth', weights_only=False)['meta']['seed']
    toy_runner(tmp_path / 'a', randomness=dict(drawn), resume=True).train()
    toy_runner(tmp_path / 'b', randomness=dict(drawn, seed=seed)).train()
    assert same(state_of(tmp_path / 'a'), state_of(tmp_path / 'b'))


@pytest.mark.parametrize(
    'length, save, first',
    [('epochs', 'epochs', 12), ('epochs', 'within', 12), ('iterations', 'iterations', 12)],
)
def test_data_that_was_seen_is_not_loaded_again(length, save, first, tmp_path):
    settings = dict(train_cfg=LOOPS[length], checkpoint=SAVE[save])
    killed_at(tmp_path, 14, dataset=ToyDataset(visits=tmp_path / 'first'), **settings)
    toy_runner(
        tmp_path, dataset=ToyDataset(visits=tmp_path / 'second'), resume=True, **settings
    ).train()
    before, after = ((tmp_path / name).read_text().split() for name in ('first', 'second'))
    assert len(after) == 4 * (18 - first)
    # Two whole passes before, the third from its beginning.
    assert len(before) == 4 * 15
    assert sorted(map(int, after)) == list(range(24))
    # What the killed run had of it came in the same order.
    assert before[4 * first :] == after[: 4 * (15 - first)]


def test_a_finished_run_loads_nothing(tmp_path):
    for visits in ('first', 'second'):
        toy_runner(
            tmp_path,
            LOOPS['iterations'],
            SAVE['iterations'],
            resume=visits == 'second',
            dataset=ToyDataset(visits=tmp_path / visits),
        ).train()
    assert not (tmp_path / 'second').exists()


@pytest.mark.parametrize('length', LOOPS)
def test_a_loader_that_is_no_config(length, tmp_path):
    """Another loader's batches are taken as they come, in every pass."""
    seen = []

    class Note(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            seen.append(data_batch['inputs'].clone())

    runner = toy_runner(tmp_path, LOOPS[length], SAVE[length], custom_hooks=[Note()])
    batches = [dict(inputs=torch.full((4, 4), float(i)), labels=torch.ones(4)) for i in range(6)]
    runner._train_dataloader = torch.utils.data.DataLoader(
        batches, collate_fn=lambda samples: samples[0]
    )
    runner.train()
    assert [int(inputs[0, 0]) for inputs in seen] == 3 * list(range(6))
    again = toy_runner(tmp_path, LOOPS[length], SAVE[length], resume=True)
    again._train_dataloader = runner._train_dataloader
    again.train()
    assert again.iter == 18


@pytest.mark.parametrize('length', LOOPS)
def test_a_loader_without_batches(length, tmp_path):
    runner = toy_runner(tmp_path, LOOPS[length])
    runner._train_dataloader = torch.utils.data.DataLoader([])
    with pytest.raises(UserError, match='given as train_dataloader has no batches'):
        runner.train_loop


def test_schedule_tool_of_mmpretrain(tmp_path):
    """vis_scheduler.py gives a list as data loader, and records the rate of every iteration."""
    import_task('mmpretrain')
    package = Path(find_spec('mmpretrain').origin).parent
    tool = runpy.run_path(str(package / '.mim/tools/visualization/vis_scheduler.py'))
    cfg = load_config(mmhcnet.config('classification/vheat_t_in1k.py'), None, str(tmp_path))
    cfg.log_level = 'ERROR'

    class Batches(list):
        dataset = MagicMock(metainfo=None)

    cfg.train_cfg.max_epochs = 30
    rates = tool['simulate_train'](Batches(range(2)), cfg, True)['lr']
    assert len(rates) == 60
    assert rates[0] == pytest.approx(1e-6) and max(rates) == pytest.approx(1e-3)


@pytest.mark.parametrize('length', LOOPS)
@pytest.mark.parametrize('workers', [0, 1])
def test_precise_statistics_of_batch_norm(length, workers, tmp_path):
    """mmpretrain's hook reads the data of an epoch once more, here after a resume within one."""
    import_task('mmpretrain')
    hook = dict(type='mmpretrain.PreciseBNHook', num_samples=24)
    if length == 'iterations':
        hook['interval'] = 3
    settings = dict(train_cfg=LOOPS[length], checkpoint=SAVE['within'], workers=workers)
    killed_at(tmp_path, 15, **settings)
    runner = toy_runner(tmp_path, resume=True, custom_hooks=[hook], **settings)
    runner.train()
    assert runner.train_dataloader.batch_size == 4
    linear, norm = runner.model.body[:2]
    batches = list(itertools.islice(runner.train_dataloader, 6))
    assert len(batches) == 6
    with torch.no_grad():
        found = [linear(torch.stack(tuple(batch['inputs']))) for batch in batches]
    torch.testing.assert_close(norm.running_mean, sum(h.mean(0) for h in found) / 6)
    torch.testing.assert_close(norm.running_var, sum(h.var(0) for h in found) / 6)


@pytest.mark.parametrize('length', ['max_epochs', 'max_iters'])
@pytest.mark.parametrize(
    'samples, message',
    [
        (3, 'the training set has 3 samples, fewer than a batch of 4 .* drop_last leaves none'),
        (0, 'the training set has no samples: look at data_root, ann_file'),
    ],
)
def test_nothing_to_train_on(tmp_path, length, samples, message):
    runner = toy_runner(tmp_path, {length: 2})
    runner._train_dataloader.update(
        dataset=ToyDataset(length=samples),
        drop_last=True,
        sampler=dict(type='DefaultSampler', shuffle=samples > 0),
    )
    with pytest.raises(UserError, match=message):
        runner.train()


def test_a_sampler_without_end_fills_the_batch(tmp_path):
    runner = toy_runner(tmp_path, dict(max_iters=2), dataset=ToyDataset(length=3))
    runner._train_dataloader.update(drop_last=True)
    runner.train()
    assert runner.iter == 2
