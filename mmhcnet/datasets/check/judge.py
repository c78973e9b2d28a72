"""The judgement of a config's data, put together: its quick part, and all of it."""

import logging
from collections.abc import Generator, Iterable, Iterator

import numpy as np
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import init_default_scope

from mmhcnet.cli.config import missing_data
from mmhcnet.cli.errors import explain
from mmhcnet.errors import UserError
from mmhcnet.training.sample_rules import check_sample, source_of

from . import assumptions
from .coco import ABSURD, CocoFile
from .findings import ERROR, NOT_CHECKED, WARNING, Counts, Finding, listed
from .folders import ClassFolders
from .images import unreadable, wrong_channels, wrong_size
from .label_maps import LabelMaps
from .listed_samples import ListedSamples
from .metrics import own_files, save_best
from .sources import Progress, Source, build_full, sample_of, sources_of

# Samples that are loaded per data set: before a training, and by a check that is not full.
FEW, SAMPLE = 4, 200
# Samples that go through the whole pipeline.
WHOLE = 3
Annotations = CocoFile | ClassFolders | LabelMaps | ListedSamples


def _annotations_of(source: Source) -> Annotations:
    """What knows the annotations of a data set, by how it loads them."""
    dataset = source.lazy
    own = (
        next(cls for cls in type(dataset).__mro__ if 'load_data_list' in vars(cls))
        if hasattr(dataset, 'load_data_list')
        else None
    )
    known = dict(CocoDataset=CocoFile, CustomDataset=ClassFolders, BaseSegDataset=LabelMaps)
    kind = known.get(getattr(own, '__name__', None), ListedSamples)
    if kind is ClassFolders and not source.is_local(dataset.img_prefix):
        # Folders are walked through on a disk only.
        kind = ListedSamples
    return kind(source)


class DataSetCheck:
    """The judgement of one data set.

    Args:
        source (Source): The data set.
    """

    def __init__(self, source: Source):
        self.source = source
        self.annotations: Annotations | None = None
        self.read = self.total = 0

    def _begin(self) -> Iterator[Finding]:
        try:
            self.annotations = _annotations_of(self.source)
        except Exception as error:  # a data set's constructor may raise anything
            yield Finding(
                'data sets that cannot be built',
                self.source.key,
                explain(error),
                'correct its settings',
            )
            return
        yield from assumptions.class_names(self.source)
        yield from assumptions.sizes_and_channels(self.source.cfg, self.source)
        yield from assumptions.ignore_index(self.source.cfg, self.source)

    def _model(self) -> Iterator[Finding]:
        classes = self._number_of_classes()
        if classes:
            yield from assumptions.heads(self.source.cfg, classes)
            if self.source.cfg.get('default_scope') == 'mmpretrain':
                yield from assumptions.top_k(self.source, classes)

    def _number_of_classes(self) -> int | None:
        names = getattr(self.annotations, 'classes', self.source.classes)
        if isinstance(names, str) or not getattr(self.annotations, 'fits', True):
            return None
        head = (self.source.cfg.get('model', {}).get('head') or {}).get('num_classes')
        return head if names is None else len(names)

    def quick(self) -> Iterator[Finding]:
        """What a training should know before its first iteration."""
        found = yield from self._of_annotations('quick')
        if isinstance(self.annotations, LabelMaps) and not _fatal(found):
            yield from self._common_to_all(self.annotations)

    def _of_annotations(self, look: str) -> Generator[Finding, None, list[Finding] | None]:
        """What a look at the annotations and the model finds; returns that of the annotations, or
        None where these are not known."""
        yield from self._begin()
        if self.annotations is None:
            return None
        found = list(getattr(self.annotations, look)())
        yield from found
        yield from self._model()
        return found

    def _common_to_all(self, label_maps: LabelMaps) -> Iterator[Finding]:
        """What is wrong with each of a few samples. Training copes with single bad ones."""
        indices = sample_of(len(self.source.full), FEW)
        kinds: dict[str, list[Finding]] = {}
        for finding in self._samples(indices, label_maps.sample):
            kinds.setdefault(finding.kind, []).append(finding)
        everywhere = [found[0] for found in kinds.values() if len(found) == len(indices)]
        yield from everywhere or label_maps.whole()

    def thorough(self, most: int | None, progress: Progress) -> Iterator[Finding]:
        """All that can be found out.

        Args:
            most (int, optional): Samples to load; all by default.
            progress (Callable): Wraps a sequence that is walked through.
        """
        found = yield from self._of_annotations('thorough')
        if found is None:
            return
        unopened = Finding(
            'samples',
            self.source.key,
            'no image was opened',
            'fix the errors and check again',
            NOT_CHECKED,
        )
        if any(finding.kind == ABSURD for finding in found):
            yield unopened
            return
        try:
            self.total = len(self.source.full)
        except Exception as error:
            # Named already, where its cause is known.
            if not _fatal(found):
                yield Finding(
                    'data sets that cannot be built',
                    self.source.key,
                    explain(error),
                    'correct its files or settings',
                )
            yield unopened
            return
        if not self.total and not _fatal(found):
            yield Finding(
                'nothing is left',
                self.source.key,
                'has no sample',
                'correct data_root, the suffixes or filter_cfg',
            )
        indices = sample_of(self.total, most)
        self.read = len(indices)
        yield from self._samples(progress(indices), getattr(self.annotations, 'sample', None))
        if isinstance(self.annotations, LabelMaps):
            yield from self.annotations.whole()
        yield from self._empty_classes()

    @property
    def counts(self) -> Counts | None:
        """Samples of each class, as far as they are known."""
        return getattr(self.annotations, 'counts', None)

    def _samples(self, indices: Iterable[int], judge) -> Iterator[Finding]:
        file = str(getattr(self.source.lazy, 'ann_file', ''))
        if not hasattr(self.source.full, 'get_data_info'):
            yield Finding(
                'images',
                self.source.key,
                'does not tell which files it loads',
                'look at its images yourself',
                NOT_CHECKED,
            )
            self.read = 0
            return
        missing = getattr(self.annotations, 'missing', ())
        for loaded in self.source.load(indices):
            if loaded.info.get('img_path') in missing:
                continue
            found = unreadable(loaded, self.source)
            if found:
                yield found
                continue
            if not isinstance(loaded.results.get('img'), np.ndarray):
                yield Finding(
                    'images',
                    self.source.key,
                    'its pipeline gives no image as an array',
                    'look at them yourself',
                    NOT_CHECKED,
                )
                self.read = 0
                return
            yield from wrong_size(loaded, file)
            yield from wrong_channels(loaded, self.source)
            if judge is not None:
                yield from judge(loaded)

    def _empty_classes(self) -> Iterator[Finding]:
        counts = self.counts
        # Of a sample it says nothing that a class is not in it.
        if counts is None or counts.read < counts.total or not self.source.needs_labels:
            return
        empty = counts.empty
        if empty and len(empty) < len(counts.classes):
            train = self.source.split == 'train'
            yield Finding(
                'classes without a sample',
                self.source.key,
                f'{len(empty)} of {len(counts.classes)} classes have no sample: {listed(empty)}',
                'add samples of them or leave them out of the classes'
                if train
                else 'the metric leaves them out of its mean; add samples of them',
                WARNING,
            )


def _fatal(findings: Iterable[Finding]) -> bool:
    return any(finding.level == ERROR for finding in findings)


def _paths(cfg: Config, split: str) -> Iterator[Finding]:
    for message in missing_data(cfg, split):
        where, _, cure = message.partition('. ')
        yield Finding('missing paths', f'{split}_dataloader', where, cure.rstrip('.'))


class SplitCheck:
    """The judgement of what a data loader reads and metrics score.

    Args:
        cfg (Config): The whole config.
        split (str): 'train', 'val' or 'test'.
    """

    def __init__(self, cfg: Config, split: str):
        init_default_scope(cfg.default_scope)
        self.cfg, self.split = cfg, split
        self.data_sets = [DataSetCheck(source) for source in sources_of(cfg, split)]

    def missing(self) -> Iterator[Finding]:
        """Paths that are not there; without them nothing else can be said."""
        return _paths(self.cfg, self.split)

    def between(self) -> Iterator[Finding]:
        """What lies between the loader, the loop, the metrics and the hooks."""
        sources = [check.source for check in self.data_sets]
        yield from assumptions.sampler_and_loop(self.cfg, self.split)
        if self.split != 'train' and all(check.annotations for check in self.data_sets):
            yield from own_files(sources)
        if self.split == 'val' or self.split == 'train' and not self.cfg.get('val_dataloader'):
            yield from save_best(self.cfg, sources[0])

    def whole_pipeline(self) -> Iterator[Finding]:
        """Builds what the loader reads, wrappers included, and takes a few samples of it."""
        key = f'{self.split}_dataloader.dataset'
        try:
            dataset = build_full(self.cfg[f'{self.split}_dataloader']['dataset'])
        except Exception as error:
            yield Finding(
                'data sets that cannot be built', key, explain(error), 'correct its settings'
            )
            return
        for index in sample_of(len(dataset), WHOLE):
            try:
                check_sample(dataset[index], source_of(dataset, index)[0])
            except Exception as error:
                yield Finding(
                    'samples that do not pass the pipeline',
                    key,
                    f'sample {index}: {type(error).__name__}: {explain(error)}',
                    'fix the sample or the steps of its pipeline',
                )


def differing_classes(cfg: Config, splits: Iterable[str]) -> Iterator[Finding]:
    """Whether all splits have the same classes in the same order."""
    first = None
    for split in splits:
        for source in sources_of(cfg, split):
            try:
                classes = getattr(_annotations_of(source), 'classes', source.classes)
            except Exception:
                # Named where the data set is checked.
                continue
            if not classes or isinstance(classes, str):
                continue
            if first is None:
                first = source.key, list(classes)
            elif list(classes) != first[1] and len(classes) == len(first[1]):
                i = next(i for i, name in enumerate(classes) if name != first[1][i])
                yield Finding(
                    'classes differ',
                    source.key,
                    f'class {i} is {classes[i]!r}, and {first[1][i]!r} in {first[0]}',
                    'give both the same classes in the same order',
                )


def absent_classes(cfg: Config, splits: Iterable[str], most: int = SAMPLE) -> list[str]:
    """Lines on classes that do not occur in a split, and what that means for its metric.

    Args:
        cfg (Config): The whole config.
        splits (Iterable[str]): Of 'train', 'val', 'test'.
        most (int): Samples that are loaded of a data set.
    """
    lines = []
    for split in splits:
        for check in SplitCheck(cfg, split).data_sets:
            for _ in check.thorough(most, iter):
                pass
            counts = check.counts
            if counts is None or not counts.empty:
                continue
            kept = len(counts.classes) - len(counts.empty)
            meaning = (
                'nothing is learned of them'
                if split == 'train'
                else 'the accuracy says nothing of them'
                if cfg.default_scope == 'mmpretrain'
                else f'a mean over classes (mIoU, mAP) is that of the other {kept}'
            )
            lines.append(
                f'{split + " classes":18} {len(counts.empty)} of {len(counts.classes)} '
                f'occur in none of {counts.read} samples: {listed(counts.empty)}; '
                f'{meaning}'
            )
            lines += [f'{"":18} {line}' for line in counts.lines]
    return lines


def stop_at_errors(cfg: Config, splits: Iterable[str]) -> None:
    """Ends a training before it begins where its data makes no sense; warnings are logged.

    Args:
        cfg (Config): The whole config.
        splits (Iterable[str]): Of 'train', 'val', 'test'.

    Raises:
        UserError: The first error of :func:`quick_check`, and how many others there are.
    """
    found = list(quick_check(cfg, splits))
    errors = list(dict.fromkeys(finding.text for finding in found if finding.level == ERROR))
    if errors:
        more = f'{len(errors) - 1} more, which tools/misc/prepare_data.py CONFIG lists; ' * (
            len(errors) > 1
        )
        raise UserError(f'{errors[0]} ({more}--no-data-check trains all the same)')
    for finding in found:
        if finding.level == WARNING:
            print_log(finding.text, logger='current', level=logging.WARNING)


def quick_check(cfg: Config, splits: Iterable[str]) -> Iterator[Finding]:
    """What a training should know before its first iteration: seconds, and no image is read.

    Names and order of the classes, their numbers in model and metrics, keys of the annotations,
    samplers against loops, and a few label maps.

    Args:
        cfg (Config): The whole config.
        splits (Iterable[str]): Of 'train', 'val', 'test'.
    """
    splits = [split for split in splits if cfg.get(f'{split}_dataloader')]
    for split in splits:
        check = SplitCheck(cfg, split)
        missing = list(check.missing())
        yield from missing
        if missing:
            continue
        for data_set in check.data_sets:
            yield from data_set.quick()
        yield from check.between()
    yield from differing_classes(cfg, splits)
