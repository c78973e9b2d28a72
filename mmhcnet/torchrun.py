"""torchrun, which ends as the runs do: ``python -m mmhcnet.torchrun``."""

import os
import signal
import sys

from torch.distributed import run
from torch.distributed.elastic.multiprocessing import SignalException

from mmhcnet.errors import EXIT_PREEMPTED


def main() -> None:
    """Start the processes of torchrun's command line.

    On SIGTERM torchrun passes the signal on and waits for the processes, which write a checkpoint;
    by itself it would then end with exit code 1.
    """
    try:
        run.main()
    except SignalException as error:
        if error.sigval != signal.SIGTERM:
            raise
        sys.exit(EXIT_PREEMPTED)
    except RuntimeError as error:
        if 'EADDRINUSE' not in str(error):
            raise
        sys.exit(
            f"Error: port {os.environ.get('PORT', 29500)} of this machine is in use, by "
            'another run perhaps: set PORT to the number of a free one'
        )


if __name__ == '__main__':
    main()
