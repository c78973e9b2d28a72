"""The end of a run, however it comes about: it leaves no worker and no process group behind."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mmengine.runner import Runner

from mmhcnet.errors import EXIT_PREEMPTED
from mmhcnet.training.process_group import leave_distributed


def end_workers(runner: Runner) -> None:
    """End the worker processes of all data loaders of a runner.

    Those of a persistent loader live as long as its iterator. With ``pin_memory`` torch waits at
    exit for each of them, five seconds, before it tells them to end.

    Args:
        runner (Runner): With loops built or still to be built; the loaders stay usable.
    """
    for loop in (runner._train_loop, runner._val_loop, runner._test_loop):
        loader = getattr(loop, 'dataloader', None)
        iterator = getattr(loader, '_iterator', None)
        if loader is not None and iterator is not None:
            # Dropping it would not do: the frames of an error hold it, too.
            iterator._shutdown_workers()
            loader._iterator = None


@contextmanager
def orderly_end(runner: Callable[[], Runner | None]) -> Iterator[None]:
    """End workers and process group after what is done within, after an error and SIGTERM too.

    Args:
        runner (Callable): The runner, or None as long as there is none.
    """
    try:
        yield
    finally:
        built = runner()
        if built is not None:
            end_workers(built)
        leave_distributed()


@contextmanager
def ends_on_sigterm() -> Iterator[None]:
    """SIGTERM ends the program with exit code 75 while nothing else takes it.

    :class:`mmhcnet.PreemptionHook` does during training; before, there is nothing to save.
    """
    # None stands for a handler that is not of Python and cannot be set again from here.
    former = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(EXIT_PREEMPTED))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former or signal.SIG_DFL)
