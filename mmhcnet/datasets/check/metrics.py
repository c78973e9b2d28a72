"""What metrics read by themselves, besides the data set, and by which names they report."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

from mmengine.config import Config
from mmengine.registry import METRICS

from .coco import is_coco
from .findings import NOT_CHECKED, Finding, listed
from .sources import Source


def own_files(sources: list[Source]) -> Iterator[Finding]:
    """Whether COCO's evaluation has the annotations of the images that are predicted.

    Args:
        sources (list[Source]): The data sets of a split for validation or testing.
    """
    files = {
        os.path.abspath(source.lazy.ann_file): source
        for source in sources
        if getattr(source.lazy, 'ann_file', None)
    }
    for key, metric in (sources[0].evaluators if sources else {}).items():
        file = metric.get('ann_file')
        if not file or not files or os.path.abspath(file) in files or not is_coco(metric):
            continue
        source = next(iter(files.values()))
        try:
            scored = _image_ids(source, file)
            predicted = set().union(*(_image_ids(source, path) for path in files))
        except (OSError, ValueError, KeyError, TypeError) as error:
            yield Finding(
                'unreadable annotations',
                f'{key}.ann_file',
                f'{file} cannot be read ({type(error).__name__}: {error})',
                "set it to a file in COCO's format",
            )
            continue
        if scored != predicted:
            yield Finding(
                'evaluated with other annotations',
                f'{key}.ann_file',
                f"is '{file}', and the data set has '{source.lazy.ann_file}', which has "
                'other images',
                'set both to the same file',
            )


def _image_ids(source: Source, path: str) -> set:
    return {image['id'] for image in source.read_json(path)['images']}


def _suffixes(thresholds: tuple) -> list[str]:
    if len(thresholds) < 2:
        return ['']
    return ['_no-thr' if thr is None else f'_thr-{thr:.2f}' for thr in thresholds]


def _accuracy(metric: Any, classes: Sequence[str]) -> list[str]:
    return [f'top{k}{suffix}' for k in metric.topk for suffix in _suffixes(metric.thrs)]


def _average(metric: Any) -> str:
    return {'macro': '', None: '_classwise'}.get(metric.average, f'_{metric.average}')


def _single_label(metric: Any, classes: Sequence[str]) -> list[str]:
    end = _average(metric)
    return [f'{item}{suffix}{end}' for item in metric.items for suffix in _suffixes(metric.thrs)]


def _multi_label(metric: Any, classes: Sequence[str]) -> list[str]:
    suffix = f'_top{metric.topk}'
    if metric.thr:
        suffix = '' if metric.thr == 0.5 else f'_thr-{metric.thr:.2f}'
    return [item + suffix + _average(metric) for item in metric.items]


def _average_precision(metric: Any, classes: Sequence[str]) -> list[str]:
    return ['AP_classwise' if metric.average is None else 'mAP']


def _coco(metric: Any, classes: Sequence[str]) -> list[str]:
    names = [f'{name}_precision' for name in classes] if metric.classwise else []
    recalls = ['AR@100', 'AR@300', 'AR@1000', 'AR_s@1000', 'AR_m@1000', 'AR_l@1000']
    precisions = ['mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l']
    for kind in metric.metrics:
        if kind == 'proposal_fast':
            names += [f'AR@{number}' for number in metric.proposal_nums]
        elif kind == 'proposal':
            names += metric.metric_items or recalls
        else:
            names += [f'{kind}_{item}' for item in metric.metric_items or precisions]
    return names


def _voc(metric: Any, classes: Sequence[str]) -> list[str]:
    if metric.metric == 'mAP':
        return ['mAP', *(f'AP{int(100 * thr):02d}' for thr in metric.iou_thrs)]
    names = [f'recall@{n}@{thr}' for n in metric.proposal_nums for thr in metric.iou_thrs]
    several = len(metric.iou_thrs) > 1
    return names + [f'AR@{n}' for n in metric.proposal_nums] * several


def _iou(metric: Any, classes: Sequence[str]) -> list[str]:
    names = dict(
        mIoU=['mIoU', 'mAcc'], mDice=['mDice', 'mAcc'], mFscore=['mFscore', 'mPrecision', 'mRecall']
    )
    # mAcc is reported with mIoU and with mDice.
    return ['aAcc', *dict.fromkeys(name for kind in metric.metrics for name in names[kind])]


# By the class that computes the results, a metric's own or one that it inherits from.
_NAMES = {
    'mmpretrain.Accuracy': _accuracy,
    'mmpretrain.SingleLabelMetric': _single_label,
    'mmpretrain.MultiLabelMetric': _multi_label,
    'mmpretrain.AveragePrecision': _average_precision,
    'mmdet.CocoMetric': _coco,
    'mmdet.VOCMetric': _voc,
    'mmseg.IoUMetric': _iou,
}


def names_of(settings: dict, classes: Sequence[str]) -> list[str] | None:
    """Names under which a metric reports, or None where they are not known here.

    Args:
        settings (dict): Config of the metric.
        classes (Sequence[str]): Names of the data set's classes.
    """
    kind = settings.get('type')
    if isinstance(kind, str):
        with METRICS.switch_scope_and_registry(None) as registry:
            kind = registry.get(kind)
    if not isinstance(kind, type):
        return None
    own = next((cls for cls in kind.__mro__ if 'compute_metrics' in vars(cls)), kind)
    names = _NAMES.get(f"{own.__module__.split('.')[0]}.{own.__name__}")
    if names is None:
        return None
    # Without its files.
    metric = METRICS.build(
        {key: value for key, value in settings.items() if key not in ('ann_file', 'output_dir')}
    )
    if getattr(metric, 'format_only', False):
        return None
    prefix = metric.prefix or metric.default_prefix
    return [f'{prefix}/{name}' if prefix else name for name in names(metric, classes)]


def save_best(cfg: Config, source: Source) -> Iterator[Finding]:
    """Whether the metric that the best checkpoint is chosen by is among those that are measured.

    Args:
        cfg (Config): The whole config.
        source (Source): The first data set that is validated, or trained on where none is.
    """
    hooks = {f'default_hooks.{name}': hook for name, hook in cfg.get('default_hooks', {}).items()}
    hooks |= {f'custom_hooks.{i}': hook for i, hook in enumerate(cfg.get('custom_hooks') or [])}
    for where, hook in hooks.items():
        wanted = hook.get('save_best') if isinstance(hook, dict) else None
        wanted = [wanted] if isinstance(wanted, str) else list(wanted or [])
        if wanted and wanted != ['auto']:
            yield from _measured(cfg, source, f'{where}.save_best', wanted)


def _measured(cfg: Config, source: Source, key: str, wanted: list[str]) -> Iterator[Finding]:
    if not cfg.get('val_dataloader'):
        yield Finding(
            'no validation',
            key,
            f'is {wanted[0]!r}, and nothing is validated',
            'set val_dataloader, val_cfg and val_evaluator, or leave save_best out',
        )
        return
    names, unknown = [], []
    for settings in source.evaluators.values():
        found = names_of(settings, source.classes or [])
        names += found or []
        unknown += [settings.get('type')] if found is None else []
    missing = [name for name in wanted if name not in names]
    for name in missing if not unknown else []:
        yield Finding(
            'unknown metric',
            key,
            f'is {name!r}, and the evaluators report {listed(names, 20)}',
            'set it to one of them',
        )
    if missing and unknown:
        yield Finding(
            'names of metrics',
            key,
            f'is {listed(missing)}, and what {listed(unknown)} reports is known after a '
            'validation only',
            'tools/train.py CONFIG --trial 1 validates once',
            NOT_CHECKED,
        )
