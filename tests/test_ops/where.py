"""Where the kernels run in this process: on a GPU, or on a CPU with Triton's interpreter."""

import os

import torch

from mmhcnet.ops import backend

INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'
# (backend, device) of the kernels; empty where they do not run.
KERNELS = [('triton', 'cpu')] * INTERPRETED or [('triton', 'cuda')] * (
    backend._INSTALLED and torch.cuda.is_available()
)
