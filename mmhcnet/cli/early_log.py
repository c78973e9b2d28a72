"""What is logged before there is a runner reaches its log file too."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging.handlers import MemoryHandler

from mmengine.logging import MMLogger


@contextmanager
def early_log() -> Iterator[Callable[[MMLogger], None]]:
    """Keep what is logged within, and hand it over once there is a logger with a file.

    Yields:
        Callable: Takes the logger of a runner, and writes to its file what was kept so far.
    """
    logger = MMLogger.get_current_instance()
    kept = MemoryHandler(capacity=sys.maxsize, flushLevel=sys.maxsize)
    logger.addHandler(kept)

    def hand_over(target: MMLogger) -> None:
        for handler in target.handlers:
            if isinstance(handler, logging.FileHandler):
                kept.setTarget(handler)
                kept.flush()

    try:
        yield hand_over
    finally:
        logger.removeHandler(kept)
