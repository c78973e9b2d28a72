"""Try a config for a few iterations before a long run: ``tools/train.py CONFIG --trial N``."""

import itertools
import json
import math
import os
from collections.abc import Iterator, Sized

import torch
from mmengine.config import Config
from mmengine.dist import get_dist_info
from mmengine.fileio import get
from mmengine.registry import DATASETS, init_default_scope
from mmengine.runner import Runner
from mmengine.runner.checkpoint import load_checkpoint
from torch.utils.data import Sampler

from mmhcnet.registry import DATA_SAMPLERS
from mmhcnet.training.tolerant_data import batch_size_of

from .config import as_list
from .memory import PeakMemoryHook, peak_memory
from .schedule import RunLength, run_length, scale_schedule

# Larger validation sets are represented by so many images.
VAL_IMAGES = 200


@DATA_SAMPLERS.register_module()
class SpreadSamples(Sampler):
    """At most so many samples of a data set, evenly spaced, dealt out to the ranks in turn.

    Every rank gets equally many. Where all samples are taken some are repeated for that, which
    mmengine's evaluator leaves out again.

    Args:
        dataset (Sized): The data set.
        num_samples (int): How many samples at most, over all ranks.
        seed (int, optional): Not used: the order is fixed. mmengine passes it to every sampler.
    """

    def __init__(self, dataset: Sized, num_samples: int, seed: int | None = None):
        rank, world_size = get_dist_info()
        chosen = spread(len(dataset), num_samples)
        if len(chosen) < len(dataset):
            chosen = chosen[: max(world_size, len(chosen) - len(chosen) % world_size)]
        missing = -len(chosen) % world_size
        self.indices = (chosen + list(itertools.islice(itertools.cycle(chosen), missing)))[
            rank::world_size
        ]

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)

    def set_epoch(self, epoch: int) -> None:
        """The order does not depend on the epoch."""


def spread(length: int, most: int) -> list[int]:
    """At most so many indices, evenly spaced."""
    number = min(length, most)
    return [i * length // number for i in range(number)]


def _validate_on_few(cfg: Config) -> None:
    """Let a large validation set be represented by some of its images, for metrics too.

    A metric that reads the annotations of all images, as COCO's, would count those that are not
    predicted as missed. It gets those of the chosen images, in a file in the work directory.
    Where that cannot be done everything is validated.

    Args:
        cfg (Config): Changed in place.
    """
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    files = [metric for metric in as_list(cfg.get('val_evaluator')) if metric.get('ann_file')]
    if files:
        dataset = DATASETS.build(cfg.val_dataloader.dataset)
        if len(dataset) <= VAL_IMAGES:
            return
        try:
            chosen = spread(len(dataset), VAL_IMAGES)
            images = {dataset.get_data_info(i)['img_id'] for i in chosen}
            contents = [_only(images, metric) for metric in files]
        except (AttributeError, KeyError, TypeError, ValueError):
            return
        # One for each rank: they do not wait for each other.
        rank, _ = get_dist_info()
        os.makedirs(cfg.work_dir, exist_ok=True)
        for number, (metric, content) in enumerate(zip(files, contents)):
            metric.ann_file = os.path.join(cfg.work_dir, f'annotations_{number}_{rank}.json')
            metric.pop('backend_args', None)
            with open(metric.ann_file, 'w') as file:
                json.dump(content, file)
    cfg.val_dataloader.sampler = dict(type='mmhcnet.SpreadSamples', num_samples=VAL_IMAGES)


def _only(images: set, metric: dict) -> dict:
    """The annotations of these images from a metric's file in COCO's format."""
    content = json.loads(get(metric['ann_file'], backend_args=metric.get('backend_args')))
    return dict(
        content,
        images=[image for image in content['images'] if image['id'] in images],
        annotations=[one for one in content['annotations'] if one['image_id'] in images],
    )


def make_trial(cfg: Config, iterations: int) -> None:
    """Turn a config into one that trains for ``iterations``, validates and saves.

    The validation is that of the whole run, on all images or on 200 spread over the data set.
    Schedules keep their shape over the shortened run. Everything is written to the folder
    ``trial`` of the work directory, so that nothing of a real run there is touched.

    Args:
        cfg (Config): Changed in place.
        iterations (int): At least 1.
    """
    if iterations < 1:
        raise ValueError(f'--trial needs at least 1 iteration, got {iterations}')
    length = run_length(cfg.train_cfg)
    schedulers = cfg.get('param_scheduler')
    if schedulers:
        schedulers = [schedulers] if isinstance(schedulers, dict) else schedulers
        ratio = iterations / length.number
        # How many iterations an epoch has is not known before the data set is read; a warm-up in
        # iterations gets a tenth of the trial in an epoch-based run.
        warmup = max(
            (s['end'] for s in schedulers if not s.get('by_epoch', True) and s.get('end')),
            default=1,
        )
        per_iter = iterations / (10 * warmup) if length.by_epoch else ratio
        cfg.param_scheduler = scale_schedule(
            schedulers, iterations, per_epoch=ratio, per_iter=per_iter, to_iters=True
        )
    cfg.work_dir = os.path.join(cfg.work_dir, 'trial')
    cfg.train_cfg = dict(
        type='mmhcnet.IterTrainLoop', max_iters=iterations, val_interval=iterations
    )
    cfg.log_processor = dict(by_epoch=False)
    cfg.default_hooks.logger.interval = max(1, iterations // 10)
    cfg.default_hooks.logger.log_metric_by_epoch = False
    # What chooses the best checkpoint is tried too.
    best = {
        key: value
        for key, value in (cfg.default_hooks.get('checkpoint') or {}).items()
        if key in ('save_best', 'rule', 'greater_keys', 'less_keys')
    }
    cfg.default_hooks.checkpoint = dict(
        type='mmhcnet.CheckpointHook', by_epoch=False, interval=iterations, max_keep_ckpts=1, **best
    )
    cfg.custom_hooks = [*cfg.get('custom_hooks', []), dict(type='mmhcnet.PeakMemoryHook')]
    cfg.load_from, cfg.resume = None, False
    if cfg.get('val_dataloader'):
        _validate_on_few(cfg)


def report_trial(runner: Runner, planned: RunLength, val_interval: int) -> str:
    """What the trial tells of the whole run; reads the written checkpoint back.

    Args:
        runner (Runner): After training with the config of :func:`make_trial`.
        planned (RunLength): Length of the whole run.
        val_interval (int): Its epochs or iterations from one validation to the next.

    Returns:
        str: Several lines for a person.

    Raises:
        RuntimeError: The loss is not finite, or the checkpoint does not load into the model.
    """
    history = runner.message_hub.log_scalars
    losses = history['train/loss'].data[0].tolist()
    if not all(map(math.isfinite, losses)):
        raise RuntimeError(
            'the loss is not finite within the trial: lower the learning rate, or '
            'train without --amp'
        )
    path = runner.message_hub.get_info('last_ckpt') or os.path.join(
        runner.work_dir, f'iter_{runner.iter}.pth'
    )
    load_checkpoint(runner.model, path, map_location='cpu', strict=True)

    # The first iterations pay for warming up caches, and are left out where there are more.
    times = history['train/time'].data[0].tolist()
    times = times[min(len(times) - 1, max(1, len(times) // 5)) :]
    step = sum(times) / len(times)
    batches = len(runner.train_dataloader)
    steps = planned.number * (batches if planned.by_epoch else 1)
    seconds = steps * step
    lines = [
        f'loss               {losses[0]:.4f} at first, {losses[-1]:.4f} at iteration {len(losses)}',
        f'checkpoint         {path}, {os.path.getsize(path) / 2**20:.0f} MiB, read back',
    ]
    if 'val/time' in history:
        rounds = planned.number // val_interval
        loader = runner.val_dataloader
        _, world_size = get_dist_info()
        val_batches = math.ceil(len(loader.dataset) / batch_size_of(loader) / world_size)
        seconds += rounds * val_batches * history['val/time'].mean()
        metrics = {
            key[4:]: history[key].current()
            for key in history
            if key.startswith('val/') and not key.endswith('time')
        }
        shown = ', '.join(f'{key} {value:.4g}' for key, value in metrics.items())
        images, number = len(loader.dataset), world_size * len(loader.sampler)
        seen = (
            f'all {images} images'
            if number >= images
            else f'{number} of {images} images, spread over the data set'
        )
        lines.append(f'validation         ran on {seen} ({shown or "ok"})')
    if torch.cuda.is_available():
        (peak,) = (hook.peak for hook in runner.hooks if isinstance(hook, PeakMemoryHook))
        lines.append(f'peak memory        {peak / 2**30:.2f} GiB on the GPU')
    lines.append(f'peak memory        {peak_memory() / 2**30:.2f} GiB in this process')
    lines.append(
        f'time               {step:.3f} s per iteration; the whole run of {planned} '
        f'({steps} iterations, validations included) takes about {_duration(seconds)}'
    )
    return '\n'.join(lines)


def _duration(seconds: float) -> str:
    days, rest = divmod(int(seconds), 86400)
    hours, rest = divmod(rest, 3600)
    return (f'{days} d ' if days else '') + f'{hours} h {rest // 60:02d} min'
