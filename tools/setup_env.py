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
STATE = 'mmhcnet-env.json'
LOG = 'setup.log'
TEMPORARY = 'tmp'

# The finished environment takes 8 GB, and 4 GB of downloads are next to it until they are
# installed. pip's cache keeps these 4 GB as well, if there is room.
DISK_GB = 12
CACHE_GB = 4
# With torch in place, only the smaller packages and the compiler's files are still to come.
DISK_GB_AFTER_TORCH = 3

# Seconds between two lines of progress.
HEARTBEAT = 20

NETWORK = 'most often the network failed: run the same command again, it goes on where it stopped'
COMPILE = (
    'if the compiler was killed, memory ran out: run it again with MAX_JOBS=1 in front; if '
    'a download failed, run it again as it is'
)

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


class SetupError(Exception):
    """What is wrong and how to fix it, in one sentence."""


class StepError(SetupError):
    """A command of a step failed."""


# Checks that come before anything is written


def check_python(version, executable, stack):
    # torch 2.1, the newest that mmcv 2.1 compiles against, exists for no Python after 3.11.
    newest, names = (
        ((3, 11), '3.10 or 3.11') if stack == 'openmmlab' else ((3, 13), '3.10, 3.11, 3.12 or 3.13')
    )
    if not (3, 10) <= tuple(version[:2]) <= newest:
        raise SetupError(
            'This is Python {}.{} ({}), and Python {} is needed: install one, or '
            'name it, as in: make test PYTHON=/path/to/python3.11'.format(
                version[0], version[1], executable, names
            )
        )


def check_stack(stack):
    locks = glob.glob(os.path.join(ROOT, 'requirements', 'lock-*.txt'))
    stacks = sorted(os.path.basename(lock)[len('lock-') : -len('.txt')] for lock in locks)
    if stack not in stacks:
        raise SetupError(
            'There is no stack "{}": STACK is one of: {}.'.format(stack, ', '.join(stacks))
        )


def check_venv(venv, stack, python):
    """Take a folder only if it is new, empty, or ours and made for the same stack and Python."""
    if not os.path.lexists(venv) or os.path.isdir(venv) and not os.listdir(venv):
        return
    state = read_state(venv)
    if not state:
        raise SetupError(
            '{} exists and was not made by this set-up, so it is left as it is: remove it, or '
            'name another folder, as in: make test VENV=.venv-mmhcnet'.format(venv)
        )
    for what, wanted in (('python', python), ('stack', stack)):
        if state.get(what) != wanted:
            raise SetupError(
                '{0} was made for {1} {2}, and this is {1} {3}: remove it (rm -rf {0}), or name '
                'another folder, as in: make test VENV=.venv-{3}'.format(
                    venv, what, state.get(what), wanted
                )
            )


def check_ensurepip(python):
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        raise missing(
            'Python {} lacks the modules that make virtual environments'.format(python),
            'python{}-venv'.format(python),
        )


def check_headers(python, include):
    if not os.path.isfile(os.path.join(include, 'Python.h')):
        raise missing(
            'The C headers of Python {} are missing ({}/Python.h), and mmcv\'s operators are '
            'compiled with them'.format(python, include),
            'python{}-dev'.format(python),
            'python3-devel',
        )


def missing(what, debian, fedora=None):
    """What is wrong, and the system's package that fixes it."""
    return SetupError(
        '{}: install it (Debian, Ubuntu: apt install {}{}) and run this again.'.format(
            what, debian, '; Fedora: dnf install ' + fedora if fedora else ''
        )
    )


def find_compiler(environ):
    names = [environ['CXX']] if environ.get('CXX') else ['c++', 'g++']
    for name in names:
        if shutil.which(shlex.split(name)[0], path=environ.get('PATH')):
            return name
    raise missing(
        'No C++ compiler was found ({}), and mmcv\'s operators have to be compiled'.format(
            ' or '.join(names)
        ),
        'g++',
        'gcc-c++',
    )


def free_gb(folder):
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return shutil.disk_usage(folder).free / 1e9


def check_disk(venv):
    wanted = DISK_GB_AFTER_TORCH if glob.glob(site_packages(venv, 'torch')) else DISK_GB
    free = free_gb(venv)
    if free < wanted:
        raise SetupError(
            '{} needs {} GB of free disk, and there are {:.1f} GB: free some, or name a folder on '
            'another disk, as in: make test VENV=/path/to/venv'.format(venv, wanted, free)
        )


# What is known of an environment


def site_packages(venv, pattern):
    return os.path.join(glob.escape(venv), 'lib', 'python3*', 'site-packages', pattern)


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


def requirements(name):
    return os.path.join(ROOT, 'requirements', name + '.txt')


def stamp(stack, python):
    """A hash of all that decides what is installed, this folder included: its install is
    editable."""
    digest = hashlib.sha256('\n'.join((ROOT, stack, python)).encode())
    for path in [requirements(name) for name in ('build', 'torch', 'lock-' + stack)] + [
        os.path.join(ROOT, 'setup.py'),
        os.path.join(ROOT, 'pyproject.toml'),
    ]:
        if os.path.exists(path):
            with open(path, 'rb') as file:
                digest.update(file.read())
    return digest.hexdigest()


def venv_python(venv):
    return os.path.join(venv, 'bin', 'python')


def is_complete(venv, wanted):
    return os.path.exists(venv_python(venv)) and read_state(venv) == wanted


# Running commands


def say(text):
    print(text, flush=True)


def clock(seconds):
    return '{}:{:02d}'.format(int(seconds) // 60, int(seconds) % 60)


def tail(path, start, size):
    with open(path, 'rb') as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(start, end - size))
        return file.read().decode(errors='replace').splitlines()


def progress(lines):
    """The newest line of pip's or ninja's output that says how far it is."""
    known = (
        r'\s*(?:\[(\d+)/(\d+)\]'
        r'|(Downloading \S+|Installing collected packages|Building wheel for \S+))'
    )
    for match in filter(None, (re.match(known, line) for line in reversed(lines))):
        done, count, other = match.groups()
        return other or 'compiled {} of {}'.format(done, count)
    return ''


class Steps(object):
    """The steps of a set-up: their output goes to the log, how far they are to the terminal."""

    def __init__(self, count, log, env):
        self.count = count
        self.log = log
        self.env = env
        self.number = 0

    @contextlib.contextmanager
    def step(self, title):
        self.number += 1
        say('[{}/{}] {}'.format(self.number, self.count, title))
        begun = time.time()
        yield
        say('      done in {}'.format(clock(time.time() - begun)))

    def run(self, command, cure, **env):
        """Run a command; raise StepError with the end of its output shown if it fails."""
        self.log.write('\n$ {}\n'.format(' '.join(shlex.quote(word) for word in command)).encode())
        self.log.flush()
        start = self.log.tell()
        begun = beat = time.time()
        # A session of its own: when the set-up is stopped, the compilers must stop with it.
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=dict(self.env, **env),
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            while process.poll() is None:
                time.sleep(0.1)
                if time.time() - beat >= HEARTBEAT:
                    beat = time.time()
                    say(
                        '      {}  {}'.format(
                            clock(beat - begun), progress(tail(self.log.name, start, 200000))
                        )
                    )
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait()
        if process.returncode:
            for line in tail(self.log.name, start, 20000)[-20:]:
                say('    | ' + line[:200])
            raise StepError(
                'Step {} of {} failed: {}. The whole output is in {}.'.format(
                    self.number, self.count, cure, self.log.name
                )
            )


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
    python = venv_python(venv)
    return os.path.exists(python) and not subprocess.call(
        [python, '-m', 'pip', '--version'], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def empty(venv):
    """Remove what is in the folder, except what this set-up writes itself."""
    for name in set(os.listdir(venv)) - {STATE, LOG, TEMPORARY}:
        path = os.path.join(venv, name)
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.remove(path)


def drop_half_installed(venv):
    """pip writes RECORD last, and takes a package without it for complete all the same."""
    for info in glob.glob(site_packages(venv, '*.dist-info')):
        if not os.path.exists(os.path.join(info, 'RECORD')):
            shutil.rmtree(info)


def child_environment(venv, compiler, temporary):
    env = dict(os.environ, MMCV_WITH_OPS='1', TMPDIR=temporary, CXX=compiler)
    # A compiler takes up to 2.5 GB; mmcv's own choice is at least four at once.
    memory = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    env.setdefault('MAX_JOBS', str(max(1, min(os.cpu_count(), memory // 2500000000))))
    # The compilation calls `ninja`, which is installed there.
    env['PATH'] = os.pathsep.join((os.path.join(venv, 'bin'), os.environ.get('PATH', os.defpath)))
    for name in ('PYTHONPATH', 'PYTHONHOME'):  # packages found there would pass for installed ones
        env.pop(name, None)
    return env


def operator_target(venv, env):
    """The devices that the operators are compiled for, and the variables that see to it."""
    try:
        answer = subprocess.check_output(
            [venv_python(venv), '-c', PROBE_GPU],
            env=env,
            universal_newlines=True,
            stderr=subprocess.DEVNULL,
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


def mmcv_pin(lock):
    with open(lock) as file:
        return re.search(r'^\S*\bmmcv==\S+$', file.read(), re.M).group()


def install(venv, stack, steps):
    python = venv_python(venv)
    pip = [python, '-m', 'pip', 'install', '--disable-pip-version-check', '--no-input']
    lock = requirements('lock-' + stack)

    with steps.step('virtual environment'):
        if not has_pip(venv):
            empty(venv)
            # This Python may be the environment's own, which has just been removed.
            steps.run([sys._base_executable, '-m', 'venv', venv], 'see the lines above')
        drop_half_installed(venv)
    with steps.step('build tools'):
        steps.run(pip + ['-r', requirements('build'), '-c', lock], NETWORK)
    with steps.step('torch and CUDA libraries, a download of up to 4 GB'):
        cache = [] if free_gb(venv) > DISK_GB + CACHE_GB else ['--no-cache-dir']
        steps.run(pip + cache + ['-r', requirements('torch'), '-c', lock], NETWORK)
    with steps.step(
        'OpenMMLab libraries; mmcv\'s operators are compiled, once, which takes about '
        '7 minutes on 2 cores'
    ):
        devices, target = operator_target(venv, steps.env)
        build = pip + ['--verbose', '--no-build-isolation', '--no-deps']
        steps.run(build + ['-r', lock], COMPILE, **target)
    with steps.step('mmhcnet itself'):
        steps.run(pip + ['--no-build-isolation', '--no-deps', '-e', ROOT], 'see the lines above')
    with steps.step('a try of every library'):
        operators = (
            [python, '-c', CHECK_OPERATORS] + devices,
            'mmcv\'s operators do not work with this torch',
        )
        try:
            steps.run(*operators)
        except StepError:
            say(
                '      mmcv\'s operators fail as above. pip keeps what it has built, and hands it '
                'out whatever torch it was built against: compiling once more.'
            )
            steps.run(
                build + ['--no-cache-dir', '--force-reinstall', mmcv_pin(lock)], COMPILE, **target
            )
            steps.run(*operators)
        steps.run([python, '-c', CHECK_LIBRARIES], 'remove {} and run this again'.format(venv))


def set_up(venv, stack):
    """Make the environment, or complete it; do nothing if it is complete."""
    python = '{}.{}'.format(*sys.version_info[:2])
    check_stack(stack)
    check_venv(venv, stack, python)
    state = dict(python=python, stack=stack)
    complete = dict(state, stamp=stamp(stack, python))
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
        say('{} is ready, after {}.'.format(venv, clock(time.time() - begun)))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument(
        '--venv',
        default=os.path.join(ROOT, '.venv'),
        metavar='DIR',
        help='the environment (default: .venv next to the Makefile)',
    )
    parser.add_argument(
        '--stack',
        default='onedl',
        metavar='NAME',
        help='which pinned stack to install (default: onedl)',
    )
    try:
        args = parser.parse_args()
        check_python(sys.version_info, sys.executable, args.stack)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        set_up(os.path.abspath(args.venv), args.stack)
    except SetupError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('Stopped: run the same command again, it goes on from here.', file=sys.stderr)
        return 130
    return 0


if __name__ == '__main__':
    sys.exit(main())
