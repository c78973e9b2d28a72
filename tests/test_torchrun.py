"""The shell scripts around torchrun, with a small program in place of the training."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

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
    processes = []

    def start(number, **variables):
        processes.append(
            subprocess.Popen(
                ['bash', str(tmp_path / 'dist_train.sh'), 'config.py', str(number)],
                cwd=tmp_path,
                env={**os.environ, 'PYTHON': sys.executable, **variables},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


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
    process = start(number, **variables)
    assert process.communicate(timeout=60)[1] == f'Error: {message}\n'
    assert process.returncode == 2


@pytest.mark.parametrize('restarts', ['0', '2'])
def test_a_signal_to_the_script_reaches_the_processes(start, tmp_path, restarts):
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        port = str(taken.getsockname()[1])
    process = start(2, PORT=port, MAX_RESTARTS=restarts)
    assert [process.stdout.readline() for _ in range(2)] == ['up\n'] * 2
    # To the one process that whoever started the script knows.
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 75
    assert (tmp_path / 'saved0').exists() and (tmp_path / 'saved1').exists()


def test_a_port_in_use(start):
    with socket.socket() as taken:
        taken.bind(('', 0))
        taken.listen()
        process = start(1, PORT=str(taken.getsockname()[1]))
        error = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert (
        'is in use, by another run perhaps: set PORT to the number of a free one'
        in (error.splitlines()[-1])
    )
