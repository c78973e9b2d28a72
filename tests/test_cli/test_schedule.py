import copy

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import PARAM_SCHEDULERS

from mmhcnet.cli.schedule import (RunLength, fit_schedule, run_length, scale_schedule,
                                  validation_interval)
from mmhcnet.training.loops import IterTrainLoop

COSINE = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, begin=0, end=20,
         convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=20, end=300,
         convert_to_iter_based=True),
]
STEPS = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=1000),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=12, milestones=[8, 11], gamma=0.1),
]
POLY = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', eta_min=0., power=1.0, by_epoch=False, begin=1500, end=160000),
]


def config(schedulers, **train_cfg):
    return Config(dict(param_scheduler=copy.deepcopy(schedulers), train_cfg=train_cfg))


def learning_rates(schedulers, epochs, epoch_length):
    """The learning rate of every iteration, by mmengine's own schedulers."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    wrapper = OptimWrapper(torch.optim.SGD([parameter], lr=1.))
    built = [PARAM_SCHEDULERS.build(
        copy.deepcopy(s), default_args=dict(optimizer=wrapper, epoch_length=epoch_length))
        for s in schedulers]
    rates = []
    for _ in range(epochs):
        for _ in range(epoch_length):
            rates.append(wrapper.param_groups[0]['lr'])
            wrapper.step()
            for scheduler in built:
                if not scheduler.by_epoch:
                    scheduler.step()
        for scheduler in built:
            if scheduler.by_epoch:
                scheduler.step()
    return rates


@pytest.mark.parametrize('epoch_length', [1, 2, 50])
@pytest.mark.parametrize('schedulers, planned, epochs', [
    *[(COSINE, 300, epochs) for epochs in (1, 2, 3, 10, 100, 299)],
    *[(STEPS, 12, epochs) for epochs in (1, 2, 5, 11)],
])
def test_any_shorter_run_is_accepted_by_mmengine(schedulers, planned, epochs, epoch_length):
    cfg = config(schedulers, max_epochs=epochs)
    fit_schedule(cfg, RunLength(planned, True))
    rates = learning_rates(cfg.param_scheduler, epochs, epoch_length)
    assert all(0 < rate <= 1 + 1e-9 for rate in rates)
    # A warm-up in iterations may be longer than a run of few short epochs; one in epochs may not.
    if schedulers is COSINE:
        assert max(rates) > 0.9


@pytest.mark.parametrize('iterations', [1, 2, 7, 8, 50, 1600, 80000])
def test_a_short_run_by_iterations_gets_past_its_warm_up(iterations):
    cfg = config(POLY, max_iters=iterations)
    fit_schedule(cfg, RunLength(160000, False))
    rates = learning_rates(cfg.param_scheduler, 1, iterations)
    assert max(rates) > 0.7 and all(rate >= 0 for rate in rates)


@pytest.mark.parametrize('convert', [True, False])
def test_a_warm_up_of_one_step_is_left_out(convert):
    warmup = dict(type='LinearLR', start_factor=1e-3, by_epoch=True, begin=0, end=5,
                  convert_to_iter_based=convert)
    cfg = config([warmup, STEPS[1]], max_epochs=2)
    fit_schedule(cfg, RunLength(12, True))
    assert [s['type'] for s in cfg.param_scheduler] == ['MultiStepLR']


def test_curve_keeps_its_shape():
    cfg = config(COSINE, max_epochs=30)
    fit_schedule(cfg, RunLength(300, True))
    short = learning_rates(cfg.param_scheduler, 30, 100)
    full = learning_rates(COSINE, 300, 10)
    assert max(abs(a - b) for a, b in zip(short, full)) < 1e-2
    # The peak is reached where the warm-up ends, and the end is the end of the cosine.
    assert short[200] == pytest.approx(1, abs=1e-3)
    assert short[-1] == pytest.approx(1e-5, abs=1e-4)


@pytest.mark.parametrize('epochs, milestones, warmup', [(2, [1, 2], 167), (6, [4, 6], 500),
                                                        (24, [16, 22], 2000), (1, [1], 83)])
def test_milestones(epochs, milestones, warmup):
    cfg = config(STEPS, max_epochs=epochs)
    fit_schedule(cfg, RunLength(12, True))
    linear, steps = cfg.param_scheduler
    assert (linear['end'], steps['end'], steps['milestones']) == (warmup, epochs, milestones)


def test_iterations():
    cfg = config(POLY, type='IterBasedTrainLoop', max_iters=1600)
    fit_schedule(cfg, RunLength(160000, False))
    linear, poly = cfg.param_scheduler
    assert (linear['end'], poly['begin'], poly['end']) == (15, 15, 1600)
    assert linear['start_factor'] == 1e-6


def test_one_epoch_leaves_the_empty_warm_up_out():
    cfg = config(COSINE, max_epochs=1)
    fit_schedule(cfg, RunLength(300, True))
    assert [(s['type'], s['begin'], s['end']) for s in cfg.param_scheduler] == [
        ('CosineAnnealingLR', 0, 1)]


@pytest.mark.parametrize('schedulers, train_cfg', [
    (COSINE, dict(by_epoch=True, max_epochs=300)), (STEPS, dict(max_epochs=12)),
    (POLY, dict(type='IterBasedTrainLoop', max_iters=160000))])
def test_a_schedule_that_fits_is_left_as_it_is(schedulers, train_cfg):
    cfg = config(schedulers, **train_cfg)
    fit_schedule(cfg)
    assert cfg.param_scheduler == schedulers


def test_a_schedule_that_is_too_long_is_fitted_without_being_told():
    # A config of the user that inherits ours and sets max_epochs only.
    cfg = config(COSINE, max_epochs=30)
    fit_schedule(cfg)
    assert [s['end'] for s in cfg.param_scheduler] == [2, 30]


def test_a_schedule_that_ends_early_on_purpose_is_left_as_it_is():
    cfg = config(COSINE, max_epochs=310)
    fit_schedule(cfg)
    assert cfg.param_scheduler == COSINE


@pytest.mark.parametrize('scheduler', [None, []])
def test_no_schedule(scheduler):
    cfg = Config(dict(param_scheduler=scheduler, train_cfg=dict(max_epochs=2)))
    fit_schedule(cfg, RunLength(12, True))
    assert not cfg.param_scheduler


def test_one_scheduler_that_is_not_in_a_list():
    cfg = Config(dict(param_scheduler=dict(STEPS[1]), train_cfg=dict(max_epochs=6)))
    fit_schedule(cfg, RunLength(12, True))
    assert cfg.param_scheduler[0]['milestones'] == [4, 6]


def test_change_of_unit_is_refused():
    with pytest.raises(ValueError, match='written for 12 epochs and the run has 50 iterations: '
                       'set param_scheduler too'):
        fit_schedule(config(STEPS, max_iters=50), RunLength(12, True))


def test_run_length_of_an_incomplete_train_cfg():
    with pytest.raises(ValueError, match='needs max_epochs or max_iters'):
        run_length(dict(by_epoch=True))


def test_to_iterations_for_a_trial():
    scaled = scale_schedule(COSINE, 30, per_epoch=30 / 300, per_iter=1., to_iters=True)
    assert [(s['by_epoch'], s['begin'], s['end']) for s in scaled] == [
        (False, 0, 2), (False, 2, 30)]
    assert all('convert_to_iter_based' not in s for s in scaled)
    assert COSINE[0]['by_epoch'], 'the source must not change'


@pytest.mark.parametrize('train_cfg, interval', [
    (dict(type='mmhcnet.EpochTrainLoop', max_epochs=3), 1),
    (dict(type='mmhcnet.IterTrainLoop', max_iters=3), 1000),
    (dict(by_epoch=True, max_epochs=3), 1), (dict(max_iters=3), 1000),
    (dict(type='IterBasedTrainLoop', max_iters=3), 1000),
    (dict(type='mmhcnet.IterTrainLoop', max_iters=3, val_interval=7), 7),
    (dict(type=IterTrainLoop, max_iters=3), 1000), (dict(type='NoSuchLoop', max_iters=3), 1)])
def test_the_validation_interval_is_the_loops_own(train_cfg, interval):
    assert validation_interval(train_cfg) == interval
