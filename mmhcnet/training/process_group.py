"""The end of the process group of a distributed run."""

import time

import torch.distributed


def leave_distributed() -> None:
    """End the process group, if there is one, while the interpreter still runs.

    A gloo thread lets go of the tensors of the last collective some time after that is complete,
    and needs the GIL for it. Python ends a thread that asks for the GIL while the interpreter shuts
    down, and in the middle of C++ that aborts the process: a run that was done would count as
    failed. DistributedDataParallel keeps the group alive, so destroying it does not join the
    threads.
    """
    if not torch.distributed.is_initialized():
        return
    # Sleeping leaves the GIL to those threads.
    time.sleep(0.5)
    torch.distributed.destroy_process_group()
