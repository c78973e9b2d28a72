"""Whether the images that a config feeds to its model have one size, judged from its pipelines."""

from collections.abc import Iterator

from mmengine.config import Config

# Steps after which all images have one size, after which they may differ, and which choose
# between lists of steps; names of mmcv, mmpretrain, mmdet and mmseg.
_ONE_SIZE = ('CenterCrop', 'EfficientNetCenterCrop', 'EfficientNetRandomCrop', 'RandomResizedCrop')
_MANY_SIZES = (
    'CachedMixUp',
    'CachedMosaic',
    'Expand',
    'MinIoURandomCrop',
    'MixUp',
    'Mosaic',
    'RandomAffine',
    'RandomCenterCropPad',
    'RandomChoiceResize',
    'RandomResize',
    'ResizeEdge',
    'ResizeShortestEdge',
)
_CHOICES = ('RandomChoice', 'TestTimeAug')


def _steps(dataset: dict) -> Iterator[dict]:
    """Of a data set below its wrappers, then of the wrappers, in the order in which they run."""
    for inner in dataset.get('datasets', [dataset['dataset']] if 'dataset' in dataset else []):
        yield from _steps(inner)
    yield from dataset.get('pipeline') or ()


def _name(step: dict) -> str:
    kind = step['type']
    return kind.rpartition('.')[2] if isinstance(kind, str) else kind.__name__


def _one_size_behind(step: dict) -> bool | None:
    """Whether images have one size after a step; None if it keeps the sizes that they had."""
    name = _name(step)
    if name in _ONE_SIZE:
        return True
    if name in _MANY_SIZES:
        return False
    if name == 'RandomCrop':
        return step.get('crop_type', 'absolute') == 'absolute'
    if name == 'Resize':
        return bool(step.get('scale')) and not step.get('keep_ratio', False)
    if name == 'Pad':
        return True if step.get('size') else None
    if name in _CHOICES:
        parts: list[dict] = []
        for choice in step['transforms']:
            parts += [choice] if isinstance(choice, dict) else choice
        return False if any(_one_size_behind(part) is not None for part in parts) else None
    return None


def _shown(step: dict) -> str:
    settings = ', '.join(
        f'{key}={value!r}'
        for key, value in step.items()
        if key in ('scale', 'scales', 'keep_ratio', 'crop_size', 'crop_type')
    )
    return f'{_name(step)}({settings})'


def varying_step(cfg: Config, split: str) -> str | None:
    """What makes the images of a split differ in size, for a message, or None if all have one.

    No image is looked at: crops are taken to have their full size, as they have of images that
    are large enough.

    Args:
        cfg (Config): A config of mmpretrain, mmdet or mmseg.
        split (str): 'train', 'val' or 'test'.
    """
    # mmseg pads to that size, in training only.
    if split == 'train' and cfg.get('model', {}).get('data_preprocessor', {}).get('size'):
        return None
    varying = 'a pipeline in which no step gives images one size'
    for step in _steps(cfg[f'{split}_dataloader']['dataset']):
        one_size = _one_size_behind(step)
        if one_size is not None:
            varying = None if one_size else _shown(step)
    return varying
