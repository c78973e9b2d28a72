"""Our loops and hooks train as mmengine's do, to the bit, where nothing goes wrong.

Random numbers are the one difference, because ours are drawn afresh for each iteration. So the
digits recipes are trained without augmentation here, and mmengine's loop gets the same ones.
"""

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import RUNNERS

from mmhcnet.cli.config import load_config
from mmhcnet.cli.errors import import_task
from mmhcnet.training.resumable_data import seed_process

from .conftest import CONFIGS, ROOT

THEIRS = ('runtime_info', 'timer', 'sampler_seed', 'logger', 'param_scheduler')


class SameDraws(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        seed_process(runner.seed, 0, runner.iter)


@pytest.fixture
def train(digits, tmp_path):
    """Train a recipe; returns what is logged, the weights and the optimizer's state."""

    def run(task, ours):
        name = 'ours' if ours else 'theirs'
        cfg = load_config(str(ROOT / CONFIGS[task]), {}, str(tmp_path / name))
        loader = cfg.train_dataloader
        loader.update(batch_size=2, num_workers=0, persistent_workers=False)
        loader.dataset.update(data_root=str(digits / task))
        loader.dataset.pipeline = (
            cfg.test_pipeline
            if task == 'classification'
            else [step for step in cfg.train_pipeline if 'Random' not in step['type']]
        )
        by_epoch = 'max_epochs' in cfg.train_cfg
        if by_epoch:
            loader.dataset.indices = 6
            cfg.train_cfg = dict(max_epochs=2)
        else:
            cfg.train_cfg = dict(max_iters=6)
        kind = 'Epoch' if by_epoch else 'Iter'
        cfg.train_cfg.type = f'mmhcnet.{kind}TrainLoop' if ours else f'{kind}BasedTrainLoop'
        if not ours:
            cfg.custom_hooks = []
            cfg.default_hooks = {
                hook: settings for hook, settings in cfg.default_hooks.items() if hook in THEIRS
            }
        cfg.default_hooks.checkpoint = None
        for split in ('val', 'test'):
            cfg[f'{split}_cfg'] = cfg[f'{split}_dataloader'] = cfg[f'{split}_evaluator'] = None
        cfg.randomness = dict(seed=1)
        cfg.experiment_name = f'{task}_{name}'
        import_task(cfg.default_scope)
        runner = RUNNERS.get('Runner').from_cfg(cfg)
        if not ours:
            runner.register_hook(SameDraws())
        runner.train()
        history = runner.message_hub.log_scalars
        losses = {
            key: log.data[0].tolist()
            for key, log in history.items()
            if key.startswith('train/') and not key.endswith('time')
        }
        return losses, runner.model.state_dict(), runner.optim_wrapper.state_dict()

    return run


@pytest.mark.slow
@pytest.mark.parametrize('task', CONFIGS)
def test_losses_weights_and_optimizer(task, train):
    losses, weights, optimizer = train(task, ours=True)
    wanted, wanted_weights, wanted_optimizer = train(task, ours=False)
    assert len(losses['train/loss']) == 6 and len(set(losses['train/loss'])) > 3
    assert losses.items() >= wanted.items()
    assert all(torch.equal(value, weights[key]) for key, value in wanted_weights.items())
    assert optimizer['param_groups'] == wanted_optimizer['param_groups']
    assert all(
        torch.equal(torch.as_tensor(value), torch.as_tensor(optimizer['state'][i][key]))
        for i, state in wanted_optimizer['state'].items()
        for key, value in state.items()
    )
