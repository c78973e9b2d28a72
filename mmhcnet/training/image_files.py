"""Image files of training samples, looked at while a pipeline reads them.

A second look at each file would cost a network file system another round trip. So the loading steps
read through a file backend that judges the bytes as they pass by.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from mmengine.fileio import LocalBackend, get, register_backend

from .sample_rules import BadSample, is_cut, png_size

BACKEND = 'mmhcnet.images'
_SEEN: ContextVar[dict | None] = ContextVar('seen', default=None)


class ImageBackend(LocalBackend):
    """mmengine's local file backend, which refuses an image that is empty or cut short.

    Args:
        refuse_cut (bool): Whether an image that is cut short is refused, too.
    """

    def __init__(self, refuse_cut: bool = True):
        super().__init__()
        self.refuse_cut = refuse_cut

    def get(self, filepath: str | Path) -> bytes:
        """Bytes of a file, or of a URI as mmengine finds its storage.

        Raises:
            BadSample: The file is empty, or ends before its image does.
        """
        content = get(filepath) if '://' in str(filepath) else super().get(filepath)
        if not content:
            # OpenCV's message has no name.
            raise BadSample(f"the image file is empty: '{filepath}'")
        if self.refuse_cut and is_cut(content):
            raise BadSample(f"the image file is cut short: '{filepath}'")
        seen = _SEEN.get()
        if seen is not None:
            seen[str(filepath)] = png_size(content)
        return content


register_backend(BACKEND, ImageBackend)


@contextmanager
def images_seen() -> Iterator[dict[str, tuple[int, int] | None]]:
    """Files that are read through :class:`ImageBackend` within the block, with their PNG sizes."""
    seen: dict[str, tuple[int, int] | None] = {}
    token = _SEEN.set(seen)
    try:
        yield seen
    finally:
        _SEEN.reset(token)


def read_through_backend(dataset: Any, refuse_cut: bool = True) -> None:
    """Let the loading steps of a data set read through :class:`ImageBackend`.

    A step that has a storage of its own keeps it.

    Args:
        dataset (Dataset): Without wrappers; its ``pipeline`` is changed in place.
        refuse_cut (bool): As for :class:`ImageBackend`.
    """
    settings = {} if refuse_cut else dict(refuse_cut=False)
    for step in _steps(getattr(dataset, 'pipeline', None)):
        # Those that decode what mmengine's file backends read.
        decodes = hasattr(step, 'imdecode_backend')
        local = decodes and getattr(step, 'file_client_args', None) is None
        if local and getattr(step, 'backend_args', None) in (None, {}, dict(backend='local')):
            step.backend_args = dict(backend=BACKEND, **settings)


def _steps(part: Any) -> Iterator[Any]:
    """Steps of a pipeline, those inside of other steps too."""
    if isinstance(part, (list, tuple)):
        for step in part:
            yield from _steps(step)
    elif part is not None:
        yield part
        yield from _steps(getattr(part, 'transforms', None))
