#!/usr/bin/env python3
"""Make the environment that `make demo` and `make test` run in.

    python3 tools/setup_env.py [--venv DIR] [--stack NAME]

A virtual environment with the pinned stack of requirements/ and this project (editable) in it.
It is made once: a later run with the same requirements installs nothing. A run that was cut off is
taken up by the next one; steps whose packages are in place are quick.

The syntax is kept to what Python 2.7 reads, so that an old Python says in a sentence which one is
needed, instead of pointing at a syntax error.
"""

from __future__ import print_function

import argparse
import contextlib
import datetime
import fcntl
import glob
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# Below it, as the commands are run there.
BUILD, TORCH = 'requirements/build.txt', 'requirements/torch.txt'
LOCK = 'requirements/lock-{}.txt'
# In an environment: its Python, what it was made for, the output of the commands, files of pip.
PYTHON, STATE, LOG, TEMPORARY = 'bin/python', 'mmhcnet-env.json', 'setup.log', 'tmp'

# The newest Python 3 of each stack. torch 2.1, the newest that mmcv 2.1 compiles against, exists
# for no Python after 3.11.
NEWEST = {'onedl': 13, 'openmmlab': 11}

# The finished environment takes 8 GB, and 4 GB of downloads are next to it until they are
# installed. pip's cache keeps these 4 GB as well, if there is room. With torch in place, only the
# smaller packages and the compiler's files are still to come.
DISK_GB, CACHE_GB, DISK_GB_AFTER_TORCH = 12, 4, 3

# Seconds between two lines of progress.
HEARTBEAT = 20

# What to do about a step that fails.
NETWORK = 'most often the network failed: run the same command again, it goes on where it stopped'
COMPILE = (
    'if the compiler was killed, memory ran out: run it again with MAX_JOBS=1 in front; if '
    'a download failed, run it again as it is'
)
OPERATORS = 'mmcv\'s operators do not work with this torch'
UNEXPECTED = 'see the lines above'

# Prints "cpu", "cuda", or why there is a GPU that the operators cannot be compiled for.
PROBE_GPU = r'''
import os, re, subprocess, torch
from torch.utils.cpp_extension import CUDA_HOME
if not torch.cuda.is_available():
    print('cpu')
elif CUDA_HOME is None or not os.path.exists(CUDA_HOME + '/bin/nvcc'):
    print('no CUDA compiler (nvcc) was found')
else:
    text = subprocess.check_output([CUDA_HOME + '/bin/nvcc', '--version'], text=True)
    nvcc = re.search(r'release (\d+)', text).group(1)
    wanted = torch.version.cuda.split('.')[0]
    print('cuda' if nvcc == wanted else
          'the CUDA compiler (nvcc) is of CUDA %s and torch of CUDA %s' % (nvcc, wanted))
'''

CHECK_OPERATORS = '''
import sys, torch, torchvision
from mmcv.ops import nms, roi_align
for device in sys.argv[1:]:
    boxes = torch.tensor([[0., 0, 2, 2], [0, 0, 2, 2]], device=device)
    _, kept = nms(boxes, torch.tensor([.8, .9], device=device), .5)
    assert kept.tolist() == [1], kept
    roi = torch.tensor([[0., 0, 0, 2, 2]], device=device)
    pooled = roi_align(torch.ones(1, 1, 4, 4, device=device), roi, (2, 2))
    assert pooled.tolist() == [[[[1, 1], [1, 1]]]], pooled
'''

CHECK_LIBRARIES = 'import torchvision, mmengine, mmcv, mmdet, mmseg, mmpretrain'

# Lines of ninja's and pip's output that say how far it is.
PROGRESS = (
    r'\s*(?:\[(\d+)/(\d+)\]|'
    r'(Downloading \S+|Installing collected packages|Building wheel for \S+))'
)


class SetupError(SystemExit):
    """Ends the set-up with what is wrong and how to fix it, in one sentence."""


class StepError(SetupError):
    """A command of a step failed."""


# Checks that come before anything is written


def check_python(version, executable, stack):
    if stack not in NEWEST:
        text = 'There is no stack "{}": STACK is one of: {}.'
        raise SetupError(text.format(stack, ', '.join(sorted(NEWEST))))
    fit = ['3.{}'.format(minor) for minor in range(10, NEWEST[stack] + 1)]
    this = '{}.{}'.format(*version[:2])
    if this not in fit:
        text = (
            'This is Python {} ({}), and Python {} or {} is needed: install one, or name it, as '
            'in: make test PYTHON=/path/to/python3.11'
        )
        raise SetupError(text.format(this, executable, ', '.join(fit[:-1]), fit[-1]))


def check_venv(venv, wanted):
    """Take a folder only if it is new, empty, or ours and made for the same stack and Python."""
    if not os.path.lexists(venv) or os.path.isdir(venv) and not os.listdir(venv):
        return
    state = read_state(venv)
    if not state:
        raise SetupError(
            '{} exists and was not made by this set-up, so it is left as it is: remove it, or '
            'name another folder, as in: make test VENV=.venv-mmhcnet'.format(venv)
        )
    for what, name in sorted(wanted.items()):
        if state.get(what) != name:
            text = (
                '{0} was made for {1} {2}, and this is {1} {3}: remove it (rm -rf {0}), or name '
                'another folder, as in: make test VENV=.venv-{3}'
            )
            raise SetupError(text.format(venv, what, state.get(what), name))


def check_ensurepip(python):
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        raise SetupError(
            'Python {0} lacks the modules that make virtual environments: install them (Debian, '
            'Ubuntu: apt install python{0}-venv) and run this again.'.format(python)
        )


def check_headers(python, include):
    if not os.path.isfile(os.path.join(include, 'Python.h')):
        raise SetupError(
            'The C headers of Python {0} are missing ({1}/Python.h), and mmcv\'s operators are '
            'compiled with them: install them (Debian, Ubuntu: apt install python{0}-dev; '
            'Fedora: dnf install python3-devel) and run this again.'.format(python, include)
        )


def find_compiler(environ):
    names = [environ['CXX']] if environ.get('CXX') else ['c++', 'g++']
    for name in names:
        if shutil.which(shlex.split(name)[0], path=environ.get('PATH')):
            return name
    raise SetupError(
        'No C++ compiler was found ({}), and mmcv\'s operators have to be compiled: install one '
        '(Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++) and run this '
        'again.'.format(' or '.join(names))
    )


def free_gb(folder):
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return shutil.disk_usage(folder).free / 1e9


def check_disk(venv):
    wanted = DISK_GB_AFTER_TORCH if in_site_packages(venv, 'torch') else DISK_GB
    free = free_gb(venv)
    if free < wanted:
        text = (
            '{} needs {} GB of free disk, and there are {:.1f} GB: free some, or name a folder on '
            'another disk, as in: make test VENV=/path/to/venv'
        )
        raise SetupError(text.format(venv, wanted, free))


# What is known of an environment


def in_site_packages(venv, pattern):
    return glob.glob(os.path.join(glob.escape(venv), 'lib/python3*/site-packages', pattern))


def read_state(venv):
    """What an earlier run wrote: for which python and stack, and the stamp once complete."""
    try:
        with open(os.path.join(venv, STATE)) as file:
            return json.load(file)
    except (OSError, ValueError):
        return {}


def write_state(venv, state):
    path = os.path.join(venv, STATE)
    with open(path + '.new', 'w') as file:
        json.dump(state, file)
    os.replace(path + '.new', path)


def stamp(state):
    """A hash of all that decides what is installed, this folder included: its install is
    editable."""
    digest = hashlib.sha256('\n'.join((ROOT, state['stack'], state['python'])).encode())
    for name in (BUILD, TORCH, LOCK.format(state['stack']), 'setup.py', 'pyproject.toml'):
        if os.path.exists(os.path.join(ROOT, name)):
            with open(os.path.join(ROOT, name), 'rb') as file:
                digest.update(file.read())
    return digest.hexdigest()


def is_complete(venv, wanted):
    return os.path.exists(os.path.join(venv, PYTHON)) and read_state(venv) == wanted


# Running commands


def say(text):
    print(text, flush=True)


def since(begun):
    return datetime.timedelta(seconds=int(time.time() - begun))


def progress(lines):
    """The newest line of pip's or ninja's output that says how far it is."""
    for line in reversed(lines):
        match = re.match(PROGRESS, line)
        if match:
            return match.group(3) or 'compiled {} of {}'.format(*match.groups())
    return ''


class Steps(object):
    """The steps of a set-up: their output goes to the log, how far they are to the terminal."""

    def __init__(self, count, log, env):
        self.count, self.log, self.env, self.number = count, log, env, 0

    @contextlib.contextmanager
    def step(self, title):
        self.number += 1
        say('[{}/{}] {}'.format(self.number, self.count, title))
        begun = time.time()
        yield
        say('      done in {}'.format(since(begun)))

    def run(self, command, cure, **env):
        """Run a command; raise StepError with the end of its output shown if it fails."""
        self.log.write('\n$ {}\n'.format(' '.join(map(shlex.quote, command))).encode())
        self.log.flush()
        start, begun = self.log.tell(), time.time()
        # A session of its own: when the set-up is stopped, the compilers must stop with it.
        where = dict(cwd=ROOT, env=dict(self.env, **env), start_new_session=True)
        streams = dict(stdin=subprocess.DEVNULL, stdout=self.log, stderr=subprocess.STDOUT)
        process = subprocess.Popen(command, **dict(where, **streams))
        try:
            while process.returncode is None:
                try:
                    process.wait(HEARTBEAT)
                except subprocess.TimeoutExpired:
                    say('      {}  {}'.format(since(begun), progress(self._output(start))))
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait()
        if process.returncode:
            for line in self._output(start)[-20:]:
                say('    | ' + line[:200])
            text = 'Step {} of {} failed: {}. The whole output is in {}.'
            raise StepError(text.format(self.number, self.count, cure, self.log.name))

    def _output(self, start):
        """The lines that the log holds from a position on."""
        with open(self.log.name, 'rb') as file:
            file.seek(start)
            return file.read().decode(errors='replace').splitlines()


@contextlib.contextmanager
def locked_log(venv):
    """The log, held by one set-up at a time: two at once would spoil the environment."""
    with open(os.path.join(venv, LOG), 'ab') as log:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say('Another set-up is at work in {}: waiting for it.'.format(venv))
            fcntl.flock(log, fcntl.LOCK_EX)
        except OSError:
            pass  # a file system without locks
        yield log


# The set-up


def has_pip(venv):
    python = os.path.join(venv, PYTHON)
    return os.path.exists(python) and in_site_packages(venv, 'pip-*.dist-info/RECORD')


def empty(venv):
    """Remove what is in the folder, except what this set-up writes itself."""
    for name in set(os.listdir(venv)) - {STATE, LOG, TEMPORARY}:
        path = os.path.join(venv, name)
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.remove(path)


def child_environment(venv, compiler, temporary):
    # A compiler takes up to 2.5 GB; mmcv's own choice is at least four at once.
    memory = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    jobs = max(1, min(os.cpu_count(), memory // 2500000000))
    env = dict({'MAX_JOBS': str(jobs)}, **os.environ)
    env.update(MMCV_WITH_OPS='1', TMPDIR=temporary, CXX=compiler)
    # The compilation calls `ninja`, which is installed there.
    env['PATH'] = os.pathsep.join((os.path.join(venv, 'bin'), env.get('PATH', os.defpath)))
    for name in ('PYTHONPATH', 'PYTHONHOME'):  # packages found there would pass for installed ones
        env.pop(name, None)
    return env


def operator_target(venv, env):
    """The devices that the operators are compiled for, and the variables that see to it."""
    command = [os.path.join(venv, PYTHON), '-c', PROBE_GPU]
    try:
        answer = subprocess.check_output(
            command, env=env, universal_newlines=True, stderr=subprocess.DEVNULL
        ).strip()
    except subprocess.CalledProcessError:
        raise SetupError('torch does not run in {}: remove it and run this again.'.format(venv))
    if answer in ('cpu', 'cuda'):
        return ['cpu'] + ['cuda'] * (answer == 'cuda'), {}
    say(
        '      The operators are compiled for the CPU only, because {}; detection on the GPU '
        'needs them there: install the CUDA toolkit that torch asks for, remove {} and run this '
        'again.'.format(answer, venv)
    )
    return ['cpu'], {'CUDA_VISIBLE_DEVICES': ''}


def install(venv, stack, steps):
    python, lock = os.path.join(venv, PYTHON), LOCK.format(stack)
    pip = [python, '-m', 'pip', 'install', '--disable-pip-version-check', '--no-input']

    with steps.step('virtual environment'):
        if not has_pip(venv):
            empty(venv)
            # This Python may be the environment's own, which has just been removed.
            steps.run([sys._base_executable, '-m', 'venv', venv], UNEXPECTED)
        # pip writes RECORD last, and takes a package without it for complete all the same.
        for info in in_site_packages(venv, '*.dist-info'):
            if not os.path.exists(os.path.join(info, 'RECORD')):
                shutil.rmtree(info)
    with steps.step('build tools'):
        steps.run(pip + ['-r', BUILD, '-c', lock], NETWORK)
    with steps.step('torch and CUDA libraries, a download of up to 4 GB'):
        cache = [] if free_gb(venv) > DISK_GB + CACHE_GB else ['--no-cache-dir']
        steps.run(pip + cache + ['-r', TORCH, '-c', lock], NETWORK)
    build = pip + ['--no-build-isolation', '--no-deps']
    with steps.step(
        'OpenMMLab libraries; mmcv\'s operators are compiled, once, which takes about '
        '7 minutes on 2 cores'
    ):
        devices, target = operator_target(venv, steps.env)
        steps.run(build + ['--verbose', '-r', lock], COMPILE, **target)
    with steps.step('mmhcnet itself'):
        steps.run(build + ['-e', ROOT], UNEXPECTED)
    with steps.step('a try of every library'):
        check = [python, '-c', CHECK_OPERATORS] + devices
        try:
            steps.run(check, OPERATORS)
        except StepError:
            say(
                '      mmcv\'s operators fail as above. pip keeps what it has built, and hands it '
                'out whatever torch it was built against: compiling once more.'
            )
            with open(os.path.join(ROOT, lock)) as file:
                mmcv = re.search(r'^\S*\bmmcv==\S+$', file.read(), re.MULTILINE).group()
            again = ['--verbose', '--no-cache-dir', '--force-reinstall', mmcv]
            steps.run(build + again, COMPILE, **target)
            steps.run(check, OPERATORS)
        steps.run([python, '-c', CHECK_LIBRARIES], 'remove {} and run this again'.format(venv))


def set_up(venv, stack):
    """Make the environment, or complete it; do nothing if it is complete."""
    python = '{}.{}'.format(*sys.version_info[:2])
    state = dict(python=python, stack=stack)
    check_venv(venv, state)
    complete = dict(state, stamp=stamp(state))
    if is_complete(venv, complete):
        return
    check_ensurepip(python)
    check_headers(python, sysconfig.get_path('include'))
    compiler = find_compiler(os.environ)
    check_disk(venv)

    begun = time.time()
    os.makedirs(venv, exist_ok=True)
    with locked_log(venv) as log:
        if is_complete(venv, complete):
            return
        write_state(venv, state)
        say(
            'Making {} for Python {}, once: about 10 minutes on 2 cores. '
            'The output goes to {}.'.format(venv, python, log.name)
        )
        # Downloads are unpacked next to the environment: /tmp is often small, or kept in memory.
        temporary = os.path.join(venv, TEMPORARY)
        shutil.rmtree(temporary, ignore_errors=True)
        os.makedirs(temporary)
        try:
            install(venv, stack, Steps(6, log, child_environment(venv, compiler, temporary)))
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        write_state(venv, complete)
        say('{} is ready, after {}.'.format(venv, since(begun)))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    add = parser.add_argument
    add('--venv', default=os.path.join(ROOT, '.venv'), metavar='DIR', help='the environment')
    add('--stack', default='onedl', metavar='NAME', help='its packages: ' + ', '.join(NEWEST))
    args = parser.parse_args()
    check_python(sys.version_info, sys.executable, args.stack)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        set_up(os.path.abspath(args.venv), args.stack)
    except KeyboardInterrupt:
        print('Stopped: run the same command again, it goes on from here.', file=sys.stderr)
        sys.exit(130)


if __name__ == '__main__':
    main()
