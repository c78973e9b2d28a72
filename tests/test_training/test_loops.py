"""A run that is killed and resumed ends bit by bit where an uninterrupted one does."""

import pytest
import torch
from mmengine.hooks import Hook

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


def test_a_loader_that_is_no_config(tmp_path):
    runner = toy_runner(tmp_path)
    runner._train_dataloader = torch.utils.data.DataLoader(ToyDataset())
    with pytest.raises(TypeError, match='must be a config'):
        runner.train_loop


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
