"""Training: resumable loops, tolerant data, hooks for bad steps and pre-emption."""

from .finite_steps import FiniteHook
from .loops import EpochTrainLoop, IterTrainLoop
from .preemption import EXIT_PREEMPTED, PreemptionHook
from .resumable_data import NumberedBatches, SeededDataset
from .tolerant_data import DataFaultHook
from .tolerant_logs import LocalVisBackend

__all__ = [
    'DataFaultHook',
    'EXIT_PREEMPTED',
    'EpochTrainLoop',
    'FiniteHook',
    'IterTrainLoop',
    'LocalVisBackend',
    'NumberedBatches',
    'PreemptionHook',
    'SeededDataset',
]
