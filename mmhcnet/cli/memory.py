"""How much memory a run has needed."""

import re
import resource
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmhcnet.registry import HOOKS


def peak_memory() -> int:
    """The largest resident set of this process so far, in bytes.

    ``getrusage`` alone would also count that of the process which started this one, if it was
    larger: Linux keeps the figure over exec. It serves where there is no VmHWM.
    """
    status = Path('/proc/self/status')
    found = status.exists() and re.search(r'VmHWM:\s+(\d+) kB', status.read_text())
    kib = int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kib * 2**10


@HOOKS.register_module()
class PeakMemoryHook(Hook):
    """Remembers the most bytes that were allocated on the GPU at a time, as ``peak``.

    torch counts from the last reset only, and mmengine's logger resets it at each line.
    """

    # Before LoggerHook, which is BELOW_NORMAL.
    priority = 'NORMAL'

    def __init__(self):
        self.peak = 0

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | tuple | list | None = None,
        outputs: Any = None,
    ) -> None:
        self.peak = max(self.peak, torch.cuda.max_memory_allocated())

    after_val_iter = after_train_iter
