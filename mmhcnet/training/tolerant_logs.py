"""A full disk ends no training because of a line in a log."""

import logging
from collections.abc import Callable
from functools import wraps

from mmengine.logging import print_log
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
