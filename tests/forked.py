"""Scripts in processes that are forked from one which has imported the libraries already."""

import faulthandler
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil

from .processes import SECONDS, variables


def _run(script, args, cwd, env, out, err):
    """Of the process: what Python does for ``python script args``."""
    for path, number in ((out, 1), (err, 2)):
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    faulthandler.enable()
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.argv = [script, *args]
    more = env['PYTHONPATH'].split(os.pathsep) if env.get('PYTHONPATH') else []
    sys.path[:0] = [os.path.dirname(script), *more]
    runpy.run_path(script, run_name='__main__')


def run_forked(script, args, cwd, env=None, seconds=SECONDS):
    """Run a Python script to its end; a script that runs longer than that fails the test.

    Args:
        script (Path): The script.
        args (list): Its arguments.
        cwd (Path): Folder that it runs in.
        env (dict, optional): All of its variables; those that a library reads while it is imported
            are of the first call. Defaults to those of the test.

    Returns:
        subprocess.CompletedProcess: With ``stdout`` and ``stderr`` as text.
    """
    command = [str(script), *map(str, args)]
    processes = multiprocessing.get_context('forkserver')
    processes.set_forkserver_preload([f'{__package__}.preloaded'])
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, 'out'), Path(folder, 'err')
        env = variables(env)
        process = processes.Process(
            target=_run, args=(command[0], command[1:], str(cwd), env, str(out), str(err))
        )
        process.start()
        process.join(seconds)
        if process.exitcode is None:
            for left in psutil.Process(process.pid).children(recursive=True):
                left.kill()
            process.kill()
            process.join()
            raise AssertionError(f'runs for over {seconds} s: {out.read_text()[-3000:]}')
        return subprocess.CompletedProcess(
            command, process.exitcode, out.read_text(), err.read_text()
        )
