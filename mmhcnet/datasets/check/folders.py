"""Classification: a folder per class, or a list of files with labels."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from .findings import WARNING, Counts, Finding, listed
from .sources import Annotations, Source


def files_below(folder: str) -> list[str]:
    """Paths of all files below a folder, relative to it, sorted."""
    return sorted(
        os.path.relpath(os.path.join(root, name), folder)
        for root, _, names in os.walk(folder, followlinks=True)
        for name in names
    )


class ClassFolders(Annotations):
    """What a ``CustomDataset`` of mmpretrain finds: class folders, or an annotation file.

    Args:
        source (Source): With such a data set.
    """

    def __init__(self, source: Source):
        super().__init__(source)
        self.root = self.dataset.img_prefix
        self.names = source.classes
        self.counts: Counts | None = None

    @property
    def classes(self) -> list | str | None:
        """Names of the classes as they are in the data, or None where it has only numbers."""
        return (
            self._folders()
            if not self.dataset.ann_file and self.dataset.with_label and os.path.isdir(self.root)
            else self.names
        )

    def _folders(self) -> list[str]:
        return sorted(entry.name for entry in os.scandir(self.root) if entry.is_dir())

    def quick(self) -> Iterator[Finding]:
        """Names of the folders, or the lines of the list."""
        if not self.dataset.with_label:
            return
        if self.dataset.ann_file:
            yield from self._lines()
        elif not os.path.isdir(self.root):
            yield Finding(
                'missing folders',
                self.root,
                'is not there',
                'copy or link the class folders there, or correct data_root',
            )
        else:
            yield from self._names()

    def thorough(self) -> Iterator[Finding]:
        """:meth:`quick`, and the files in every folder."""
        yield from self.quick()
        if self.dataset.with_label and not self.dataset.ann_file and os.path.isdir(self.root):
            yield from self._contents()
        elif self.dataset.with_label and self.dataset.ann_file:
            yield from self._missing()

    def _names(self) -> Iterator[Finding]:
        folders, key = self._folders(), f'{self.source.key}.metainfo.classes'
        heads = self.source.cfg.get('model', {}).get('head') or {}
        expected = heads.get('num_classes') if self.names is None else len(self.names)
        loose = [
            entry.path
            for entry in os.scandir(self.root)
            if entry.is_file() and self.dataset.is_valid_file(entry.name)
        ]
        if loose:
            yield Finding(
                'images without a class',
                sorted(loose)[0],
                f'one of {len(loose)} images that are in no class folder',
                'move each into the folder of its class, or set ann_file to a list of '
                'lines "path label"',
                WARNING if folders else 'ERROR',
            )
        if expected is not None and len(folders) != expected:
            kind, cure = (
                self.source.settings['type'],
                (
                    "complete the folders, or set model.head.num_classes and the data set's "
                    'metainfo.classes (or ann_file)'
                ),
            )
            if type(self.dataset).METAINFO.get('classes') and 'classes' not in (
                self.source.settings.get('metainfo') or {}
            ):
                cure = (
                    f"{self.source.key}.type={kind!r} has the classes of {kind}: set it to "
                    "'CustomDataset' with data_prefix instead of split (dict(_delete_=True, "
                    "type='CustomDataset', data_root=..., data_prefix='train', pipeline=...)), "
                    'or complete the folders'
                )
            yield Finding(
                'wrong number of classes',
                self.root,
                f'{len(folders)} class folders, and the config has {expected} classes',
                cure,
            )
        elif self.names is not None and list(self.names) != folders:
            if sorted(self.names) == folders:
                i = next(i for i, name in enumerate(folders) if name != self.names[i])
                yield Finding(
                    'order of the classes',
                    self.root,
                    f'its folders are {listed(folders)} in alphabetical order, which is '
                    f'how mmpretrain numbers them, and {key} is {listed(self.names)}, '
                    f'so that {folders[i]!r} is called {self.names[i]!r}',
                    f'set {key} to {tuple(folders)}, or leave it out',
                )
            elif set(self.names) & set(folders):
                yield Finding(
                    'names of the classes',
                    self.root,
                    f'its folders are {listed(folders)}, and {key} is {listed(self.names)}',
                    'name one as the other',
                    WARNING,
                )

    def _lines(self) -> Iterator[Finding]:
        heads = self.source.cfg.get('model', {}).get('head') or {}
        expected = heads.get('num_classes') if self.names is None else len(self.names)
        self.paths: dict[str, str] = {}
        labels: list[int] = []
        for number, line in enumerate(Path(self.dataset.ann_file).read_text().splitlines(), 1):
            name, _, label = line.strip().rpartition(' ')
            where = f'{self.dataset.ann_file}:{number}'
            if not name or not label.isdigit():
                yield Finding(
                    'unreadable lines',
                    where,
                    f'{line!r} is not "path label"',
                    'write the path of the image, a space and the number of its class',
                )
                continue
            if expected is not None and int(label) >= expected:
                yield Finding(
                    'labels out of range',
                    where,
                    f'label {label}, and the config has {expected} classes',
                    'correct it (classes count from 0), or set model.head.num_classes',
                )
            else:
                labels.append(int(label))
            self.paths.setdefault(os.path.join(self.root, name), where)
        number, found = expected or max(labels, default=-1) + 1, Counter(labels)
        self.counts = Counts(
            list(self.names) if self.names else [str(i) for i in range(number)],
            dict(images=[found[i] for i in range(number)]),
            len(labels),
            len(labels),
        )

    def _missing(self) -> Iterator[Finding]:
        for path, where in self.paths.items():
            if not self.source.exists(path):
                yield self._missing_image(path, where, 'remove the line')

    def _contents(self) -> Iterator[Finding]:
        numbers = {}
        for name in self._folders():
            folder = os.path.join(self.root, name)
            files = files_below(folder)
            images = [file for file in files if self.dataset.is_valid_file(file)]
            numbers[name] = len(images)
            if not images:
                yield Finding(
                    'empty class folders',
                    folder,
                    f'no image in it, {len(files)} other files',
                    'unpack or copy the images of this class into it, or remove the folder',
                )
            elif len(images) < len(files):
                other = next(file for file in files if not self.dataset.is_valid_file(file))
                yield Finding(
                    'files that are no images',
                    os.path.join(folder, other),
                    f'one of {len(files) - len(images)} files in this folder that '
                    'training does not read',
                    'remove them, or convert them to images',
                    WARNING,
                )
        total = sum(numbers.values())
        self.counts = Counts(list(numbers), dict(images=list(numbers.values())), total, total)
