"""--compile in training, on the digits recipe of each task."""

import pytest
import torch
from mmengine.registry import RUNNERS

from mmhcnet.cli.compile import compiled
from mmhcnet.cli.config import load_config
from mmhcnet.cli.errors import import_task

from .conftest import CONFIGS, ROOT


def use_two_stages(model, task):
    """Give a model a backbone of half the stages: each of them takes seconds to compile."""
    dims = model.backbone.arch['embed_dims'][:2]
    model.backbone.arch = dict(embed_dims=dims, depths=[1, 2])
    model.backbone.out_indices = (0, 1)
    if task == 'classification':
        model.backbone.out_indices, model.head.in_channels = (1,), dims[1]
    elif task == 'detection':
        model.neck.in_channels = dims
    else:
        model.decode_head.update(in_channels=dims, in_index=[0, 1])
        model.auxiliary_head.update(in_channels=dims[1], in_index=1)


@pytest.fixture
def one_rank(tmp_path, monkeypatch):
    monkeypatch.setenv('LOCAL_RANK', '0')
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{tmp_path}/group', rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture
def run(task, digits, tmp_path):
    """Train for some iterations in this process; returns losses, weights, their change, the log."""

    def run(name, iterations, compiling, resume=None, **settings):
        cfg = load_config(
            str(ROOT / CONFIGS[task]),
            {
                'train_dataloader.dataset.data_root': str(digits / task),
                'train_dataloader.batch_size': 2,
                'train_dataloader.num_workers': 0,
                'train_dataloader.persistent_workers': False,
                'default_hooks.checkpoint.interval': 2,
                'default_hooks.checkpoint.by_epoch': False,
            },
            str(tmp_path / name),
        )
        use_two_stages(cfg.model, task)
        if task == 'detection':
            # Images of many sizes.
            scales = [(96, 96), (128, 128), (160, 160), (192, 192)]
            resize = dict(type='RandomChoiceResize', scales=scales, keep_ratio=True)
            cfg.train_dataloader.dataset.pipeline.insert(-1, resize)
        cfg.train_cfg = dict(type='mmhcnet.IterTrainLoop', max_iters=iterations)
        # AdamW would make as much of a gradient that is 0 up to rounding as of any other.
        cfg.optim_wrapper = dict(optimizer=dict(type='SGD', lr=1e-4))
        cfg.param_scheduler = None
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
        cfg.test_cfg = cfg.test_dataloader = cfg.test_evaluator = None
        cfg.resume, cfg.load_from = resume is not None, resume
        cfg.randomness = dict(seed=1)
        cfg.merge_from_dict(settings)
        cfg.experiment_name = f'{task}_{name}_{iterations}'
        import_task(cfg.default_scope)
        runner = RUNNERS.get('Runner').from_cfg(cfg)
        before = {name: p.detach().clone() for name, p in runner.model.named_parameters()}
        sizes = set()
        getattr(runner.model, 'module', runner.model).backbone.register_forward_pre_hook(
            lambda module, inputs: sizes.add(tuple(inputs[0].shape))
        )
        with compiled(runner, 'blocks' if compiling else None):
            runner.train()
        if iterations == 4 and not resume:
            # Two iterations may have drawn the same one.
            assert (len(sizes) > 1) == (task == 'detection')
        change = torch.cat(
            [(p.detach() - before[name]).flatten() for name, p in runner.model.named_parameters()]
        )
        (log,) = (tmp_path / name / runner.timestamp).glob('*.log')
        losses = runner.message_hub.get_scalar('train/loss').data[0]
        return losses, runner.model.state_dict(), change, log.read_text()

    return run


@pytest.mark.slow
@pytest.mark.parametrize('task', CONFIGS)
def test_losses_and_exact_resume(task, run, tmp_path):
    plain, _, wanted, _ = run('plain', 4, compiling=False)
    losses, weights, change, log = run('compiled', 4, compiling=True)
    assert len(losses) == 4 and losses == pytest.approx(plain, rel=1e-4)
    assert (change - wanted).norm() < 1e-2 * wanted.norm()
    assert log.count('--compile: 2 compilations for 3 blocks took ') == 1
    # As in another process.
    torch._dynamo.reset()
    middle = str(tmp_path / 'compiled' / 'iter_2.pth')
    resumed, again, _, _ = run('resumed', 4, compiling=True, resume=middle)
    assert list(resumed) == list(losses)
    assert weights.keys() == again.keys()
    assert all(torch.equal(weights[key], again[key]) for key in weights)


@pytest.mark.slow
@pytest.mark.parametrize('task', ['classification'])
def test_with_accumulation_moving_average_and_distributed(task, run, traced, one_rank):
    settings = dict(
        launcher='pytorch',
        optim_wrapper=dict(accumulative_counts=2),
        custom_hooks=[dict(type='EMAHook')],
        model_wrapper_cfg=dict(
            type='MMDistributedDataParallel',
            device_ids=None,
            broadcast_buffers=False,
            find_unused_parameters=False,
        ),
    )
    plain, weights, _, _ = run('plain', 4, compiling=False, **settings)
    losses, compiled_weights, _, log = run('compiled', 4, compiling=True, **settings)
    assert '--compile: 2 compilations for 3 blocks took ' in log
    assert losses == pytest.approx(plain, rel=1e-6)
    assert all(torch.allclose(weights[key], compiled_weights[key], atol=1e-6) for key in weights)


@pytest.mark.slow
@pytest.mark.parametrize('task', ['classification'])
def test_mmengines_own_way(task, run):
    plain, _, _, _ = run('plain', 2, compiling=False)
    losses, _, _, log = run('whole', 2, compiling=False, compile=dict(backend='eager'))
    assert 'Model has been "compiled"' in log
    assert losses == pytest.approx(plain, rel=1e-6)
