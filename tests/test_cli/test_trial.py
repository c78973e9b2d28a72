import torch
from mmengine.config import Config

from mmhcnet.cli.schedule import run_length
from mmhcnet.cli.trial import make_trial, report_trial

from ..toy import toy_runner


def test_the_peak_is_that_of_the_whole_trial(tmp_path, monkeypatch):
    cfg = Config(
        dict(
            work_dir=str(tmp_path),
            train_cfg=dict(max_epochs=3),
            default_hooks=dict(logger=dict(type='LoggerHook')),
        )
    )
    planned = run_length(cfg.train_cfg)
    make_trial(cfg, 10)
    runner = toy_runner(
        cfg.work_dir,
        cfg.train_cfg.to_dict(),
        dict(by_epoch=False, interval=10),
        custom_hooks=[*cfg.custom_hooks, dict(type='LoggerHook', interval=1)],
        log_processor=cfg.log_processor.to_dict(),
    )

    # A GPU on which iteration 4 takes 2 GiB, any other one 1 GiB.
    since_reset = []
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'is_current_stream_capturing', lambda: False)
    monkeypatch.setattr(
        torch.cuda, 'max_memory_allocated', lambda device=None: max(since_reset, default=0)
    )
    monkeypatch.setattr(
        torch.cuda, 'reset_peak_memory_stats', lambda device=None: since_reset.clear()
    )
    step = runner.model.train_step

    def train_step(data, optim_wrapper):
        since_reset.append(2**31 if runner.iter == 4 else 2**30)
        return step(data, optim_wrapper)

    runner.model.train_step = train_step
    runner.train()
    # mmengine's logger has reset it.
    assert torch.cuda.max_memory_allocated() == 0
    assert 'peak memory        2.00 GiB on the GPU' in report_trial(runner, planned, 1)
