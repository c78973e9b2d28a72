"""What a checkpoint holds, as plain data: any program reads it with ``weights_only=True``."""

import collections
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

_LOG = ('log_history', 'count_history', 'max_length')


def plain(value: Any, where: str = '') -> tuple[Any, list[str]]:
    """A value without objects of other libraries, and where objects are left that stay as they are.

    Numbers and arrays of numpy become Python's, mmengine's logs dicts of tensors (:func:`with_logs`
    makes logs of them again), and kinds of dicts dicts.

    Args:
        value: What is to be saved; left as it is.
        where (str): Its place, for the second result: 'PLACE: TYPE' of each object.
    """
    objects: list[str] = []

    def inside(key: Any, item: Any) -> Any:
        found, left = plain(item, f'{where}.{key}' if where else str(key))
        objects.extend(left)
        return found

    if isinstance(value, HistoryBuffer):
        log, count = (torch.from_numpy(np.asarray(numbers, float).copy()) for numbers in value.data)
        return dict(zip(_LOG, (log, count, value.max_length))), objects
    if isinstance(value, np.generic):
        return value.item(), objects
    if isinstance(value, np.ndarray) and value.dtype != object:
        return value.tolist(), objects
    if isinstance(value, torch.Tensor) or type(value) in (
        type(None),
        bool,
        int,
        float,
        complex,
        str,
        bytes,
        torch.dtype,
        torch.device,
        torch.Size,
    ):
        return value, objects
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value), objects
    if isinstance(value, dict):
        kind = (
            type(value) if type(value) in (collections.OrderedDict, collections.Counter) else dict
        )
        # Not items(), which in a ConfigDict may build what it holds.
        new = kind({inside('a key', key): inside(key, value[key]) for key in value})
        if hasattr(value, '_metadata'):
            new._metadata = inside('_metadata', value._metadata)
        return new, objects
    if isinstance(value, (list, tuple, set, collections.deque)):
        kind = next(
            kind for kind in (tuple, set, list, collections.deque) if isinstance(value, kind)
        )
        return (list if kind is collections.deque else kind)(
            [inside(index, item) for index, item in enumerate(value)]
        ), objects
    return value, [f'{where}: {type(value).__name__}']


def with_logs(log_scalars: dict[str, Any]) -> dict[str, Any]:
    """mmengine's logs of scalars as its message hub takes them from a checkpoint."""
    return {
        name: HistoryBuffer(*(np.array(log[key]) for key in _LOG[:2]), int(log[_LOG[2]]))
        if isinstance(log, dict) and set(log) == set(_LOG)
        else log
        for name, log in log_scalars.items()
    }
