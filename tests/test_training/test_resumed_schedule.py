"""A run that is resumed with another length, learning rate or batch size goes on as a run from the
start would from there."""

import pytest
from mmengine.hooks import Hook

from mmhcnet.errors import UserError
from mmhcnet.training.resumed_schedule import ResumedScheduleHook

from ..toy import toy_runner
from .test_loops import same, state_of


def schedule(length, convert=True):
    return [
        dict(
            type='LinearLR',
            start_factor=0.1,
            begin=0,
            end=length / 3,
            convert_to_iter_based=convert,
        ),
        dict(
            type='CosineAnnealingLR',
            begin=length / 3,
            end=length,
            eta_min=1e-4,
            convert_to_iter_based=convert,
        ),
    ]


class Rates(Hook):
    """Keeps the learning rate of every iteration."""

    def __init__(self):
        self.rates = {}

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.rates[runner.iter] = runner.optim_wrapper.get_lr()['lr'][0]


def run(
    folder,
    length,
    resume=False,
    lr=0.01,
    batch_size=4,
    convert=True,
    loop='max_epochs',
    schedulers=None,
    checkpoint=None,
):
    runner = toy_runner(
        folder,
        {loop: length},
        checkpoint,
        resume=resume,
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=lr)),
        param_scheduler=schedulers or schedule(length, convert),
    )
    runner._train_dataloader['batch_size'] = batch_size
    if isinstance(runner._train_loop, dict):
        runner.register_hook(ResumedScheduleHook())
    rates = Rates()
    runner.register_hook(rates)
    said = []
    runner.logger.warning = said.append
    runner.train()
    return rates.rates, said


@pytest.mark.parametrize('convert', [True, False])
def test_longer_after_all(tmp_path, convert):
    run(tmp_path / 'a', 3, convert=convert)
    resumed, said = run(tmp_path / 'a', 6, resume=True, convert=convert)
    whole, _ = run(tmp_path / 'b', 6, convert=convert)
    assert list(resumed) == list(range(18, 36))
    for iteration, rate in resumed.items():
        assert rate == pytest.approx(whole[iteration], rel=1e-9)
    (text,) = [line for line in said if 'schedule' in line]
    assert 'it goes on from epoch 3 of 6' in text and f'{whole[18]:.3g}' in text


def test_another_learning_rate(tmp_path):
    run(tmp_path / 'a', 3, schedulers=schedule(6))
    resumed, said = run(tmp_path / 'a', 6, resume=True, lr=0.02)
    whole, _ = run(tmp_path / 'b', 6, lr=0.02)
    assert all(rate == pytest.approx(whole[i], rel=1e-9) for i, rate in resumed.items())
    assert any('another one than in the checkpoint' in line for line in said)


def test_iterations(tmp_path):
    by_iter = [
        dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=5),
        dict(type='PolyLR', by_epoch=False, begin=5, end=30),
    ]
    save = dict(by_epoch=False, interval=5)
    run(
        tmp_path / 'a',
        10,
        loop='max_iters',
        checkpoint=save,
        schedulers=[dict(by_iter[0], end=2), dict(by_iter[1], begin=2, end=10)],
    )
    resumed, _ = run(
        tmp_path / 'a', 30, True, loop='max_iters', checkpoint=save, schedulers=by_iter
    )
    whole, _ = run(tmp_path / 'b', 30, loop='max_iters', checkpoint=save, schedulers=by_iter)
    assert list(resumed) == list(range(10, 30))
    assert all(rate == pytest.approx(whole[i], rel=1e-9) for i, rate in resumed.items())


def test_another_batch_size_at_the_end_of_an_epoch(tmp_path):
    run(tmp_path / 'a', 3, schedulers=schedule(6))
    resumed, said = run(tmp_path / 'a', 6, resume=True, batch_size=8)
    whole, _ = run(tmp_path / 'b', 6, batch_size=8)
    # 3 iterations an epoch instead of 6.
    assert list(resumed) == list(range(9, 18))
    assert all(rate == pytest.approx(whole[i], rel=1e-9) for i, rate in resumed.items())
    assert any('An epoch has 3 iterations, and 6 in the checkpoint' in line for line in said)


def test_another_batch_size_within_an_epoch_is_refused(tmp_path):
    run(tmp_path / 'a', 2, schedulers=schedule(6), checkpoint=dict(by_epoch=False, interval=8))
    with pytest.raises(UserError, match='stands within epoch 2, whose 6 batches'):
        run(tmp_path / 'a', 6, resume=True, batch_size=8)


def test_a_schedule_that_follows_the_validation_is_refused(tmp_path):
    run(tmp_path / 'a', 1)
    plateau = [dict(type='ReduceOnPlateauLR', monitor='loss')]
    with pytest.raises(UserError, match='one of its parts follows the validation'):
        run(tmp_path / 'a', 2, resume=True, schedulers=plateau)


def test_the_same_run_is_left_as_it_is(tmp_path):
    run(tmp_path / 'a', 6)
    save = dict(by_epoch=False, interval=16)
    run(tmp_path / 'b', 6, checkpoint=save)
    _, said = run(tmp_path / 'b', 6, resume=True)
    assert same(state_of(tmp_path / 'a'), state_of(tmp_path / 'b'))
    assert not any('checkpoint' in line for line in said)
