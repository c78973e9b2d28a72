"""A distributed run: who started it, and what it needs on a machine without a GPU."""

import os

import torch.distributed
from mmengine.config import Config
from mmengine.device import get_device

from mmhcnet.errors import UserError

# What each launcher sets, and mmengine reads.
_SET_BY = dict(
    pytorch=('RANK', 'torchrun', 'tools/dist_train.sh'),
    slurm=('SLURM_PROCID', 'srun', 'tools/slurm_train.sh'),
    mpi=('OMPI_COMM_WORLD_LOCAL_RANK', 'mpirun', 'mpirun'),
)


def check_launcher(launcher: str) -> None:
    """Make sure that the launcher has started this process.

    Raises:
        UserError: It has not.
    """
    variable, program, command = _SET_BY.get(launcher, (None, None, None))
    if variable and variable not in os.environ:
        raise UserError(
            f'--launcher {launcher} is given by {program}, which sets {variable}: '
            f'start the run with {command}, or leave --launcher out'
        )


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
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )
    _replace_sync_bn(cfg.model)


def _replace_sync_bn(node) -> None:
    if isinstance(node, dict):
        if node.get('type') == 'SyncBN':
            node['type'] = 'BN'
        for value in node.values():
            _replace_sync_bn(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            _replace_sync_bn(value)
