"""A full disk ends no training because of a line in a log."""

import logging
import sys
from collections.abc import Callable
from functools import partial, wraps

from mmengine.logging import MMLogger, print_log
from mmengine.visualization import LocalVisBackend as _LocalVisBackend

from mmhcnet.registry import VISBACKENDS


def _tolerant(write: Callable) -> Callable:

    @wraps(write)
    def try_to(self, *args, **kwargs) -> None:
        try:
            write(self, *args, **kwargs)
        except OSError as error:
            # Once: with the disk full it is so in every iteration.
            if not self.failed:
                print_log(
                    f'Not all scalars and pictures of this run are written to its folder '
                    f'({error}). Training goes on.',
                    logger='current',
                    level=logging.ERROR,
                )
            self.failed = True

    return try_to


@VISBACKENDS.register_module()
class LocalVisBackend(_LocalVisBackend):
    """mmengine's ``LocalVisBackend``, which goes on when it cannot write.

    The arguments are the same. What could not be written is left out; the first time is logged.
    """

    # Whether something could not be written.
    failed = False

    add_config = _tolerant(_LocalVisBackend.add_config)
    add_image = _tolerant(_LocalVisBackend.add_image)
    add_scalar = _tolerant(_LocalVisBackend.add_scalar)
    add_scalars = _tolerant(_LocalVisBackend.add_scalars)


def tolerate_errors(logger: MMLogger) -> None:
    """Let a logger say once that it cannot write, where Python shows a traceback for each line.

    Args:
        logger (MMLogger): Of a runner; what its file cannot take goes to the console only.
    """
    failed: set[logging.Handler] = set()
    for handler in logger.handlers:
        handler.handleError = partial(_say_once, logger, handler, failed)


def _say_once(
    logger: MMLogger, handler: logging.Handler, failed: set, record: logging.LogRecord
) -> None:
    error = sys.exc_info()[1]
    if not isinstance(error, OSError):
        # A mistake in the call, which its author should see.
        type(handler).handleError(handler, record)
    elif handler not in failed:
        # Before the line itself, which goes through this handler too.
        failed.add(handler)
        logger.error(
            f'Not all lines of this log are written to '
            f'{getattr(handler, "baseFilename", "the console")} ({error}). The run goes on.'
        )
