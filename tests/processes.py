"""Processes that tests start: each has a time limit, and none outlives its test.

Their output goes to files. A pipe would be read until all that have inherited it are gone, which
includes what a killed process leaves behind.
"""

import os
import re
import signal
import subprocess
import tempfile
import time
import traceback
import uuid

import psutil

SECONDS = 300
_MARK = 'MMHCNET_TEST_PROCESS'


def variables(env=None):
    """A process's variables, given or those of the test; a fatal signal shows where it came."""
    return {'PYTHONFAULTHANDLER': '1', **(os.environ if env is None else env)}


class Started:
    """A program that runs at the same time as the test; use it in ``with``.

    Args:
        command (list): Program and arguments.
        cwd (Path, optional): Folder that it runs in.
        env (dict, optional): All of its variables. Defaults to those of the test.
    """

    def __init__(self, command, cwd=None, env=None):
        # By it the program's descendants are found, whatever group or session they are in, and
        # whether or not their parents live.
        self._mark = uuid.uuid4().hex
        self._out, self._err = tempfile.TemporaryFile(), tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [str(part) for part in command],
            cwd=cwd,
            env={**variables(env), _MARK: self._mark},
            stdin=subprocess.DEVNULL,
            stdout=self._out,
            stderr=self._err,
            start_new_session=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        while left := [process for process in psutil.process_iter() if self._started(process)]:
            for process in left:
                process.kill()
            time.sleep(0.01)
        self.process.wait(SECONDS)
        self._out.close()
        self._err.close()

    def _started(self, process):
        try:
            # A zombie has no variables any more.
            return process.environ().get(_MARK) == self._mark
        except psutil.Error:
            return False

    @property
    def stdout(self):
        return _content(self._out)

    @property
    def stderr(self):
        return _content(self._err)

    @property
    def output(self):
        return self.stdout + self.stderr

    def wait(self, seconds=SECONDS):
        """The exit code; a program that runs longer than that fails the test."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f'runs for over {seconds} s: {self.output[-3000:]}') from None

    def wait_for(self, pattern, seconds=SECONDS):
        """Wait until the output has a match of the regular expression."""
        end = time.monotonic() + seconds
        while not re.search(pattern, self.output):
            assert self.process.poll() is None and time.monotonic() < end, self.output[-3000:]
            time.sleep(0.05)


def _content(file):
    # Does not move the position at which the program writes.
    return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode(errors='replace')


def run(command, cwd=None, env=None, seconds=SECONDS, check=False):
    """Run a program to its end. Arguments as of :class:`Started`.

    Returns:
        subprocess.CompletedProcess: With ``stdout`` and ``stderr`` as text.
    """
    with Started(command, cwd, env) as started:
        code = started.wait(seconds)
        assert code == 0 or not check, started.output[-3000:]
        return subprocess.CompletedProcess(command, code, started.stdout, started.stderr)


def fork(work, seconds=SECONDS):
    """Do ``work`` in a forked child, which the system ends at the time limit; returns its id."""
    child = os.fork()
    if not child:
        code = 1
        try:
            # Not a handler in Python, which a process that hangs would not come to run.
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(seconds)
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return child


def exit_code(child):
    """The exit code of a forked child, once it has ended."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
