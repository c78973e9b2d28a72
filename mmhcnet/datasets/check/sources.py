"""The data sets of a config below their wrappers, and samples as training loads them."""

import contextlib
import copy
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import (
    Any,
    NamedTuple,
)

from mmengine.config import Config
from mmengine.fileio import exists, get
from mmengine.registry import DATASETS, TRANSFORMS

from mmhcnet.cli.config import as_list, innermost_datasets

from .findings import Finding

Progress = Callable[[Sequence], Iterable]


def sample_of(length: int, most: int | None) -> range:
    """Evenly spaced indices, at most so many, or all."""
    return range(length) if most is None else range(0, length, -(-length // most) or 1)


def steps_of(pipeline: Sequence) -> Iterator[dict]:
    """The steps of a pipeline's config, those within other steps too."""
    for step in pipeline:
        if isinstance(step, dict):
            yield step
            yield from steps_of(step.get('transforms') or [])
        elif isinstance(step, (list, tuple)):
            yield from steps_of(step)


def build_full(settings: dict) -> Any:
    """A data set with its list of samples, without what COCO's reader prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        dataset = DATASETS.build(settings)
        if hasattr(dataset, 'full_init'):
            dataset.full_init()
    return dataset


class Loaded(NamedTuple):
    """A sample after the loading steps of its pipeline, or the error that they raised."""

    info: dict
    results: dict
    error: Exception | None


class Source:
    """One data set of a split, without wrappers.

    Args:
        cfg (Config): The whole config.
        split (str): 'train', 'val' or 'test'.
        key (str): Where its settings stand in the config.
        settings (dict): Its config.
        files (dict): Annotation files that were read for the split, by path.
    """

    def __init__(self, cfg: Config, split: str, key: str, settings: dict, files: dict):
        self.cfg, self.split, self.key, self.settings = cfg, split, key, settings
        self.files = files

    @property
    def steps(self) -> list[dict]:
        """Steps of its pipeline, flat."""
        return list(steps_of(self.settings.get('pipeline') or []))

    @cached_property
    def evaluators(self) -> dict[str, dict]:
        """Config keys and settings of the metrics that score it."""
        key = f'{self.split}_evaluator'
        value = self.cfg.get(key)
        several = isinstance(value, (list, tuple))
        return {f'{key}.{i}' if several else key: metric for i, metric in enumerate(as_list(value))}

    @property
    def is_scored(self) -> bool:
        """Whether a metric compares predictions with its labels."""
        return any(not metric.get('format_only') for metric in self.evaluators.values())

    @property
    def needs_labels(self) -> bool:
        """Whether anything reads its labels."""
        return self.split == 'train' or self.is_scored

    @cached_property
    def lazy(self) -> Any:
        """The data set with its paths and classes, nothing read."""
        return DATASETS.build(dict(self.settings, lazy_init=True, pipeline=[]))

    @cached_property
    def full(self) -> Any:
        """The data set with its list of samples."""
        return build_full(dict(self.settings, lazy_init=True, pipeline=[]))

    @property
    def classes(self) -> list | str | None:
        """Names of the classes as far as they are known without reading data."""
        found = getattr(self.lazy, 'metainfo', {}).get('classes')
        return found if found is None or isinstance(found, str) else list(found)

    @cached_property
    def storage(self) -> dict | None:
        """``backend_args`` by which its images are read, or None for the disk."""
        found = [step['backend_args'] for step in self.steps if step.get('backend_args')]
        storage = found[0] if found else getattr(self.lazy, 'backend_args', None)
        return None if (storage or {}).get('backend') in ('local', 'disk') else storage

    def is_local(self, path: str) -> bool:
        """Whether an image or label map is on this machine's disk."""
        return not self.storage and '://' not in path

    def exists(self, path: str) -> bool:
        """Whether an image or label map is there, in the storage that it is read from."""
        return (
            os.path.exists(path) if self.is_local(path) else exists(path, backend_args=self.storage)
        )

    def read_json(self, path: str) -> Any:
        """The content of an annotation file, read once for data sets and metrics of a split.

        Raises:
            ValueError: It is not JSON.
            OSError: It cannot be read.
        """
        if path not in self.files:
            backend = getattr(self.lazy, 'backend_args', None)
            self.files[path] = json.loads(get(path, backend_args=backend))
        return self.files[path]

    def load(self, indices: Iterable[int]) -> Iterator[Loaded]:
        """Samples through the steps that load them, whatever those are called.

        Everything up to the step that gives an image counts as loading, and after it what has
        "Load" in its name.
        """
        pipeline = [
            TRANSFORMS.build(dict(step)) if isinstance(step, dict) else step
            for step in self.settings.get('pipeline') or []
        ]
        for index in indices:
            info = self.full.get_data_info(index)
            results, error = copy.deepcopy(info), None
            try:
                for step in pipeline:
                    if 'img' not in results or 'Load' in type(step).__name__:
                        results = step(results)
                        if results is None:
                            raise ValueError(f'{type(step).__name__} gives nothing')
            except Exception as failure:  # a loader of the user's may raise anything
                error = failure
            yield Loaded(info, results or {}, error)


class Annotations:
    """What a data set knows of its samples; a subclass reads one kind of files.

    Args:
        source (Source): The data set.
    """

    def __init__(self, source: Source):
        self.source = source
        self.dataset = source.lazy
        # Images that are named and not there, or that lack their label map.
        self.missing: set[str] = set()

    def _missing_image(self, path: str, named_by: str, otherwise: str) -> Finding:
        self.missing.add(path)
        return Finding(
            'missing images',
            path,
            f'is not there, and {named_by} names it',
            f'copy it there, or {otherwise}',
        )


def sources_of(cfg: Config, split: str) -> list[Source]:
    """The data sets of a split without their wrappers."""
    loader = cfg.get(f'{split}_dataloader')
    if not loader:
        return []
    files: dict = {}
    return [
        Source(cfg, split, key, settings, files)
        for key, settings in innermost_datasets(loader['dataset'], f'{split}_dataloader.dataset')
    ]
