"""The process group of a distributed run: its beginning without a GPU, and its end."""
import time

import torch
import torch.distributed
from mmengine.config import Config
from mmengine.device import get_device


def prepare_distributed(cfg: Config) -> None:
    """Make ``--launcher pytorch`` work on a machine without an accelerator.

    mmengine's launcher selects a CUDA device unconditionally, unless a process group exists; its
    default model wrapper asks for a device; SyncBN exists on CUDA only. So without an
    accelerator: start a gloo group, wrap without device ids, and use BN.

    Args:
        cfg (Config): Changed in place. Left as it is on a machine with an accelerator.
    """
    if cfg.launcher != 'pytorch' or get_device() != 'cpu':
        return
    torch.distributed.init_process_group('gloo')
    cfg.model_wrapper_cfg = dict(
        type='MMDistributedDataParallel',
        device_ids=None,
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False))
    _replace_sync_bn(cfg.model)


def leave_distributed() -> None:
    """End the process group, if there is one, while the interpreter still stands.

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


def _replace_sync_bn(node) -> None:
    if isinstance(node, dict):
        if node.get('type') == 'SyncBN':
            node['type'] = 'BN'
        for value in node.values():
            _replace_sync_bn(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            _replace_sync_bn(value)
