import copy
import math

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import PARAM_SCHEDULERS

from mmhcnet.cli.config import load_config
from mmhcnet.cli.schedule import (
    RunLength,
    fit_schedule,
    run_length,
    scale_schedule,
    validation_interval,
)
from mmhcnet.training.loops import IterTrainLoop

from ..conftest import ROOT

COSINE = [
    dict(
        type='LinearLR',
        start_factor=1e-3,
        by_epoch=True,
        begin=0,
        end=20,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingLR',
        eta_min=1e-5,
        by_epoch=True,
        begin=20,
        end=300,
        convert_to_iter_based=True,
    ),
]
STEPS = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=1000),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=12, milestones=[8, 11], gamma=0.1),
]
POLY = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', eta_min=0.0, power=1.0, by_epoch=False, begin=1500, end=160000),
]


def config(schedulers, **train_cfg):
    return Config(dict(param_scheduler=copy.deepcopy(schedulers), train_cfg=train_cfg))


def learning_rates(schedulers, epochs, epoch_length):
    """The learning rate of every iteration, by mmengine's own schedulers."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    wrapper = OptimWrapper(torch.optim.SGD([parameter], lr=1.0))
    built = [
        PARAM_SCHEDULERS.build(
            copy.deepcopy(s), default_args=dict(optimizer=wrapper, epoch_length=epoch_length)
        )
        for s in schedulers
    ]
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
@pytest.mark.parametrize(
    'schedulers, planned, epochs',
    [
        *[(COSINE, 300, epochs) for epochs in (1, 2, 3, 10, 100, 299)],
        *[(STEPS, 12, epochs) for epochs in (1, 2, 5, 11)],
    ],
)
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
@pytest.mark.parametrize('epoch_length', [50, 3, 1])
def test_a_warm_up_of_less_than_an_epoch_is_counted_in_iterations(convert, epoch_length):
    warmup = dict(
        type='LinearLR',
        start_factor=1e-3,
        by_epoch=True,
        begin=0,
        end=5,
        convert_to_iter_based=convert,
    )
    cfg = config([warmup, STEPS[1]], max_epochs=2)
    fit_schedule(cfg, RunLength(12, True))
    rates = learning_rates(cfg.param_scheduler, 2, epoch_length)
    # 5 of 12 epochs, which is no more than an iteration where an epoch has a single one.
    steps = round(5 / 6 * epoch_length)
    assert rates[0] == pytest.approx(1e-3 if steps > 1 else 1)
    assert max(rates) == pytest.approx(1)
    if steps > 1:
        assert rates.index(max(rates)) == steps - 1


def test_a_single_step_of_warm_up_is_left_out_where_iterations_are_counted():
    cfg = config(POLY, max_iters=7)
    fit_schedule(cfg)
    assert [s['type'] for s in cfg.param_scheduler] == ['PolyLR']


def test_curve_keeps_its_shape():
    cfg = config(COSINE, max_epochs=30)
    fit_schedule(cfg, RunLength(300, True))
    short = learning_rates(cfg.param_scheduler, 30, 100)
    full = learning_rates(COSINE, 300, 10)
    assert max(abs(a - b) for a, b in zip(short, full)) < 1e-2
    # The peak is reached where the warm-up ends, and the end is the end of the cosine.
    assert short[200] == pytest.approx(1, abs=1e-3)
    assert short[-1] == pytest.approx(1e-5, abs=1e-4)


@pytest.mark.parametrize('epochs, warmup', [(2, 167), (6, 500), (24, 2000), (1, 83), (5, 417)])
@pytest.mark.parametrize('epoch_length', [1000, 60])
def test_milestones(epochs, warmup, epoch_length):
    cfg = config(STEPS, max_epochs=epochs)
    fit_schedule(cfg)
    assert cfg.param_scheduler[0]['end'] == warmup
    rates = learning_rates([cfg.param_scheduler[1]], epochs, epoch_length)
    # Both decays happen, at 8/12 and 11/12 of the run.
    total = epochs * epoch_length
    drops = [i for i in range(1, total) if rates[i] < 0.5 * rates[i - 1]]
    assert drops == [round(total * 8 / 12), round(total * 11 / 12)]


def test_iterations():
    cfg = config(POLY, type='IterBasedTrainLoop', max_iters=1600)
    fit_schedule(cfg, RunLength(160000, False))
    linear, poly = cfg.param_scheduler
    assert (linear['end'], poly['begin'], poly['end']) == (15, 15, 1600)
    assert linear['start_factor'] == 1e-6


def test_one_epoch_keeps_the_share_of_the_warm_up():
    cfg = config(COSINE, max_epochs=1)
    fit_schedule(cfg, RunLength(300, True))
    rates = learning_rates(cfg.param_scheduler, 1, 150)
    assert rates[0] == pytest.approx(1e-3) and rates.index(max(rates)) in (9, 10)
    assert max(rates) == pytest.approx(1)


@pytest.mark.parametrize(
    'schedulers, train_cfg',
    [
        (COSINE, dict(by_epoch=True, max_epochs=300)),
        (STEPS, dict(max_epochs=12)),
        (POLY, dict(type='IterBasedTrainLoop', max_iters=160000)),
    ],
)
def test_a_schedule_that_fits_is_left_as_it_is(schedulers, train_cfg):
    cfg = config(schedulers, **train_cfg)
    fit_schedule(cfg)
    assert cfg.param_scheduler == schedulers


def test_a_schedule_that_is_too_long_is_fitted_without_being_told():
    # A config of the user that inherits ours and sets max_epochs only.
    cfg = config(COSINE, max_epochs=30)
    fit_schedule(cfg)
    assert [s['end'] for s in cfg.param_scheduler] == [2, 30]


@pytest.mark.parametrize('epochs', [310, 100])
def test_a_schedule_of_another_length_on_purpose(epochs, monkeypatch):
    said = []
    monkeypatch.setattr('mmhcnet.cli.schedule.print_log', lambda text, logger: said.append(text))
    cfg = config(COSINE, max_epochs=epochs)
    fit_schedule(cfg)
    assert [s['end'] for s in cfg.param_scheduler][1] == epochs
    assert 'Set fit_schedule = False in the config to keep it' in said[0]
    cfg = config(COSINE, max_epochs=epochs)
    cfg.fit_schedule = False
    fit_schedule(cfg)
    assert cfg.param_scheduler == COSINE
    assert said[1:] == [
        f'The learning-rate schedule for 300 epochs is kept in a run of {epochs} '
        'epochs (fit_schedule = False).'
    ]


def test_however_often_the_run_was_shortened():
    """A config that shortens a recipe to 4 epochs, and an option that sets 8."""
    cfg = config(COSINE, max_epochs=8)
    fit_schedule(cfg, RunLength(4, True))
    direct = config(COSINE, max_epochs=8)
    fit_schedule(direct, RunLength(300, True))
    assert cfg.param_scheduler == direct.param_scheduler
    again = copy.deepcopy(direct)
    fit_schedule(again, RunLength(8, True))
    assert again.param_scheduler == direct.param_scheduler


@pytest.mark.parametrize('between', [None, 4, 20])
def test_a_config_between_recipe_and_option(between, tmp_path):
    """The rates of 8 epochs of the 7-epoch recipe, whatever a config in between says."""
    path = tmp_path / 'mine.py'
    path.write_text(
        "_base_ = __import__('mmhcnet').config('classification/hcnet_digits.py')\n"
        + (f'train_cfg = dict(max_epochs={between})\n' if between else '')
    )
    cfg = load_config(str(path), {'train_cfg.max_epochs': 8}, None)
    rates = learning_rates(cfg.param_scheduler, 8, 5)
    # The rates are those of a base rate of 1, but eta_min is of the recipe's 3e-3.
    for scheduler in cfg.param_scheduler:
        assert scheduler['end'] in (pytest.approx(16 / 7), 8)
    share = 2 / 7
    assert rates[0] == pytest.approx(0.01)
    # mmengine is at the peak an iteration before the warm-up ends.
    assert rates.index(max(rates)) == round(share * 40) - 1
    assert rates[-1] == pytest.approx((1 + math.cos(math.pi * (1 - 1 / 29))) / 2, abs=1e-3)


def test_a_part_without_an_end_is_scaled_from_what_the_config_says():
    parts = [COSINE[0], dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=20)]
    cfg = config(parts, max_epochs=150)
    fit_schedule(cfg, RunLength(300, True))
    assert [s['begin'] for s in cfg.param_scheduler] == [0, 10]
    cfg = config(parts, max_epochs=150)
    fit_schedule(cfg)
    assert cfg.param_scheduler == parts


@pytest.mark.parametrize('scheduler', [None, []])
def test_no_schedule(scheduler):
    cfg = Config(dict(param_scheduler=scheduler, train_cfg=dict(max_epochs=2)))
    fit_schedule(cfg, RunLength(12, True))
    assert not cfg.param_scheduler


def test_one_scheduler_that_is_not_in_a_list():
    cfg = Config(dict(param_scheduler=dict(STEPS[1]), train_cfg=dict(max_epochs=6)))
    fit_schedule(cfg, RunLength(12, True))
    assert cfg.param_scheduler[0]['milestones'] == [4, 5.5]


def test_change_of_unit_is_refused():
    with pytest.raises(
        ValueError,
        match='written for 12 epochs and the run has 50 iterations: set param_scheduler too',
    ):
        fit_schedule(config(STEPS, max_iters=50), RunLength(12, True))


def test_run_length_of_an_incomplete_train_cfg():
    with pytest.raises(ValueError, match='needs max_epochs or max_iters'):
        run_length(dict(by_epoch=True))


def test_to_iterations_for_a_trial():
    scaled = scale_schedule(COSINE, 30, per_epoch=30 / 300, per_iter=1.0, to_iters=True)
    assert [(s['by_epoch'], s['begin'], s['end']) for s in scaled] == [
        (False, 0, 2),
        (False, 2, 30),
    ]
    assert all('convert_to_iter_based' not in s for s in scaled)
    assert COSINE[0]['by_epoch'], 'the source must not change'


@pytest.mark.parametrize(
    'train_cfg, interval',
    [
        (dict(type='mmhcnet.EpochTrainLoop', max_epochs=3), 1),
        (dict(type='mmhcnet.IterTrainLoop', max_iters=3), 1000),
        (dict(by_epoch=True, max_epochs=3), 1),
        (dict(max_iters=3), 1000),
        (dict(type='IterBasedTrainLoop', max_iters=3), 1000),
        (dict(type='mmhcnet.IterTrainLoop', max_iters=3, val_interval=7), 7),
        (dict(type=IterTrainLoop, max_iters=3), 1000),
        (dict(type='NoSuchLoop', max_iters=3), 1),
    ],
)
def test_the_validation_interval_is_the_loops_own(train_cfg, interval):
    assert validation_interval(Config(dict(train_cfg=train_cfg))) == interval


# mmengine's type -> what it is called below; the warm-up is by one of the other two.
TYPES = dict(
    CosineAnnealingLR='cosine',
    CosineRestartLR='restarts',
    ExponentialLR='exponential',
    MultiStepLR='steps',
    OneCycleLR='one cycle',
    PolyLR='poly',
    StepLR='step',
)
KINDS = list(TYPES.values())


def test_all_types_of_mmengine_are_looked_at():
    types = {name for name in PARAM_SCHEDULERS.module_dict if name.endswith('LR')}
    # The last one goes by what was measured, not by time.
    assert types == {*TYPES, 'ConstantLR', 'LinearLR', 'ReduceOnPlateauLR'}


def test_one_that_goes_by_what_is_measured_is_left_as_it_is():
    one = dict(type='ReduceOnPlateauLR', monitor='loss', patience=3, begin=0, end=100)
    cfg = config([one], max_epochs=50)
    fit_schedule(cfg)
    assert cfg.param_scheduler == [dict(one, end=50)]


def random_recipe(rng):
    """Schedulers for a random length, and their curve over the share of the run that is done."""
    length, by_iter = int(rng.integers(4, 60)), bool(rng.integers(2))
    length *= 50 if by_iter else 1
    warmup, start = int(rng.integers(1, max(2, length // 3))), float(rng.uniform(0.01, 0.5))
    unit = dict(by_epoch=False) if by_iter else dict(by_epoch=True, convert_to_iter_based=True)
    begin = warmup / length
    kind = str(rng.choice(KINDS))
    held = kind != 'one cycle' and bool(rng.integers(3) == 0)
    lasts = length - warmup
    if kind == 'cosine':
        low = float(rng.uniform(0, 0.3))
        part = dict(type='CosineAnnealingLR', eta_min=low, **unit)

        def main(u):
            return low + (1 - low) * (1 + math.cos(math.pi * u)) / 2
    elif kind == 'poly':
        power = float(rng.choice([0.9, 1.0, 2.0]))
        part = dict(type='PolyLR', power=power, eta_min=0.0, **unit)

        def main(u):
            return max(0.0, 1 - u) ** power
    elif kind == 'restarts':
        number = int(rng.integers(1, min(4, lasts) + 1))
        ends = sorted({*map(int, rng.integers(1, lasts + 1, number - 1)), lasts})
        weights = [1.0, *rng.uniform(0.3, 1.0, len(ends) - 1).tolist()]
        periods = np.diff([0, *ends]).tolist()
        part = dict(
            type='CosineRestartLR', periods=periods, restart_weights=weights, eta_min=0.1, **unit
        )

        def main(u):
            i = min(sum(u * lasts >= end - 1e-9 for end in ends), len(ends) - 1)
            done = min(1.0, 1 - (ends[i] - u * lasts) / periods[i])
            return 0.1 + (weights[i] - 0.1) * (1 + math.cos(math.pi * done)) / 2
    elif kind == 'one cycle':
        part = dict(type='OneCycleLR', eta_max=1.0, pct_start=0.4, div_factor=10.0, **unit)

        def main(u):
            low, share = (0.1, u / 0.4) if u < 0.4 else (1e-5, (1 - u) / 0.6)
            return low + (1 - low) * (1 - math.cos(math.pi * share)) / 2
    elif kind == 'exponential':
        gamma = float(rng.uniform(0.8, 0.99)) ** (50 / length if by_iter else 1)
        part = dict(type='ExponentialLR', gamma=gamma, by_epoch=not by_iter)

        def main(u):
            return gamma ** (u * lasts)
    else:
        step = int(rng.integers(1, lasts + 1))
        points = (
            sorted(int(p) for p in rng.integers(1, lasts + 1, 2))
            if kind == 'steps'
            else list(range(step, lasts, step))
        )
        part = (
            dict(type='MultiStepLR', milestones=points)
            if kind == 'steps'
            else dict(type='StepLR', step_size=step)
        )
        part.update(gamma=0.5, by_epoch=not by_iter)

        def main(u):
            return 0.5 ** sum(u * lasts >= point - 1e-9 for point in points)

    def curve(share):
        if share < begin:
            return start if held else start + (1 - start) * share / begin
        return main(min(1.0, (share - begin) / (1 - begin)))

    schedulers = [
        dict(type='ConstantLR', factor=start, begin=0, end=warmup, **unit)
        if held
        else dict(type='LinearLR', start_factor=start, begin=0, end=warmup, **unit),
        dict(part, begin=warmup, end=length),
    ]
    return schedulers, curve, length, by_iter


@pytest.mark.parametrize('seed', range(60))
def test_random_recipes_keep_their_curve_at_random_lengths(seed):
    rng = np.random.default_rng(seed)
    schedulers, curve, length, by_iter = random_recipe(rng)
    new = int(rng.integers(200, 1200)) if by_iter else int(rng.integers(1, 2 * length))
    epoch_length = 1 if by_iter else int(rng.integers(20, 60))
    cfg = config(schedulers, **{'max_iters' if by_iter else 'max_epochs': new})
    fit_schedule(cfg, RunLength(int(rng.integers(1, 100)), not by_iter))
    if by_iter:
        rates = learning_rates(cfg.param_scheduler, 1, new)
    else:
        rates = learning_rates(cfg.param_scheduler, new, epoch_length)
    total = len(rates)
    # Points are rounded to iterations, or to epochs for a decay that goes by whole epochs; a
    # warm-up reaches its end an iteration early in mmengine.
    stairs = 0 if by_iter or cfg.param_scheduler[1].get('convert_to_iter_based') else 1.5 / new
    slack = 2.1 / total + stairs
    for i in range(0, total, -(-total // 100)):
        near = [curve(min(1.0, max(0.0, i / total + d))) for d in np.linspace(-slack, slack, 81)]
        assert min(near) - 0.01 <= rates[i] <= max(near) + 0.01, (seed, i / total, rates[i])
    # Start, peak and end.
    warmup = cfg.param_scheduler[0]['end'] * (1 if by_iter else epoch_length)
    if cfg.param_scheduler[0]['type'].endswith('LinearLR') and warmup >= 2:
        assert rates[0] == pytest.approx(curve(0))
    assert max(rates) == pytest.approx(1, abs=0.05)
    assert rates[-1] == pytest.approx(curve(1 - 1 / total), abs=0.06)


@pytest.mark.parametrize('path', sorted((ROOT / 'configs').glob('*/*.py')), ids=lambda p: p.stem)
def test_shipped_schedules_are_left_as_they_are(path):
    cfg = Config.fromfile(path)
    before = copy.deepcopy(cfg.param_scheduler)
    fit_schedule(cfg, run_length(cfg.train_cfg))
    assert cfg.param_scheduler == before
