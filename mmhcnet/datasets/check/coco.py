"""COCO's JSON: what mmdet's data set and its metric make of it."""

import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence

from mmhcnet.cli.errors import explain
from mmhcnet.training.sample_rules import absurd_coordinates, is_left_out

from .findings import WARNING, Counts, Finding, listed
from .sources import Annotations, Source

# pycocotools may end the process on such a file.
ABSURD = 'coordinates or sizes that no image has'
# Boxes of COCO itself leave the image by fractions of a pixel.
TOLERANCE = 1.0
# A box that leaves the image by more than this share of its side was meant otherwise.
FAR = 0.1


def has_mask(annotation: dict) -> bool:
    """Whether an annotation has polygons of three points or more, or a run-length mask."""
    mask = annotation.get('segmentation')
    if isinstance(mask, dict):
        return bool(mask.get('counts'))
    return (
        isinstance(mask, list)
        and bool(mask)
        and all(isinstance(part, list) and len(part) >= 6 for part in mask)
    )


class CocoFile(Annotations):
    """An annotation file as one data set uses it.

    Args:
        source (Source): With a ``CocoDataset``.
    """

    def __init__(self, source: Source):
        super().__init__(source)
        self.file = source.lazy.ann_file
        self.with_mask = any(step.get('with_mask') for step in source.steps) or any(
            'segm' in (metric.get('metric') or [])
            for metric in source.evaluators.values()
            if is_coco(metric) and not metric.get('format_only')
        )
        # Empty where the file is not legible.
        self.content: dict = {}
        # Whether any category is among the classes; otherwise nothing follows from their number.
        self.fits = True

    def quick(self) -> Iterator[Finding]:
        """What ends a training or makes it learn something else: layout, keys and names."""
        yield from self._structure()
        if self.content and self.source.needs_labels:
            yield from self._no_masks()

    def thorough(self) -> Iterator[Finding]:
        """The same, and every annotation by itself."""
        yield from self._structure()
        if self.content:
            yield from self._ids()
            yield from self._annotations()
            yield from self._images()

    def _structure(self) -> Iterator[Finding]:
        yield from self._layout()
        if self.content:
            yield from self._keys()
            yield from self._names()
            if self.fits and self.source.needs_labels:
                yield from self._nothing_left()

    def _layout(self) -> Iterator[Finding]:
        try:
            content = self.source.read_json(self.file)
        except (ValueError, OSError) as error:
            yield Finding(
                'unreadable annotations',
                self.file,
                f'is not JSON ({explain(error)})',
                'copy or export it again',
            )
            return
        wanted = ['images', 'categories'] + ['annotations'] * self.source.needs_labels
        absent = [
            key
            for key in wanted
            if not isinstance(content, dict) or not isinstance(content.get(key), list)
        ]
        if absent:
            yield Finding(
                'unreadable annotations',
                self.file,
                f'has no list {" and no list ".join(absent)}',
                "write it in COCO's format for instances",
            )
            return
        odd = next(
            (
                f'{name}[{i}]'
                for name in (*wanted, 'annotations')
                for i, entry in enumerate(content.get(name) or [])
                if not isinstance(entry, dict)
            ),
            None,
        )
        if odd:
            yield Finding(
                'unreadable annotations',
                self.file,
                f'{odd} is not a dict',
                "write it in COCO's format for instances",
            )
            return
        odd = next(
            (
                f'images[{i}]: its {key} is {image[key]!r}'
                for i, image in enumerate(content['images'])
                for key in ('width', 'height')
                if not isinstance(image.get(key, 1), (int, float))
            ),
            None,
        )
        if odd:
            yield Finding(
                'unreadable annotations',
                self.file,
                f'{odd}, which is no number',
                'write the size of the image in pixels',
            )
            return
        self.content = content

    @property
    def _needed(self) -> dict[str, tuple[str, ...]]:
        """Keys that are read of each entry."""
        scores = [
            metric for metric in self.source.evaluators.values() if not metric.get('format_only')
        ]
        keys = ('id', 'image_id', 'category_id', 'bbox', 'area')
        # COCO's own evaluation reads them of every object.
        if self.source.split != 'train' and any(map(is_coco, scores)):
            keys += ('iscrowd',)
        return dict(
            images=('id', 'file_name', 'width', 'height'),
            annotations=keys,
            categories=('id', 'name'),
        )

    def _keys(self) -> Iterator[Finding]:
        """Names entries that lack a key, and keeps the others."""
        self.entries = {}
        for name, keys in self._needed.items():
            self.entries[name] = []
            for number, entry in enumerate(self.content.get(name) or []):
                lacking = [key for key in keys if key not in entry]
                if lacking:
                    reader = "the metric (COCO's evaluation)" if lacking == ['iscrowd'] else 'mmdet'
                    yield Finding(
                        f'incomplete entries of {name}',
                        f'{self.file}: {name}[{number}]',
                        f'has no {" and no ".join(lacking)}, which {reader} reads',
                        'add it (0 for an object that is no crowd)'
                        if lacking == ['iscrowd']
                        else 'add it, or remove the entry',
                    )
                else:
                    self.entries[name].append(entry)
        # Of those that lack a key what is known is still used, so as not to report things twice.
        self.images = {entry['id']: entry for entry in self.content['images'] if 'id' in entry}

    def _names(self) -> Iterator[Finding]:
        classes, key = self.source.classes, f'{self.source.key}.metainfo.classes'
        categories = self.entries['categories']
        names = [category['name'] for category in categories]
        twice = [name for name, n in Counter(names).items() if n > 1]
        for name in twice:
            ids = [category['id'] for category in categories if category['name'] == name]
            yield Finding(
                'repeated category names',
                self.file,
                f'the category {name!r} stands under the ids '
                f'{" and ".join(map(str, ids))}: mmdet gives each id a label, one more '
                'than there are classes',
                'merge them into one id in categories and annotations',
            )
        if twice or classes is None or isinstance(classes, str):
            return
        # As in CocoDataset: labels count the categories in the file's order.
        known = [name for name in names if name in classes]
        missing = [name for name in classes if name not in names]
        unused = [name for name in names if name not in classes]
        hint = (
            ' (it is written in capitals, CLASSES, which is not read)'
            if 'CLASSES' in (self.source.settings.get('metainfo') or {})
            else ''
        )
        to_names = (
            f'set metainfo.classes ({key}) to the names in the file{hint}: {tuple(names[:10])}'
        )
        self.fits = bool(known)
        if not known:
            yield Finding(
                'categories do not match',
                self.file,
                f'none of its categories ({listed(names)}) is among the classes '
                f'({listed(classes)})',
                to_names,
            )
        elif known == list(classes[: len(known)]):
            if missing:
                yield Finding(
                    'classes without a category',
                    self.file,
                    f"no category {listed(missing)}, which the config's classes have",
                    f'training sees no sample of it; {to_names}',
                    WARNING,
                )
        elif missing:
            yield Finding(
                'categories do not match',
                self.file,
                f"no category {listed(missing)}, which the config's classes have",
                to_names,
            )
        else:
            i = next(i for i, name in enumerate(known) if name != classes[i])
            yield Finding(
                'order of the classes',
                self.file,
                f'its categories are {listed(known)} in this order, and {key} is '
                f'{listed(classes)}: mmdet numbers labels in the order of the file and '
                f'names them in that of the config, so that {known[i]!r} is called '
                f'{classes[i]!r}',
                f'set {key} to {tuple(known)}',
            )
        if known and unused:
            yield Finding(
                'categories that are not used',
                self.file,
                f'{len(unused)} categories, as {unused[0]!r}, are not among the classes '
                'of the config',
                'training leaves their boxes out; add them to '
                f"{key} and the heads' num_classes to learn them",
                WARNING,
            )

    def _nothing_left(self) -> Iterator[Finding]:
        use, used = ('learn', 'learned') if self.source.split == 'train' else ('score', 'scored')
        annotations = self.content['annotations']
        if not annotations:
            yield Finding(
                'nothing is left',
                self.file,
                f'has no annotation, and nothing to {use}',
                'set ann_file to a file with annotations',
            )
            return
        if all(crowd for _, _, crowd in self._objects()):
            crowds = sum(1 for _ in self._objects())
            reason = (
                f'{crowds} of {len(annotations)} are crowds (iscrowd), which are not {used}'
                if crowds
                else 'they are without area, outside their image or of other categories'
            )
            fractions = all(_is_box(a.get('bbox')) and max(a['bbox']) <= 1 for a in annotations)
            yield Finding(
                'nothing is left',
                self.file,
                f'of its {len(annotations)} annotations none is left to {use}: {reason}',
                'write boxes as [x, y, width, height] in pixels, not fractions of the image'
                if fractions
                else 'set iscrowd to 0 for single objects'
                if crowds
                else 'correct the boxes and categories',
            )

    def _no_masks(self) -> Iterator[Finding]:
        annotations = self.content['annotations']
        if self.with_mask and annotations and not any(map(has_mask, annotations)):
            yield Finding(
                'annotations without a mask',
                self.file,
                'no annotation has a segmentation, and masks are learned and scored',
                'add polygons or run-length masks, or train a model of boxes only '
                '(with_mask=False, no mask head)',
            )

    def _objects(self) -> Iterator[tuple[int, object, bool]]:
        """Label, id of the image, and whether it is a crowd, of each annotation that is used."""
        numbers = {name: i for i, name in enumerate(self.source.classes or [])}
        categories = {
            entry['id']: numbers.get(entry['name']) for entry in self.entries['categories']
        }
        for annotation in self.content.get('annotations') or []:
            try:
                label = categories.get(annotation.get('category_id'))
                image = self.images.get(annotation.get('image_id'))
            except TypeError:
                # A list in place of an id.
                continue
            box, crowd = annotation.get('bbox'), bool(annotation.get('iscrowd'))
            if (
                label is not None
                and image is not None
                and _is_box(box)
                and (
                    crowd
                    or not is_left_out(
                        box, image.get('width', math.inf), image.get('height', math.inf)
                    )
                )
            ):
                yield label, annotation['image_id'], crowd

    @property
    def counts(self) -> Counts | None:
        """Objects, images and crowds of each class, or None without legible annotations."""
        if not self.content or not self.fits:
            return None
        classes = self.source.classes or []
        objects, crowds = [0] * len(classes), [0] * len(classes)
        seen: list[set] = [set() for _ in classes]
        for label, image, crowd in self._objects():
            (crowds if crowd else objects)[label] += 1
            if not crowd:
                seen[label].add(image)
        with_object = set().union(*seen)
        empty = len(self.images) - len(with_object)
        columns = dict(objects=objects, images=list(map(len, seen)), crowds=crowds)
        return Counts(
            list(classes),
            columns,
            len(self.images),
            len(self.images),
            [f'{empty} of {len(self.images)} images have no object'] * bool(empty),
        )

    def _images(self) -> Iterator[Finding]:
        folder = self.source.lazy.data_prefix.get('img') or ''
        for entry in self.entries['images']:
            path = os.path.join(folder, entry['file_name'])
            if not self.source.exists(path):
                yield self._missing_image(path, self.file, 'correct data_prefix.img')

    def _ids(self) -> Iterator[Finding]:
        for key in ('images', 'annotations'):
            twice = [i for i, n in Counter(map(_hashable, self.entries[key])).items() if n > 1]
            if twice:
                yield Finding(
                    'repeated ids',
                    self.file,
                    f'{len(twice)} ids of {key} occur more than once, the first: {twice[0]}',
                    'renumber them',
                )

    def _annotations(self) -> Iterator[Finding]:
        categories = {category['id'] for category in self.entries['categories']}
        for annotation in self.entries['annotations']:
            where = f"{self.file}: annotation {annotation['id']}"
            image = self.images.get(annotation['image_id'])
            if image is None:
                yield Finding(
                    'annotations without an image',
                    where,
                    f"names image {annotation['image_id']}, which is not in the file",
                    'add the image or remove the annotation',
                )
                continue
            if annotation['category_id'] not in categories:
                yield Finding(
                    'unknown categories',
                    where,
                    f"names category {annotation['category_id']}, which is not in the file",
                    'add the category or correct the number',
                )
            absurd = absurd_coordinates(annotation, image)
            if absurd:
                yield Finding(
                    ABSURD,
                    where,
                    f"{absurd}, in {image.get('file_name')}",
                    'correct or remove it; a training refuses the file',
                )
                continue
            found = _box_finding(where, annotation['bbox'], image)
            if found:
                yield found
            if self.with_mask and not has_mask(annotation):
                yield Finding(
                    'annotations without a mask',
                    where,
                    'has no segmentation',
                    'add polygons or run-length masks, or train a model of boxes only '
                    '(with_mask=False, no mask head)',
                )


def is_coco(metric: dict) -> bool:
    """Whether a metric is COCO's own evaluation, which reads the annotation file by itself."""
    return str(metric.get('type')).split('.')[-1].startswith('CocoMetric')


def _hashable(entry: dict) -> object:
    return entry['id'] if isinstance(entry['id'], (int, str, float)) else repr(entry['id'])


def _is_box(box: object) -> bool:
    return (
        isinstance(box, (list, tuple))
        and len(box) == 4
        and all(isinstance(v, (int, float)) and math.isfinite(v) for v in box)
    )


def _box_finding(where: str, box: Sequence, image: dict) -> Finding | None:
    if not _is_box(box):
        return Finding(
            'malformed boxes', where, f'bbox is {box}', 'write [x, y, width, height] in pixels'
        )
    x, y, w, h = box
    if w < 1 or h < 1:
        return Finding(
            'boxes below a pixel',
            where,
            f'bbox {box} has no area',
            'training leaves it out; remove or correct it',
            WARNING,
        )
    size = image.get('width', math.inf), image.get('height', math.inf)
    beyond = max(-x, x + w - size[0]), max(-y, y + h - size[1])
    if max(beyond) <= TOLERANCE:
        return None
    far = beyond[0] > FAR * size[0] or beyond[1] > FAR * size[1]
    problem = f'bbox {box} leaves the image of {size[0]}x{size[1]}'
    if far:
        return Finding(
            'boxes outside their image',
            where,
            problem,
            'write [x, y, width, height] in pixels, not two corners and not fractions of the image',
        )
    return Finding(
        'boxes over the edge of their image', where, problem, 'cut them at the edge', WARNING
    )
