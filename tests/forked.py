"""Scripts in processes that are forked from one which has imported the libraries already."""

import faulthandler
import gc
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import wait
from pathlib import Path

import psutil

from .processes import SECONDS, variables

# What the tools import but mmhcnet: nearly all of the 5 seconds of a tool's start. That they import
# what they need is tested where processes are fresh ones: in test_registration.py, in
# test_from_outside.py, and where the fixture `tool` is told so.
PARTS = ('datasets', 'engine', 'evaluation', 'models', 'visualization')
LIBRARIES = (
    'matplotlib.pyplot',
    'mmcv.ops',
    'mmengine.runner',
    'pycocotools.mask',
    'scipy.optimize',
    'sklearn.gaussian_process',
    'torch._dynamo',
    'torchvision',
    *(f'{task}.{part}' for task in ('mmpretrain', 'mmdet', 'mmseg') for part in PARTS),
)


def _run(script, args, cwd, env, out, err):
    """Of the process: what Python does for ``python script args``."""
    # What the libraries have printed and the server has not yet written is not of the script.
    sys.stdout.flush()
    sys.stderr.flush()
    for path, number in ((out, 1), (err, 2)):
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    faulthandler.enable()
    # mmengine collects garbage at each data set that it builds, and need not look at the libraries.
    gc.freeze()
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.argv = [script, *args]
    sys.path.insert(0, os.path.dirname(script))
    runpy.run_path(script, run_name='__main__')


def _ranks(number, env):
    """Variables of each process of a group, as torchrun sets them."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    group = dict(WORLD_SIZE=str(number), MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    return [{**env, **group, 'RANK': str(i), 'LOCAL_RANK': str(i)} for i in range(number)]


def _kill(processes):
    for process in processes:
        if process.exitcode is None:
            for left in psutil.Process(process.pid).children(recursive=True):
                left.kill()
            process.kill()
        process.join()


def run_forked(script, args, cwd, env=None, seconds=SECONDS, ranks=None):
    """Run a Python script to its end; a script that runs longer than that fails the test.

    Args:
        script (Path): The script.
        args (list): Its arguments.
        cwd (Path): Folder that it runs in.
        env (dict, optional): All of its variables; those that a library reads while it is imported
            are of the first call. Defaults to those of the test.
        seconds (float): The time limit.
        ranks (int, optional): Run so many processes of it, which find each other as those that
            torchrun starts do. When one fails, the others are killed.

    Returns:
        subprocess.CompletedProcess: With ``stdout`` and ``stderr`` as text, of all ranks together.
    """
    command = [str(script), *map(str, args)]
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(list(LIBRARIES))
    env = variables(env)
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, 'out'), Path(folder, 'err')
        out.touch()
        err.touch()
        started = []
        try:
            for own in _ranks(ranks, env) if ranks else [env]:
                values = (command[0], command[1:], str(cwd), own, str(out), str(err))
                started.append(context.Process(target=_run, args=values))
                started[-1].start()
            while None in (codes := [process.exitcode for process in started]) and not any(codes):
                running = [process.sentinel for process in started if process.exitcode is None]
                if not wait(running, end - time.monotonic()):
                    raise AssertionError(f'runs for over {seconds} s: {out.read_text()[-3000:]}')
        finally:
            _kill(started)
        code = next(filter(None, codes), 0)
        return subprocess.CompletedProcess(command, code, out.read_text(), err.read_text())
