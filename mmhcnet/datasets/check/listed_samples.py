"""Data sets of other types, judged by the samples that they list."""

from collections.abc import Iterator

from .findings import NOT_CHECKED, Counts, Finding
from .sources import Source


class ListedSamples:
    """Labels and boxes of a data set, whatever file they come from.

    Args:
        source (Source): With any data set of mmpretrain, mmdet or mmseg.
    """

    def __init__(self, source: Source):
        self.source = source
        self.counts: Counts | None = None

    def quick(self) -> Iterator[Finding]:
        """Nothing, because the type's own files are not known."""
        return iter(())

    def thorough(self) -> Iterator[Finding]:
        """Labels of every sample in the data set's list."""
        dataset, classes = self.source.full, self.source.full.metainfo.get('classes')
        if classes is None or isinstance(classes, str) or not hasattr(dataset, 'get_data_info'):
            yield self._unknown('it names no classes')
            return
        objects, images = [0] * len(classes), [0] * len(classes)
        known, outside = False, set()
        for index in range(len(dataset)):
            info = dataset.get_data_info(index)
            if 'instances' in info:
                labels = [
                    entry.get('bbox_label')
                    for entry in info['instances']
                    if not entry.get('ignore_flag')
                ]
            elif 'gt_label' in info:
                labels = info['gt_label']
                labels = labels if isinstance(labels, (list, tuple)) else [labels]
            else:
                continue
            known = True
            legal = [
                label for label in labels if isinstance(label, int) and 0 <= label < len(classes)
            ]
            outside.update(set(map(str, labels)) - set(map(str, legal)))
            for label in legal:
                objects[label] += 1
            for label in set(legal):
                images[label] += 1
        if not known:
            yield self._unknown('its samples have neither instances nor gt_label')
            return
        if outside:
            yield Finding(
                'labels out of range',
                self.source.key,
                f'has the label {sorted(outside)[0]}, and there are {len(classes)} classes, from 0',
                'correct the labels or metainfo.classes',
            )
        self.counts = Counts(
            list(classes), dict(labels=objects, images=images), len(dataset), len(dataset)
        )
        if not any(objects) and self.source.needs_labels:
            yield Finding(
                'nothing is left',
                self.source.key,
                'no sample has a label',
                'correct the annotations or metainfo.classes',
            )

    def _unknown(self, why: str) -> Finding:
        kind = self.source.settings['type']
        return Finding(
            'annotations',
            self.source.key,
            f'is a {getattr(kind, "__name__", kind)}, and {why}',
            'look at its annotations yourself',
            NOT_CHECKED,
        )
