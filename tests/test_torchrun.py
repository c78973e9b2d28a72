"""The shell scripts around torchrun, with a small program in place of the training."""

import os
import shutil
import signal
import socket
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from .processes import Started

TOOLS = Path(__file__).resolve().parent.parent / 'tools'
RANK = '''
import os, signal, sys, time

def stop(number, frame):
    open(f'saved{os.environ["RANK"]}', 'w').close()
    sys.exit(75)

signal.signal(signal.SIGTERM, stop)
print('up', flush=True)
time.sleep(300)
'''


@pytest.fixture
def start(tmp_path):
    """Starts dist_train.sh next to a train.py that only waits."""
    for name in ('dist_train.sh', 'torchrun.sh'):
        shutil.copy(TOOLS / name, tmp_path / name)
    (tmp_path / 'train.py').write_text(RANK)
    with ExitStack() as stack:

        def start(number, **variables):
            command = ['bash', tmp_path / 'dist_train.sh', 'config.py', number]
            env = {**os.environ, 'PYTHON': sys.executable, **variables}
            return stack.enter_context(Started(command, tmp_path, env))

        yield start


@pytest.mark.parametrize(
    'number, variables, message',
    [
        ('two', {}, "N is the number of processes, one per GPU, got 'two'"),
        ('0', {}, "N is the number of processes, one per GPU, got '0'"),
        ('', {}, "N is the number of processes, one per GPU, got ''"),
        ('2', dict(MAX_RESTARTS='x'), "MAX_RESTARTS is a number, got 'x'"),
    ],
)
def test_wrong_numbers(start, number, variables, message):
    started = start(number, **variables)
    assert started.wait(60) == 2
    assert started.stderr == f'Error: {message}\n'


@pytest.mark.parametrize('restarts', ['0', '2'])
def test_a_signal_to_the_script_reaches_the_processes(start, tmp_path, restarts):
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        port = str(taken.getsockname()[1])
    started = start(2, PORT=port, MAX_RESTARTS=restarts)
    started.wait_for(r'^up\nup\n')
    # To the one process that whoever started the script knows.
    started.process.send_signal(signal.SIGTERM)
    assert started.wait(60) == 75
    assert (tmp_path / 'saved0').exists() and (tmp_path / 'saved1').exists()


def test_a_port_in_use(start):
    with socket.socket() as taken:
        taken.bind(('', 0))
        taken.listen()
        started = start(1, PORT=str(taken.getsockname()[1]))
        assert started.wait(60) == 1
    assert (
        'is in use, by another run perhaps: set PORT to the number of a free one'
        in started.stderr.splitlines()[-1]
    )
