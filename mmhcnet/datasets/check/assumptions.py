"""What model, preprocessor, metrics, loops and hooks assume about the data: the config alone."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dataset.sampler import InfiniteSampler
from mmengine.registry import DATA_SAMPLERS, LOOPS, MODELS
from mmengine.runner import EpochBasedTrainLoop

from mmhcnet.cli.config import as_list, is_type

from .findings import Finding, listed
from .sources import Source


def parts(settings: Any, key: str) -> Iterator[tuple[str, dict]]:
    """All dicts within a config's value, with their keys, the outermost first."""
    if isinstance(settings, dict):
        yield key, settings
        for name, value in settings.items():
            yield from parts(value, f'{key}.{name}')
    elif isinstance(settings, (list, tuple)):
        for i, value in enumerate(settings):
            yield from parts(value, f'{key}.{i}')


def preprocessor_of(cfg: Config) -> tuple[str, dict]:
    """Key and settings of the data preprocessor, that of the model before the shared one."""
    inner = cfg.get('model', {}).get('data_preprocessor')
    return (
        ('model.data_preprocessor', inner)
        if inner
        else ('data_preprocessor', cfg.get('data_preprocessor') or {})
    )


def class_names(source: Source) -> Iterator[Finding]:
    """Whether the classes of a data set are names, each once."""
    classes, key = source.classes, f'{source.key}.metainfo.classes'
    if isinstance(classes, str):
        yield Finding(
            'classes are a string',
            key,
            f'is the string {classes!r}, whose letters count as classes',
            f'write it as a tuple, ({classes!r}, ), with the comma',
        )
    elif classes and 'classes' in (source.settings.get('metainfo') or {}):
        # ImageNet itself has two classes that are called crane.
        twice = [name for name, n in Counter(map(str, classes)).items() if n > 1]
        if twice:
            yield Finding(
                'repeated class names',
                key,
                f'has {listed(twice)} more than once',
                'name every class once',
            )


def heads(cfg: Config, classes: int) -> Iterator[Finding]:
    """Whether heads, losses and preprocessor have as many classes as the data."""
    for key, part in parts(cfg.get('model') or {}, 'model'):
        # A region proposal network tells objects from background only.
        if '.rpn_head' in key or key.endswith('data_preprocessor'):
            continue
        number = part.get('num_classes')
        if isinstance(number, int) and number != classes:
            yield Finding(
                'wrong number of classes',
                f'{key}.num_classes',
                f'is {number}, and the data set has {classes} classes',
                f'set it to {classes}, or metainfo.classes of the data set',
            )
        elif isinstance(number, int):
            yield from _class_weights(key, part, number)
    if cfg.get('default_scope') == 'mmpretrain':
        key, preprocessor = preprocessor_of(cfg)
        number = preprocessor.get('num_classes')
        if number is not None and number != classes:
            # Elsewhere nobody reads it.
            mixes = bool((cfg.model.get('train_cfg') or {}).get('augments'))
            if mixes or preprocessor.get('to_onehot'):
                yield Finding(
                    'wrong number of classes',
                    f'{key}.num_classes',
                    f'is {number}, and the data set has {classes} classes; Mixup and '
                    'CutMix make targets of it',
                    f'set it to {classes}',
                )


def _class_weights(key: str, head: dict, classes: int) -> Iterator[Finding]:
    background = 'loss_cls' in head and 'roi_head' in key
    for name, loss in head.items():
        for one in as_list(loss) if name.startswith('loss') else []:
            weights = one.get('class_weight')
            wanted = head.get('out_channels') or classes + background
            if isinstance(weights, (list, tuple)) and len(weights) != wanted:
                yield Finding(
                    'wrong number of class weights',
                    f'{key}.{name}.class_weight',
                    f'has {len(weights)} numbers, and the head {wanted} outputs',
                    f'write {wanted} numbers' + ', the last one for the background' * background,
                )


def ignore_index(cfg: Config, source: Source) -> Iterator[Finding]:
    """Whether heads, metrics and padding of a segmentor ignore what the data set ignores."""
    ignored = getattr(source.lazy, 'ignore_index', None)
    if cfg.get('default_scope') != 'mmseg' or ignored is None:
        return
    stated: dict[str, int] = {}
    if source.split == 'train':
        for key, part in parts(cfg.get('model') or {}, 'model'):
            if 'num_classes' in part:
                stated[f'{key}.ignore_index'] = part.get('ignore_index', 255)
        key, preprocessor = preprocessor_of(cfg)
        if preprocessor.get('size') or preprocessor.get('size_divisor'):
            stated[f'{key}.seg_pad_val'] = preprocessor.get('seg_pad_val', 255)
    else:
        for key, metric in source.evaluators.items():
            if is_type(metric, 'IoUMetric'):
                stated[f'{key}.ignore_index'] = metric.get('ignore_index', 255)
    for key, value in stated.items():
        if value != ignored:
            yield Finding(
                'ignored ids differ',
                key,
                f'is {value}, and {source.key}.ignore_index is {ignored}',
                f'set both to the id of pixels without a label, as {key}={ignored}',
            )


def top_k(source: Source, classes: int) -> Iterator[Finding]:
    """Whether there are k classes for a top-k accuracy."""
    found = [
        (f'{key}.topk', metric.get('topk', 1))
        for key, metric in source.evaluators.items()
        if is_type(metric, 'Accuracy')
    ]
    head = source.cfg.get('model', {}).get('head') or {}
    if head.get('cal_acc') and source.split == 'train':
        found.append(('model.head.topk', head.get('topk', 1)))
    for key, value in found:
        largest = max(value) if isinstance(value, (list, tuple)) else value
        if largest > classes:
            yield Finding(
                'top-k of fewer classes',
                key,
                f'is {value}, and there are {classes} classes: a top-{largest} accuracy '
                'does not exist',
                f'set it to {min(classes, 1)} or to (1, {classes})'
                if classes > 1
                else 'set it to 1',
            )


def sampler_and_loop(cfg: Config, split: str) -> Iterator[Finding]:
    """Whether an epoch of the sampler ends, for the loops that wait for its end."""
    sampler = (cfg.get(f'{split}_dataloader') or {}).get('sampler')
    if not isinstance(sampler, dict):
        return
    kind = (
        DATA_SAMPLERS.get(sampler['type']) if isinstance(sampler['type'], str) else sampler['type']
    )
    if not (isinstance(kind, type) and issubclass(kind, InfiniteSampler)):
        return
    loop = cfg.get(f'{split}_cfg') or {}
    if split == 'train':
        name = loop.get('type', 'EpochBasedTrainLoop' if loop.get('by_epoch') else '')
        found = LOOPS.get(name) if isinstance(name, str) else name
        if not (isinstance(found, type) and issubclass(found, EpochBasedTrainLoop)):
            return
    yield Finding(
        'endless sampler',
        f'{split}_dataloader.sampler',
        f'is an {kind.__name__}, which never ends, and the loop '
        f'({loop.get("type") or "by epochs" if split == "train" else split}) waits for '
        'the end of an epoch',
        f"set {split}_dataloader.sampler.type='DefaultSampler'"
        + (', or train by iterations (max_iters)' if split == 'train' else ''),
    )


def sizes_and_channels(cfg: Config, source: Source) -> Iterator[Finding]:
    """Whether backbone, preprocessor and pipeline agree about size and channels of an image."""
    backbone = cfg.get('model', {}).get('backbone') or {}
    key, preprocessor = preprocessor_of(cfg)
    channels = backbone.get('in_channels', 3)
    for name in ('mean', 'std'):
        value = preprocessor.get(name)
        if isinstance(value, (list, tuple)) and len(value) not in (1, channels):
            yield Finding(
                'wrong number of channels',
                f'{key}.{name}',
                f'has {len(value)} numbers, and model.backbone.in_channels is {channels}',
                f'write one number per channel, {channels}, or a single one for all',
            )
    least = _least_size(backbone)
    side = _fixed_size(cfg, source)
    if least and side and side < least:
        yield Finding(
            'images are too small',
            source.key,
            f'its pipeline makes images of {side} pixels, and {backbone["type"]} needs '
            f'{least} in both directions',
            f'resize or crop to {least} pixels or more in the pipeline',
        )


def _least_size(backbone: dict) -> int | None:
    kind = (
        MODELS.get(backbone['type'])
        if isinstance(backbone.get('type'), str)
        else backbone.get('type')
    )
    if not (isinstance(kind, type) and kind.__module__.startswith('mmhcnet.')):
        return None
    try:
        # No memory, and no weights.
        with torch.device('meta'):
            return MODELS.build(dict(backbone, init_cfg=None)).min_size
    except (TypeError, ValueError):
        # Building the model says what is wrong with it.
        return None


def _fixed_size(cfg: Config, source: Source) -> int | None:
    """The smaller side of what a pipeline makes, where it does not depend on the image."""
    _, preprocessor = preprocessor_of(cfg)
    if preprocessor.get('size') or preprocessor.get('pad_size_divisor'):
        # Padded after the pipeline.
        return None
    side = None
    for step in source.settings.get('pipeline') or []:
        kind = str(step.get('type')).split('.')[-1]
        value = step.get('crop_size', step.get('scale', step.get('size')))
        if kind in (
            'RandomResizedCrop',
            'CenterCrop',
            'RandomCrop',
            'Resize',
            'Pad',
        ) and not step.get('keep_ratio'):
            numbers = [value] if isinstance(value, int) else value
            if isinstance(numbers, (list, tuple)) and all(isinstance(n, int) for n in numbers):
                side = min(numbers)
        elif kind in ('ResizeEdge', 'RandomResize', 'RandomChoiceResize', 'RandomChoice'):
            side = None
    return side
