import socket
import time
import types
from contextlib import nullcontext
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from mmengine.hooks import Hook
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mmhcnet.errors import UserError
from mmhcnet.training.finite_steps import FiniteHook, image_paths

from ..toy import ToyDataset, ToyModel, toy_runner

NAN, INF = float('nan'), float('inf')


def fuses_on_the_cpu():
    try:
        torch.optim.AdamW([nn.Parameter(torch.zeros(1))], fused=True)
    except RuntimeError:
        return False
    return True


# The host decides on a step of the first two; the device on one of the fused ones.
OPTIMIZERS = [
    dict(type='AdamW', lr=0.01),
    dict(type='SGD', lr=0.01, momentum=0.9),
    *(
        pytest.param(
            dict(settings, fused=True),
            marks=pytest.mark.skipif(not fuses_on_the_cpu(), reason='torch fuses it on a GPU only'),
        )
        for settings in (
            dict(type='AdamW', lr=0.01),
            dict(type='Adam', lr=0.01, amsgrad=True),
            dict(type='SGD', lr=0.01, momentum=0.9),
        )
    ),
]


class BadPoints(ToyDataset):
    """Some of its points are not numbers."""

    def __init__(self, bad, value=NAN):
        super().__init__()
        self.bad, self.value = bad, value

    def __getitem__(self, index):
        sample = super().__getitem__(index)
        if index in self.bad:
            sample['inputs'] = sample['inputs'] * self.value
        sample['data_samples'] = types.SimpleNamespace(img_path=f'images/{index}.png')
        return sample


class Model(ToyModel):
    def forward(self, inputs, labels, data_samples=None, mode='tensor'):
        return super().forward(inputs, labels, mode)


class WithAnotherLoss(Model):
    calls = 0

    def forward(self, *args, mode='tensor', **kwargs):
        losses = super().forward(*args, mode=mode, **kwargs)
        if mode == 'loss':
            self.calls += 1
            losses.update(self.more(second=self.calls == 2))
        return losses


class ConstantNan(WithAnotherLoss):
    """Its loss is nan in the second iteration, and its gradient finite."""

    def more(self, second):
        return dict(loss_more=[torch.tensor(NAN if second else 0.0)])


class NanGradient(WithAnotherLoss):
    """Its loss is finite and its gradient nan in the second iteration."""

    def more(self, second):
        # d sqrt(x) / dx at 0, times 0.
        return dict(loss_more=(0 * self.body[0].weight[0, 0]).sqrt() * 1.0) if second else {}


class NanGradients(NanGradient):
    """Its gradient is never finite."""

    calls = property(lambda self: 2, lambda self, calls: None)


class Steep(Model):
    """Its loss is finite, and a large scale makes infinity of it."""

    def forward(self, *args, mode='tensor', **kwargs):
        losses = super().forward(*args, mode=mode, **kwargs)
        return dict(loss=losses['loss'] * 2.0**40) if mode == 'loss' else losses


class States(Hook):
    """What the model is after every iteration."""

    priority = 'LOWEST'

    def __init__(self):
        self.seen = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.seen.append({key: value.clone() for key, value in runner.model.state_dict().items()})


def run(folder, model=Model, dataset=None, in_a_row=10, **settings):
    runner = toy_runner(folder, dict(max_epochs=1), dataset=dataset or ToyDataset(), **settings)
    runner.model = model()
    errors = []
    runner.logger.error = errors.append
    states = States()
    runner.register_hook(FiniteHook(max_in_a_row=in_a_row))
    runner.register_hook(states)
    return runner, errors, states.seen


def unchanged(before, after):
    # torch 2.1 has None for the momentum of SGD without one.
    return all(
        before[key] is after[key] is None or torch.equal(before[key], after[key]) for key in before
    )


def finite(state):
    tensors = [value for value in state.values() if value is not None]
    return all(tensor.isfinite().all() for tensor in tensors if tensor.is_floating_point())


@pytest.mark.parametrize('optimizer', OPTIMIZERS)
@pytest.mark.parametrize('value', [NAN, INF])
def test_a_bad_image_costs_one_step(tmp_path, value, optimizer):
    runner, errors, states = run(
        tmp_path, dataset=BadPoints([7], value), optim_wrapper=dict(optimizer=dict(optimizer))
    )
    runner.train()
    (line,) = errors
    assert 'images/7.png' in line and line.count('images/') == 4
    assert 'the step is skipped (1 in a row, 1 in all)' in line
    at = int(line.split(':')[0].split()[1]) - 1
    # Running statistics of the batch norm included.
    assert all(unchanged(states[i - 1], states[i]) == (i == at) for i in range(1, 6))
    assert finite(states[-1])
    optimizer = torch.load(tmp_path / 'epoch_1.pth', weights_only=False)['optimizer']
    assert all(
        value.isfinite().all() for state in optimizer['state'].values() for value in state.values()
    )


@pytest.mark.parametrize('optimizer', OPTIMIZERS)
@pytest.mark.parametrize('model, what', [(ConstantNan, 'loss'), (NanGradient, 'gradient')])
def test_either_of_loss_and_gradient(tmp_path, model, what, optimizer):
    runner, errors, states = run(tmp_path, model, optim_wrapper=dict(optimizer=dict(optimizer)))
    runner.train()
    assert len(errors) == 1 and f'Iteration 2: the {what} is not finite' in errors[0]
    assert unchanged(states[0], states[1]) and not unchanged(states[1], states[2])


@pytest.mark.parametrize('optimizer', OPTIMIZERS)
def test_a_good_run_is_not_changed(tmp_path, optimizer):
    settings = dict(optim_wrapper=dict(optimizer=dict(optimizer)))
    runner, errors, states = run(tmp_path / 'b', **settings)
    torch.manual_seed(0)
    runner.train()
    plain = toy_runner(tmp_path / 'c', dict(max_epochs=1), **settings)
    plain.model = Model()
    torch.manual_seed(0)
    plain.train()
    assert not errors
    assert unchanged(plain.model.state_dict(), states[-1])


def test_stops_after_so_many_in_a_row(tmp_path):
    toy_runner(tmp_path, dict(max_epochs=1)).train()
    runner, errors, states = run(tmp_path, dataset=BadPoints(range(24)), in_a_row=3)
    with pytest.raises(UserError, match='loss was not finite in 3 iterations in a row.*--resume'):
        runner.train()
    assert len(errors) == 3 and '(3 in a row, 3 in all)' in errors[-1]
    # The checkpoint from before is as it was.
    assert finite(torch.load(tmp_path / 'epoch_1.pth', weights_only=False)['state_dict'])


def test_in_a_row_starts_anew_after_a_good_step(tmp_path):
    runner, errors, _ = run(tmp_path, dataset=BadPoints(range(0, 24, 8)), in_a_row=6)
    runner.train()
    assert errors and '1 in a row' in errors[0]


@pytest.mark.parametrize('optimizer', OPTIMIZERS)
def test_accumulated_gradients(tmp_path, optimizer):
    runner, errors, states = run(
        tmp_path, ConstantNan, optim_wrapper=dict(optimizer=dict(optimizer), accumulative_counts=3)
    )
    runner.train()
    weight = [state['body.0.weight'] for state in states]
    # Iteration 2 is bad, so the step after 3 is left out; that after 6 is made.
    assert torch.equal(weight[1], weight[2]) and not torch.equal(weight[4], weight[5])
    assert finite(states[-1])


class Overflowing(OptimWrapper):
    """As the wrapper for mixed precision when every gradient overflows."""

    def __init__(self, scale, **kwargs):
        super().__init__(**kwargs)
        self.loss_scaler = types.SimpleNamespace(get_scale=lambda: scale, is_enabled=lambda: True)

    def step(self, **kwargs):
        pass


@pytest.mark.parametrize('scale, counted', [(65536.0, 0), (0.5, 6)])
def test_the_scalers_search_is_not_a_fault(tmp_path, scale, counted):
    runner, errors, _ = run(
        tmp_path,
        optim_wrapper=dict(type=Overflowing, scale=scale, optimizer=dict(type='AdamW', lr=0.01)),
    )
    with pytest.raises(UserError, match='no training step') if counted else nullcontext():
        runner.train()
    assert runner.iter == 6 and len(errors) == counted


def test_other_batches_have_no_paths():
    assert image_paths([1, 2]) == [] and image_paths(dict(inputs=1)) == []
    assert image_paths(dict(data_samples=[nn.Identity()])) == []


def test_at_least_one():
    with pytest.raises(ValueError, match='at least 1'):
        FiniteHook(max_in_a_row=0)


class Scaled(OptimWrapper):
    """mmengine's wrapper for mixed precision with the scaler of a CPU."""

    def __init__(self, init_scale, **kwargs):
        super().__init__(**kwargs)
        self.loss_scaler = torch.amp.GradScaler('cpu', init_scale=init_scale)

    def backward(self, loss, **kwargs):
        super().backward(self.loss_scaler.scale(loss), **kwargs)

    def step(self, **kwargs):
        self.loss_scaler.step(self.optimizer, **kwargs)
        self.loss_scaler.update()


def batch_of(seed, value=1.0):
    rng = torch.Generator().manual_seed(seed)
    points = torch.randn(4, 4, generator=rng)
    points[2] *= value
    return dict(
        inputs=list(points),
        labels=list(torch.tensor([0.0, 1.0, 0.0, 1.0])),
        data_samples=[types.SimpleNamespace(img_path=f'images/{seed}.png')],
    )


def drive(optimizer, batches, model=Model, wrapper=OptimWrapper, hook=None, **settings):
    """Train on batches with the hook, without a runner; returns all that the next step needs."""
    torch.manual_seed(0)
    model, lines = model(), []
    settings_of_optimizer = dict(optimizer)
    cls = getattr(torch.optim, settings_of_optimizer.pop('type'))
    runner = types.SimpleNamespace(
        hooks=[],
        model=model,
        logger=types.SimpleNamespace(error=lines.append),
        optim_wrapper=wrapper(
            optimizer=cls(model.parameters(), **settings_of_optimizer), **settings
        ),
    )
    hook = hook or FiniteHook()
    hook.before_train(runner)
    for runner.iter, batch in enumerate(batches):
        torch.manual_seed(int(1e6 * batch['inputs'][0][0].abs()))
        hook.before_train_iter(runner, runner.iter, batch)
        model.train_step(batch, runner.optim_wrapper)
        hook.after_train_iter(runner, runner.iter, batch)
    hook.settle(runner)
    state = runner.optim_wrapper.optimizer.state_dict()['state']
    return (
        {
            **model.state_dict(),
            **{f'{i}.{key}': value for i, own in state.items() for key, value in own.items()},
        },
        lines,
        hook,
        runner,
    )


@pytest.mark.parametrize('optimizer', OPTIMIZERS)
@pytest.mark.parametrize('at', [0, 1, 3])
def test_as_if_the_bad_batch_had_not_been(optimizer, at):
    good = [batch_of(seed) for seed in range(4)]
    without, *_ = drive(optimizer, good)
    state, lines, *_ = drive(optimizer, [*good[:at], batch_of(9, NAN), *good[at:]])
    assert state.keys() == without.keys() and unchanged(state, without)
    assert len(lines) == 1 and lines[0].startswith(f'Iteration {at + 1}: the loss is not finite')
    assert lines[0].endswith('Its images: images/9.png')


@pytest.mark.skipif(not hasattr(torch.amp, 'GradScaler'), reason='torch scales on a GPU only')
@pytest.mark.parametrize('optimizer', OPTIMIZERS)
def test_with_a_gradient_scaler(optimizer):
    good = [batch_of(seed) for seed in range(4)]
    # The search for a scale: as often as it overflows nothing is said and nothing changes.
    searched, lines, hook, runner = drive(
        optimizer, [batch_of(0)] * 8 + good, Steep, wrapper=Scaled, init_scale=2.0**92
    )
    assert runner.optim_wrapper.loss_scaler.get_scale() < 2.0**92
    assert not lines and hook.skipped == 0 and 0 < hook.succeeded < 12
    assert searched['body.1.num_batches_tracked'] == 12
    assert finite(searched)
    # A bad batch.
    without, *_ = drive(optimizer, good, wrapper=Scaled, init_scale=2.0**10)
    state, lines, hook, _ = drive(
        optimizer, [*good[:2], batch_of(9, NAN), *good[2:]], wrapper=Scaled, init_scale=2.0**10
    )
    # Another scale rounds in another way.
    assert all(torch.allclose(state[key], without[key], atol=1e-5) for key in without)
    assert len(lines) == hook.skipped == 1 and 'images/9.png' in lines[0]
    # A finite gradient and a loss that is not: the scaler sees nothing.
    state, lines, hook, _ = drive(optimizer, good, ConstantNan, wrapper=Scaled, init_scale=2.0**10)
    without, *_ = drive(optimizer, [good[0], *good[2:]], wrapper=Scaled, init_scale=2.0**10)
    assert len(lines) == 1 and 'Iteration 2: the loss' in lines[0]
    assert unchanged(without, state)
    # Gradients that are never finite.
    with pytest.raises(UserError, match='train without --amp'):
        drive(optimizer, [batch_of(0)] * 14, NanGradients, wrapper=Scaled, init_scale=8.0)
    _, lines, hook, _ = drive(optimizer, good, NanGradient, wrapper=Scaled, init_scale=0.5)
    assert len(lines) == 1 and 'Iteration 2: the gradient' in lines[0]


class NoWaiting(TorchDispatchMode):
    """Refuses what makes the host wait for a device."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function is not torch.ops.aten._local_scalar_dense.default, 'the host waits'
        return function(*args, **(kwargs or {}))


class Watched(FiniteHook):
    def _before_step(self, optimizer, scaled):
        with NoWaiting() if self.succeeded else nullcontext():
            super()._before_step(optimizer, scaled)

    def before_train_iter(self, *args):
        with NoWaiting():
            super().before_train_iter(*args)

    def _read(self, runner, leave):
        # What is read now is an iteration old.
        assert leave == 0 or len(self._unread) <= 2
        super()._read(runner, leave)

    def _decide(self, bad):
        with NoWaiting():
            return super()._decide(bad)


@pytest.mark.parametrize('optimizer', OPTIMIZERS)
def test_the_host_does_not_wait(optimizer):
    batches = [batch_of(seed, NAN if seed == 3 else 1.0) for seed in range(6)]
    if optimizer.get('fused'):
        *_, hook, _ = drive(optimizer, batches, hook=Watched())
        assert hook.skipped == 1 and hook.succeeded == 5
    else:
        with pytest.raises(AssertionError, match='the host waits'):
            drive(optimizer, batches, hook=Watched())


def test_nothing_is_copied_of_buffers_that_stay(monkeypatch):
    class Big(Model):
        def __init__(self):
            super().__init__()
            self.register_buffer('table', torch.zeros(1000))

    copied = []
    foreach_copy = getattr(torch, '_foreach_copy_', None)
    if foreach_copy is None:
        pytest.skip('torch has no copy of lists')
    monkeypatch.setattr(
        torch,
        '_foreach_copy_',
        lambda targets, sources: (
            copied.append(sum(t.numel() for t in targets)),
            foreach_copy(targets, sources),
        ),
    )
    drive(dict(type='SGD', lr=0.1), [batch_of(seed) for seed in range(4)], Big)
    # All of it once; then mean, variance and count of the batch norm of 8 channels only.
    assert sum(copied) == 1000 + 17 + 3 * 17 + 4 * 17


def test_without_a_copy_of_lists(monkeypatch):
    batches = [batch_of(0), batch_of(1, NAN), batch_of(2)]
    expected, *_ = drive(dict(type='SGD', lr=0.1), batches)
    monkeypatch.delattr(torch, '_foreach_copy_', raising=False)
    state, *_ = drive(dict(type='SGD', lr=0.1), batches)
    assert unchanged(state, expected)


def test_buffers_made_or_exchanged_within_an_iteration():
    class Lazy(Model):
        def forward(self, *args, mode='tensor', **kwargs):
            if mode == 'loss':
                seen = getattr(self, 'seen', torch.ones(1))
                self.register_buffer('seen', torch.ones(2) * seen[0])
                self.body[0].register_buffer('late', torch.ones(3))
            return super().forward(*args, mode=mode, **kwargs)

    state, lines, *_ = drive(
        dict(type='SGD', lr=0.1), [batch_of(0), batch_of(1, NAN), batch_of(2)], Lazy
    )
    assert len(lines) == 1 and finite(state)


def test_recently_skipped():
    hook = FiniteHook(max_in_a_row=3)
    good, bad = batch_of(0), batch_of(1, NAN)
    settings = dict(type='SGD', lr=0.01)
    *_, runner = drive(settings, [good], hook=hook)
    assert not hook.recently_skipped(runner)
    for batches, expected in (
        ([bad], True),
        ([good, good], True),
        ([good], False),
        ([bad, good], True),
    ):
        *_, runner = drive(settings, batches, hook=hook)
        assert hook.recently_skipped(runner) == expected
    assert (hook.skipped, hook.succeeded) == (2, 5)


def _two_ranks(rank, port, optimizer, queue):
    dist.init_process_group(
        'gloo',
        init_method=f'tcp://127.0.0.1:{port}',
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),
    )

    class Bad(Model):
        """On the second rank one loss is nan, and every gradient finite."""

        calls = 0

        def forward(self, *args, mode='tensor', **kwargs):
            losses = super().forward(*args, mode=mode, **kwargs)
            self.calls += 1
            losses['loss_more'] = torch.tensor(NAN if rank and self.calls == 2 else 0.0)
            return losses

    def wrapped():
        return MMDistributedDataParallel(Bad(), device_ids=None)

    batches = [batch_of(2 * seed + rank) for seed in range(4)]
    state, lines, hook, _ = drive(optimizer, batches, wrapped)
    queue.put(
        (
            rank,
            {key: value.numpy() for key, value in state.items() if 'weight' in key},
            lines,
            hook.skipped,
            hook.succeeded,
        )
    )
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize('optimizer', [OPTIMIZERS[0], OPTIMIZERS[2]])
def test_a_bad_loss_on_one_rank_skips_the_step_on_all(optimizer):
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    queue = torch.multiprocessing.get_context('spawn').SimpleQueue()
    ranks = torch.multiprocessing.spawn(
        _two_ranks, (port, dict(optimizer), queue), nprocs=2, join=False
    )
    end, results = time.monotonic() + 200, []
    try:
        # Read before they have ended: a rank may wait for that, or, in gloo, for ever after it.
        while len(results) < 2:
            assert time.monotonic() < end
            ranks.join(timeout=0.5)
            while not queue.empty():
                results.append(queue.get())
    finally:
        for process in ranks.processes:
            process.kill()
    (_, weights, silent, *counts), (_, other, lines, *other_counts) = sorted(
        results, key=lambda result: result[0]
    )
    assert counts == other_counts == [1, 3]
    # The rank that had it names its images.
    assert not silent and len(lines) == 1 and 'images/3.png' in lines[0]
    assert all((weights[key] == other[key]).all() for key in weights)


def test_a_run_without_a_single_step(tmp_path):
    runner, errors, states = run(tmp_path, dataset=BadPoints(range(24)))
    with pytest.raises(UserError, match='no training step succeeded: .* in all of 6'):
        runner.train()
    assert len(errors) == 6


def test_its_hooks_leave_with_it(tmp_path):
    runner, errors, states = run(tmp_path)
    runner.train()
    assert not runner.model._forward_hooks
    assert not runner.optim_wrapper.optimizer._optimizer_step_pre_hooks
    assert not runner.optim_wrapper.optimizer._optimizer_step_post_hooks
