import os
import sys
from pathlib import Path

import pytest

from mmhcnet.ops import backend

from ..processes import run


@pytest.mark.slow
@pytest.mark.skipif(not backend._INSTALLED, reason='needs torch 2.7 and triton')
@pytest.mark.parametrize(
    'names',
    [
        ['test_triton_kernels.py'],
        ['test_pieces.py', 'test_blocks.py', 'test_conduction_rate.py'],
    ],
    ids=['operators', 'pieces'],
)
def test_kernels_with_the_interpreter(names):
    # In a process of its own: Triton reads the variable when a kernel is defined, once for all.
    tests = [Path(__file__).with_name(name) for name in names]
    command = [sys.executable, '-m', 'pytest', '-q', '-p', 'no:xdist', '-p', 'no:cacheprovider']
    env = {**os.environ, 'TRITON_INTERPRET': '1', 'CUDA_VISIBLE_DEVICES': ''}
    done = run([*command, *tests], env=env, seconds=600)
    assert done.returncode == 0, done.stdout + done.stderr
