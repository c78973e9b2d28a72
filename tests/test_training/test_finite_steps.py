import types

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from torch import nn

from mmhcnet.errors import UserError
from mmhcnet.training.finite_steps import FiniteHook, image_paths

from ..toy import ToyDataset, ToyModel, toy_runner

NAN, INF = float('nan'), float('inf')


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


class ConstantNan(Model):
    """Its loss is nan in the second iteration, and its gradient finite."""
    calls = 0

    def forward(self, *args, mode='tensor', **kwargs):
        losses = super().forward(*args, mode=mode, **kwargs)
        if mode == 'loss':
            self.calls += 1
            losses['loss_more'] = [torch.tensor(NAN if self.calls == 2 else 0.)]
        return losses


class NanGradient(Model):
    """Its loss is finite and its gradient nan in the second iteration."""
    calls = 0

    def forward(self, *args, mode='tensor', **kwargs):
        losses = super().forward(*args, mode=mode, **kwargs)
        if mode == 'loss':
            self.calls += 1
            if self.calls == 2:
                # d sqrt(x) / dx at 0, times 0.
                losses['loss_more'] = (0 * self.body[0].weight[0, 0]).sqrt() * 1.
        return losses


class States(Hook):
    """What the model is after every iteration."""
    priority = 'LOWEST'

    def __init__(self):
        self.seen = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.seen.append({key: value.clone() for key, value in
                          runner.model.state_dict().items()})


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
    return all(torch.equal(before[key], after[key]) for key in before)


def finite(state):
    return all(value.isfinite().all() for value in state.values() if value.is_floating_point())


@pytest.mark.parametrize('value', [NAN, INF])
def test_a_bad_image_costs_one_step(tmp_path, value):
    runner, errors, states = run(tmp_path, dataset=BadPoints([7], value))
    runner.train()
    line, = errors
    assert 'images/7.png' in line and line.count('images/') == 4
    assert 'the step is skipped (1 in a row, 1 in all)' in line
    at = int(line.split(':')[0].split()[1]) - 1
    # Running statistics of the batch norm included.
    assert all(unchanged(states[i - 1], states[i]) == (i == at) for i in range(1, 6))
    assert finite(states[-1])
    optimizer = torch.load(tmp_path / 'epoch_1.pth', weights_only=False)['optimizer']
    assert all(value.isfinite().all() for state in optimizer['state'].values()
               for value in state.values())


@pytest.mark.parametrize('model, what', [(ConstantNan, 'loss'), (NanGradient, 'gradient')])
def test_either_of_loss_and_gradient(tmp_path, model, what):
    runner, errors, states = run(tmp_path, model)
    runner.train()
    assert len(errors) == 1 and f'Iteration 2: the {what} is not finite' in errors[0]
    assert unchanged(states[0], states[1]) and not unchanged(states[1], states[2])


def test_a_good_run_is_not_changed(tmp_path):
    _, _, without = run(tmp_path / 'a')
    runner, errors, states = run(tmp_path / 'b')
    torch.manual_seed(0)
    runner.train()
    plain = toy_runner(tmp_path / 'c', dict(max_epochs=1))
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


def test_accumulated_gradients(tmp_path):
    runner, errors, states = run(
        tmp_path, ConstantNan, optim_wrapper=dict(
            optimizer=dict(type='AdamW', lr=0.01), accumulative_counts=3))
    runner.train()
    weight = [state['body.0.weight'] for state in states]
    # Iteration 2 is bad, so the step after 3 is left out; that after 6 is made.
    assert torch.equal(weight[1], weight[2]) and not torch.equal(weight[4], weight[5])
    assert finite(states[-1])


class Overflowing(OptimWrapper):
    """As the wrapper for mixed precision when every gradient overflows."""

    def __init__(self, scale, **kwargs):
        super().__init__(**kwargs)
        self.loss_scaler = types.SimpleNamespace(get_scale=lambda: scale)

    def step(self, **kwargs):
        pass


@pytest.mark.parametrize('scale, counted', [(65536., 0), (0.5, 6)])
def test_the_scalers_search_is_not_a_fault(tmp_path, scale, counted):
    runner, errors, _ = run(tmp_path, optim_wrapper=dict(
        type=Overflowing, scale=scale, optimizer=dict(type='AdamW', lr=0.01)))
    runner.train()
    assert runner.iter == 6 and len(errors) == counted


def test_other_batches_have_no_paths():
    assert image_paths([1, 2]) == [] and image_paths(dict(inputs=1)) == []
    assert image_paths(dict(data_samples=[nn.Identity()])) == []


def test_at_least_one():
    with pytest.raises(ValueError, match='at least 1'):
        FiniteHook(max_in_a_row=0)
