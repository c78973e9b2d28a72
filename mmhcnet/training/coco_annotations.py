"""What mmdet leaves out of a COCO file, learned while its data set reads the file.

Such a file may be half a gigabyte of JSON. So it is not parsed another time: the data set opens it
through ``COCOAPI``, and what that has read is looked at before the data set goes on.
"""

from typing import Any

from mmengine.registry import DATASETS

from .sample_rules import boxes_left_out, refuse_absurd_annotations

# Attribute of a data set that holds the boxes it left out.
_LEFT_OUT = 'mmhcnet_boxes_left_out'


def build_dataset(settings: dict) -> Any:
    """The data set of a config, of which :func:`left_out_of` then knows the boxes left out.

    Args:
        settings (dict): Config of a data set, with or without wrappers around it. Not changed.
    """
    return DATASETS.build(_through_observed(settings))


def left_out_of(dataset: Any) -> list[str] | None:
    """Boxes that a data set without wrappers left out of its file, or None if it is not known."""
    return getattr(dataset, _LEFT_OUT, None)


def _through_observed(settings: Any) -> Any:
    if not isinstance(settings, dict):
        return settings
    if 'dataset' in settings:
        return dict(settings, dataset=_through_observed(settings['dataset']))
    if 'datasets' in settings:
        return dict(settings, datasets=[_through_observed(part) for part in settings['datasets']])
    if 'type' not in settings or not str(settings.get('ann_file')).endswith('.json'):
        return settings
    return dict(settings, type=_observed, dataset_type=settings['type'])


def _observed(dataset_type: Any, **settings) -> Any:
    """A data set; while it reads its file its ``COCOAPI`` is one that looks at the boxes too."""
    with DATASETS.switch_scope_and_registry(None) as registry:
        cls = registry.get(dataset_type) if isinstance(dataset_type, str) else dataset_type
    settings['type'] = dataset_type
    if not hasattr(cls, 'COCOAPI') or settings.get('lazy_init'):
        return DATASETS.build(settings)
    dataset = DATASETS.build(dict(settings, lazy_init=True))
    read = dataset.COCOAPI

    def read_and_look(*args, **kwargs):
        coco = read(*args, **kwargs)
        refuse_absurd_annotations(coco.dataset, dataset.ann_file)
        setattr(dataset, _LEFT_OUT, list(boxes_left_out(coco.dataset)))
        return coco

    dataset.COCOAPI = read_and_look
    try:
        dataset.full_init()
    finally:
        # The class's own again, with which the data set can be pickled for a worker process.
        del dataset.COCOAPI
    return dataset
