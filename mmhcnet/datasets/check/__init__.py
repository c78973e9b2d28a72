"""The check of a user's data: the objects that will load and score it are asked, and nothing is
changed.

Each data set of a config is built from its registries, without its wrappers; what knows its
annotations (``coco``, ``folders``, ``label_maps``, ``listed_samples``) and what looks at its
images (``images``) give findings, and ``assumptions`` and ``metrics`` compare them with model,
loops and evaluators. ``judge`` puts them together.
"""

from .findings import ERROR, NOT_CHECKED, WARNING, Counts, Finding, grouped
from .judge import (
    SAMPLE,
    DataSetCheck,
    SplitCheck,
    absent_classes,
    differing_classes,
    quick_check,
    stop_at_errors,
)

__all__ = [
    'ERROR',
    'NOT_CHECKED',
    'SAMPLE',
    'WARNING',
    'Counts',
    'DataSetCheck',
    'Finding',
    'SplitCheck',
    'absent_classes',
    'differing_classes',
    'grouped',
    'quick_check',
    'stop_at_errors',
]
