"""What a metric reads by itself, besides the data set."""

import os
from collections.abc import Iterator

from .coco import is_coco
from .findings import Finding
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
