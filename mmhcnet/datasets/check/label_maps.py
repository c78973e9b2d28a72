"""Segmentation: pairs of an image and a label map of ids."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from mmengine.fileio import list_dir_or_file

from mmhcnet.training.sample_rules import ids_without_class

from .findings import WARNING, Counts, Finding
from .sources import Annotations, Loaded, Source


class LabelMaps(Annotations):
    """Label maps of a ``BaseSegDataset`` of mmseg, as its pipeline loads them.

    Args:
        source (Source): With such a data set.
    """

    def __init__(self, source: Source):
        super().__init__(source)
        self.has_labels = any('LoadAnnotations' in str(step.get('type')) for step in source.steps)
        # A subset of the classes is taken from label maps of all.
        known = (
            type(self.dataset).METAINFO if self.dataset.label_map else self.dataset.metainfo
        ).get('classes')
        self.known = len(known) if known is not None else None
        self.pixels, self.maps = np.zeros(0, int), np.zeros(0, int)
        self.ignored = self.read = 0
        self.values: set[int] = set()

    def quick(self) -> Iterator[Finding]:
        """Classes, and whether there are files."""
        folder = self.dataset.data_prefix.get('seg_map_path')
        if self.source.needs_labels and (not self.has_labels or folder is None):
            yield Finding(
                'no label maps',
                self.source.key,
                'has no step LoadAnnotations'
                if not self.has_labels
                else 'has no data_prefix.seg_map_path',
                'add it, or set format_only=True and output_dir of the evaluator to test '
                'without labels',
            )
        if self.has_labels and self.source.classes is None:
            yield Finding(
                'no classes',
                f'{self.source.key}.metainfo.classes',
                'is not set',
                'name the classes in the order of their ids',
            )
        if str(self.dataset.seg_map_suffix).lower() in ('.jpg', '.jpeg'):
            yield Finding(
                'label maps as JPEG',
                f'{self.source.key}.seg_map_suffix',
                f'is {self.dataset.seg_map_suffix}: JPEG changes ids at every edge',
                'write the label maps as PNG',
                WARNING,
            )

    def thorough(self) -> Iterator[Finding]:
        """:meth:`quick`, and whether each image has its label map."""
        yield from self.quick()
        yield from self._pairs()

    def _pairs(self) -> Iterator[Finding]:
        keys = ['img_path'] + ['seg_map_path'] * self.has_labels
        folders = [self.dataset.data_prefix.get(key) for key in keys]
        suffixes = self.dataset.img_suffix, self.dataset.seg_map_suffix
        if None in folders:
            return
        if self.dataset.ann_file and os.path.isfile(self.dataset.ann_file):
            names = [line.strip() for line in Path(self.dataset.ann_file).read_text().splitlines()]
            stems = [
                [name for name in names if self.source.exists(os.path.join(folder, name + suffix))]
                for folder, suffix in zip(folders, suffixes)
            ]
            for name in sorted(set(names) - set(stems[0])):
                path = os.path.join(folders[0], name + suffixes[0])
                yield self._missing_image(path, self.dataset.ann_file, 'remove the line')
        else:
            stems = [self._stems(folder, suffix) for folder, suffix in zip(folders, suffixes)]
        for folder, suffix, found, key in zip(folders, suffixes, stems, ('img', 'seg_map')):
            if not found:
                yield Finding(
                    'no files',
                    folder,
                    f'no file *{suffix} in it',
                    f'copy the files there, or set {key}_suffix of the data set to theirs',
                )
        if len(stems) < 2 or not all(stems):
            return
        images, maps = map(set, stems)
        for name in sorted(images - maps):
            self.missing.add(os.path.join(folders[0], name + suffixes[0]))
            yield Finding(
                'images without a label map',
                os.path.join(folders[0], name + suffixes[0]),
                f'no {os.path.join(folders[1], name + suffixes[1])}',
                'add the label map or remove the image',
            )
        for name in sorted(maps - images):
            yield Finding(
                'label maps without an image',
                os.path.join(folders[1], name + suffixes[1]),
                f'no {os.path.join(folders[0], name + suffixes[0])}',
                'training leaves it out; add the image or remove the label map',
                WARNING,
            )

    def _stems(self, folder: str, suffix: str) -> list[str]:
        return sorted(
            name[: -len(suffix)]
            for name in list_dir_or_file(
                folder,
                list_dir=False,
                suffix=suffix,
                recursive=True,
                backend_args=self.dataset.backend_args,
            )
        )

    def sample(self, loaded: Loaded) -> Iterator[Finding]:
        """One pair after its loading steps; counts its pixels."""
        labels = loaded.results.get('gt_seg_map')
        if labels is None:
            return
        path, image = str(loaded.info.get('seg_map_path')), loaded.results['img']
        if labels.ndim != 2:
            yield Finding(
                'label maps with colours',
                path,
                f'has {labels.shape[-1]} channels',
                'write one channel with the number of the class of each pixel',
            )
            return
        if labels.shape != image.shape[:2]:
            yield Finding(
                'sizes differ',
                path,
                f'is {labels.shape[1]}x{labels.shape[0]}, and its image '
                f'{image.shape[1]}x{image.shape[0]}',
                'resize one of them (label maps without interpolation)',
            )
        yield from self._too_many_bits(path)
        if self.source.classes is None:
            return
        ignored, classes = self.dataset.ignore_index, len(self.source.classes)
        ids = np.unique(labels)
        self.values.update(map(int, ids))
        shift = int(self.dataset.reduce_zero_label)
        wrong = [int(i) + shift for i in ids[ids_without_class(ids, classes, ignored)]]
        if wrong:
            other = ', 0 for all others' if shift else ''
            known = classes if self.known is None else self.known
            yield Finding(
                'labels out of range',
                path,
                f'holds {", ".join(map(str, wrong[:5]))}, and {known} classes are '
                f'{shift} to {known - 1 + shift}{other} and {ignored} for no label',
                'renumber the labels, or set metainfo.classes, reduce_zero_label and '
                'ignore_index of the data set',
            )
        self._count(labels, classes, ignored)

    def _too_many_bits(self, path: str) -> Iterator[Finding]:
        """mmseg keeps the last 8 bits of an id, whatever is in the file."""
        from PIL import Image, UnidentifiedImageError

        if not os.path.isfile(path):
            return
        try:
            with Image.open(path) as stored:
                largest = np.asarray(stored).max() if stored.mode.startswith(('I', 'F')) else 0
        except (UnidentifiedImageError, OSError):
            # A loader of the user's reads another format.
            return
        if largest > 255:
            yield Finding(
                'ids of more than 8 bits',
                path,
                f'holds the id {int(largest)}, and mmseg keeps 8 bits of an id',
                'number the labels from 0 to 255',
            )

    def _count(self, labels: np.ndarray, classes: int, ignored: int) -> None:
        if not self.read:
            self.pixels, self.maps = np.zeros(classes, int), np.zeros(classes, int)
        found = np.bincount(labels.reshape(-1).astype(np.int64).clip(0), minlength=256)
        self.ignored += (
            int(found[ignored]) if 0 <= ignored < len(found) and ignored >= classes else 0
        )
        self.pixels += found[:classes]
        self.maps += found[:classes] > 0
        self.read += 1

    @property
    def counts(self) -> Counts | None:
        """Pixels and label maps of each class, or None where no label map was read."""
        if not self.read:
            return None
        total = int(self.pixels.sum()) + self.ignored
        return Counts(
            self.source.classes,
            dict(pixels=self.pixels.tolist(), maps=self.maps.tolist()),
            self.read,
            len(self.source.full),
            [
                f'{100 * self.ignored / max(1, total):.1f} % of the pixels are ignored '
                f'(ignore_index {self.dataset.ignore_index})'
            ],
        )

    def whole(self) -> Iterator[Finding]:
        """What all label maps together show."""
        counts = self.counts
        if counts is None:
            return
        folder = self.dataset.data_prefix['seg_map_path']
        total = int(self.pixels.sum()) + self.ignored
        share = f'{100 * self.ignored / max(1, total):.1f} % of the pixels are ignored'
        if not self.pixels.any():
            yield Finding(
                'everything is ignored',
                folder,
                f'every pixel of {self.read} label maps is ignored',
                'correct the ids, ignore_index or reduce_zero_label',
            )
        elif (
            self.values <= {0, 255}
            and 255 in self.values
            and len(counts.classes) > 1
            and not self.dataset.reduce_zero_label
        ):
            yield Finding(
                'label maps of 0 and 255',
                folder,
                f'{self.read} label maps that were read hold only 0 and 255, as a mask '
                f'of black and white: 255 is ignored, {share}, and '
                f'{_classes_without(counts)}',
                f'write 1 instead of 255 for {counts.classes[1]!r}',
            )
        elif (
            int((self.pixels > 0).sum()) == 1
            and len(counts.classes) > 1
            and self.source.split == 'train'
        ):
            yield Finding(
                'a single class',
                folder,
                f'all labelled pixels of {self.read} label maps are '
                f'{counts.classes[int(self.pixels.argmax())]!r} ({share}), and '
                f'{_classes_without(counts)}',
                'correct the ids of the others',
            )


def _classes_without(counts: Counts) -> str:
    numbers = [i for i, name in enumerate(counts.classes) if name in counts.empty]
    return (
        ' and '.join(f'class {i} ({counts.classes[i]!r})' for i in numbers[:5])
        + (' and others' * (len(numbers) > 5))
        + ' is in no label map'
    )
