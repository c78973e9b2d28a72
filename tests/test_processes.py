"""A program of a test, and all that it starts, ends with the test or at the time limit."""

import signal
import sys
import time

import psutil
import pytest

from .processes import Started, exit_code, fork, run

# Its child is in a session of its own, as torchrun's are, and holds on to the output.
PARENT = '''
import subprocess, sys, time
child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'],
                         start_new_session=True)
print('started', child.pid, flush=True)
'''


@pytest.mark.parametrize('end', ['', 'time.sleep(60)'])
def test_no_descendant_outlives_it(end):
    began = time.monotonic()
    with Started([sys.executable, '-c', PARENT + end]) as started:
        started.wait_for(r'started \d+\n')
        child = psutil.Process(int(started.stdout.split()[1]))
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    assert time.monotonic() - began < 30


def test_time_limits():
    began = time.monotonic()
    with pytest.raises(AssertionError, match='runs for over 1 s: started'):
        run([sys.executable, '-c', PARENT + 'time.sleep(60)'], seconds=1)
    with Started(['sleep', '60']) as started, pytest.raises(AssertionError):
        started.wait_for('ready', seconds=0.1)
    assert exit_code(fork(lambda: time.sleep(60), seconds=1)) == -signal.SIGALRM
    assert time.monotonic() - began < 30


def test_results(tmp_path):
    code = 'import os, sys; print(os.getcwd()); sys.exit(f"{len(os.environ)} variables")'
    done = run([sys.executable, '-c', code], cwd=tmp_path, env={})
    assert (done.returncode, done.stdout) == (1, f'{tmp_path}\n')
    assert int(done.stderr.split()[0]) < 4
    with pytest.raises(AssertionError, match='reason'):
        run(['bash', '-c', 'echo reason; exit 1'], check=True)
    assert exit_code(fork(lambda: None)) == 0
    assert exit_code(fork(lambda: sys.exit(1))) == 1
