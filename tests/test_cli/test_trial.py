import json

import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import DATASETS

from mmhcnet.cli import trial
from mmhcnet.cli.errors import import_task
from mmhcnet.cli.schedule import run_length
from mmhcnet.cli.trial import SpreadSamples, make_trial, report_trial
from mmhcnet.datasets.digits import write_digits

from ..conftest import ROOT
from ..toy import toy_runner


@pytest.mark.parametrize(
    'length, most, ranks, expected',
    [
        (5, 3, 1, [[0, 1, 3]]),
        (5, 100, 1, [[0, 1, 2, 3, 4]]),
        # All: as many for each, and the evaluator knows that there are 5.
        (5, 100, 2, [[0, 2, 4], [1, 3, 0]]),
        (1, 100, 3, [[0], [0], [0]]),
        # Not all: none twice.
        (50, 5, 2, [[0, 20], [10, 30]]),
        (50, 1, 2, [[0], [0]]),
    ],
)
def test_spread_samples(monkeypatch, length, most, ranks, expected):
    for rank, indices in enumerate(expected):
        monkeypatch.setattr(trial, 'get_dist_info', lambda rank=rank: (rank, ranks))
        sampler = SpreadSamples(range(length), most)
        assert list(sampler) == indices and len(sampler) == len(indices)


@pytest.mark.parametrize('most', [3, 10])
def test_the_metric_is_that_of_the_images_that_are_looked_at(tmp_path, monkeypatch, most):
    write_digits(tmp_path / 'digits', images=(10, 10), scenes=(2, 6))
    cfg = Config.fromfile(ROOT / 'configs/detection/mask_rcnn_hcnet_digits.py')
    root = tmp_path / 'digits/detection'
    truth = root / 'annotations/instances_val2017.json'
    cfg.val_dataloader.dataset.data_root = str(root)
    cfg.val_evaluator.update(ann_file=str(truth), metric='bbox')
    cfg.work_dir = str(tmp_path / 'run')
    monkeypatch.setattr(trial, 'VAL_IMAGES', most)
    import_task('mmdet')
    make_trial(cfg, 1)
    dataset = DATASETS.build(cfg.val_dataloader.dataset)
    evaluator = Evaluator(cfg.val_evaluator)
    evaluator.dataset_meta = dataset.metainfo
    # The boxes themselves, as predictions.
    sampler = SpreadSamples(dataset, most)
    for index in sampler:
        info = dataset.get_data_info(index)
        predicted = dict(
            bboxes=torch.tensor([one['bbox'] for one in info['instances']]),
            labels=torch.tensor([one['bbox_label'] for one in info['instances']]),
            scores=torch.ones(len(info['instances'])),
        )
        evaluator.process(
            [dict(img_id=info['img_id'], ori_shape=(128, 128), pred_instances=predicted)]
        )
    assert len(sampler) == min(most, 6)
    assert evaluator.evaluate(len(dataset))['coco/bbox_mAP'] == pytest.approx(1)
    assert len(json.loads(truth.read_text())['images']) == 6


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
