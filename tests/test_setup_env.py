import ast
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from .conftest import load_script
from .processes import Started, run

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / 'tools' / 'setup_env.py'
PYTHON = '{}.{}'.format(*sys.version_info[:2])
STACKS = ('onedl', 'openmmlab')


@pytest.fixture
def module():
    return load_script(SCRIPT)


def run_script(*args, **env):
    return run([sys.executable, SCRIPT, *args], env=dict(os.environ, **env))


def run_make(*args, **env):
    """make as from a shell: this test may itself run under make, with variables given to it."""
    outer = ('MAKEFLAGS', 'MFLAGS', 'MAKEOVERRIDES', 'MAKELEVEL', 'VENV', 'STACK', 'PYTHON')
    env = dict({name: value for name, value in os.environ.items() if name not in outer}, **env)
    return run([shutil.which('make'), '-C', ROOT, *args], env=env)


def pins(name):
    """{distribution: version} of a requirement file."""
    lines = (ROOT / 'requirements' / name).read_text().splitlines()
    rows = [
        re.fullmatch(r'([\w.-]+)==([\w.+]+)(; .+)?', line)
        for line in lines
        if line and not line.startswith('#')
    ]
    assert all(rows), f'{name} holds something other than name==version'
    return {normalised(row[1]): row[2] for row in rows}


def normalised(name):
    return re.sub(r'[-_.]+', '-', name).lower()


def one_sentence(result):
    assert result.returncode == 1
    assert result.stdout == ''
    assert len(result.stderr.splitlines()) == 1, result.stderr
    return result.stderr


# The requirement files


@pytest.mark.parametrize('stack', STACKS)
def test_lock_holds_what_the_requirement_files_name(stack):
    lock = pins(f'lock-{stack}.txt')
    assert pins(f'{stack}.txt').items() <= lock.items()
    assert pins('dev.txt').items() <= lock.items()
    for name in ('build.txt', 'torch.txt'):
        lines = (ROOT / 'requirements' / name).read_text().splitlines()
        assert {line for line in lines if not line.startswith('#')} <= set(lock)


@pytest.fixture
def installed_stack():
    """The stack that make has installed in this environment."""
    if not os.path.exists(os.path.join(sys.prefix, 'mmhcnet-env.json')):
        pytest.skip('this Python is not of an environment that make has made')
    return json.loads(Path(sys.prefix, 'mmhcnet-env.json').read_text())['stack']


def fits(requirement, python=PYTHON):
    environment = dict(extra='', python_version=python, python_full_version=f'{python}.0')
    return requirement.marker is None or requirement.marker.evaluate(environment)


@pytest.mark.parametrize('minor', range(10, 14))
def test_lock_is_complete(installed_stack, module, minor):
    """Without --no-deps pip would find nothing to add, save the opencv that is left out."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    python = f'3.{minor}'
    if minor > module.NEWEST[installed_stack]:
        pytest.skip(f'the {installed_stack} stack is not for Python {python}')
    versions = pins(f'lock-{installed_stack}.txt')
    lines = (ROOT / 'requirements' / f'lock-{installed_stack}.txt').read_text().splitlines()
    lock = [Requirement(line) for line in lines if not line.startswith('#')]
    wanted, refuse = set(), []
    for pin in lock:
        # A package for other Pythons is not here to be asked.
        if not fits(pin, python) or not fits(pin):
            continue
        found = importlib.metadata.distribution(pin.name)
        assert found.version.split('+')[0] == versions[normalised(pin.name)]
        if python not in SpecifierSet(found.metadata['Requires-Python'] or ''):
            refuse.append(str(pin))
        needed = map(Requirement, found.requires or [])
        wanted |= {normalised(each.name) for each in needed if fits(each, python)}
    assert refuse == []
    assert wanted - {normalised(pin.name) for pin in lock if fits(pin, python)} == {'opencv-python'}


# The checks that come before anything is written


def test_old_pythons_read_the_script():
    """f-strings, `nonlocal` and the like would hide the sentence behind a syntax error."""
    tree = ast.parse(SCRIPT.read_text())
    too_new = (
        ast.JoinedStr,
        ast.AnnAssign,
        ast.NamedExpr,
        ast.Nonlocal,
        ast.AsyncFunctionDef,
        ast.YieldFrom,
    )
    for node in ast.walk(tree):
        assert not isinstance(node, too_new), f'line {node.lineno}'
        if isinstance(node, ast.FunctionDef):
            assert not node.args.kwonlyargs and not node.returns, f'line {node.lineno}'
        if isinstance(node, ast.Raise):
            assert node.cause is None, f'line {node.lineno}'
    assert SCRIPT.read_text().isascii()


@pytest.mark.parametrize('name', ['python2.7', 'python3.6', 'python3.8', 'python3.9', 'python3.14'])
def test_unfit_python_says_which_is_needed(name, tmp_path):
    if run(['bash', '-c', f'{name} --version']).returncode:
        pytest.skip(f'{name} is not installed')
    result = run([name, SCRIPT, '--venv', tmp_path / 'venv'])
    assert '3.10, 3.11, 3.12 or 3.13 is needed' in one_sentence(result)
    assert not (tmp_path / 'venv').exists()


@pytest.mark.parametrize('version', [(2, 7, 18), (3, 9, 18), (3, 14, 0)])
def test_check_python_refuses(module, version):
    with pytest.raises(module.SetupError, match=r'3\.10, 3\.11, 3\.12 or 3\.13 is needed'):
        module.check_python(version, 'python', 'onedl')


@pytest.mark.parametrize('version', [(3, 9, 18), (3, 12, 1)])
def test_check_python_refuses_what_the_stack_has_no_torch_for(module, version):
    with pytest.raises(module.SetupError, match=r'Python 3\.10 or 3\.11 is needed'):
        module.check_python(version, 'python', 'openmmlab')


@pytest.mark.parametrize(
    'version, stack',
    [
        ((3, 10, 0), 'onedl'),
        ((3, 11, 7), 'onedl'),
        ((3, 12, 9), 'onedl'),
        ((3, 13, 0), 'onedl'),
        ((3, 10, 0), 'openmmlab'),
        ((3, 11, 7), 'openmmlab'),
    ],
)
def test_check_python_accepts(module, version, stack):
    module.check_python(version, 'python', stack)


def test_missing_compiler(tmp_path):
    (tmp_path / 'bin').mkdir()
    result = run_script('--venv', tmp_path / 'venv', PATH=str(tmp_path / 'bin'), CXX='')
    assert 'No C++ compiler was found (c++ or g++)' in one_sentence(result)
    assert not (tmp_path / 'venv').exists()


def test_compiler_is_the_one_of_cxx(module, tmp_path):
    compiler = tmp_path / 'my-c++'
    compiler.write_text('#!/bin/sh\n')
    compiler.chmod(0o755)
    assert module.find_compiler({'PATH': str(tmp_path), 'CXX': 'my-c++ -v'}) == 'my-c++ -v'
    with pytest.raises(module.SetupError, match='other-c'):
        module.find_compiler({'PATH': str(tmp_path), 'CXX': 'other-c++'})


def test_missing_headers(module, tmp_path):
    with pytest.raises(module.SetupError, match=r'apt install python3\.11-dev'):
        module.check_headers('3.11', str(tmp_path))
    (tmp_path / 'Python.h').touch()
    module.check_headers('3.11', str(tmp_path))


@pytest.mark.parametrize('name', ['ensurepip', 'venv'])
def test_missing_venv_module(module, monkeypatch, name):
    module.check_ensurepip('3.11')
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(module.SetupError, match=r'apt install python3\.11-venv'):
        module.check_ensurepip('3.11')


def test_too_little_disk(module, monkeypatch, tmp_path):
    venv = tmp_path / 'not' / 'yet' / 'there'
    asked = []

    def disk_usage(path):
        asked.append(path)
        return SimpleNamespace(free=5e9)

    monkeypatch.setattr(module.shutil, 'disk_usage', disk_usage)
    with pytest.raises(module.SetupError, match=r'there are 5\.0 GB.*make test VENV='):
        module.check_disk(str(venv))
    assert asked == [str(tmp_path)]

    (venv / 'lib' / 'python3.11' / 'site-packages' / 'torch').mkdir(parents=True)
    module.check_disk(str(venv))


def test_foreign_environment_is_refused_and_left_alone(tmp_path):
    venv = tmp_path / 'venv'
    venv.mkdir()
    (venv / 'pyvenv.cfg').write_text('home = /elsewhere\n')
    assert 'was not made by this set-up' in one_sentence(run_script('--venv', venv))
    assert [path.name for path in venv.iterdir()] == ['pyvenv.cfg']


def test_file_in_place_of_the_environment_is_refused(tmp_path):
    (tmp_path / 'venv').write_text('mine')
    assert 'was not made by this set-up' in one_sentence(run_script('--venv', tmp_path / 'venv'))
    assert (tmp_path / 'venv').read_text() == 'mine'


@pytest.mark.parametrize(
    'state', [dict(python='3.1', stack='onedl'), dict(python=PYTHON, stack='other')]
)
def test_environment_made_for_something_else_is_refused(tmp_path, state):
    (tmp_path / 'mmhcnet-env.json').write_text(json.dumps(state))
    assert 'was made for' in one_sentence(run_script('--venv', tmp_path))
    assert len(list(tmp_path.iterdir())) == 1


def test_unknown_stack(tmp_path):
    result = run_make(
        'env', f'PYTHON={sys.executable}', f'VENV={tmp_path / "venv"}', 'STACK=nosuch'
    )
    assert result.returncode
    assert 'There is no stack "nosuch": STACK is one of: onedl' in result.stderr
    assert not (tmp_path / 'venv').exists()


# make


def fake_python(folder, name, script):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f'#!/bin/sh\n{script}\n')
    (folder / name).chmod(0o755)


def test_make_takes_the_first_python_that_runs_and_fits(tmp_path):
    fake_python(tmp_path, 'python3', 'echo "version not installed" >&2; exit 127')
    fake_python(tmp_path, 'python3.13', 'exit 1')
    fake_python(tmp_path, 'python3.12', 'exit 1')
    fake_python(tmp_path, 'python3.11', 'echo "$0 $@" | grep -v import; exit 0')
    result = run_make('env', f'VENV={tmp_path / "venv"}', PATH=f'{tmp_path}:/usr/bin:/bin')
    assert result.returncode == 0, result.stderr
    assert (
        f'python3.11 tools/setup_env.py --venv {tmp_path / "venv"} --stack onedl' in result.stdout
    )


@pytest.mark.parametrize('stack, folder', [('onedl', '.venv'), ('openmmlab', '.venv-openmmlab')])
def test_each_stack_has_an_environment_of_its_own(tmp_path, stack, folder):
    fake_python(tmp_path, 'python', 'echo "$@"')
    result = run_make('env', f'PYTHON={tmp_path / "python"}', f'STACK={stack}')
    assert f'--venv {folder} --stack {stack}\n' in result.stdout


def test_make_does_not_take_a_python_that_the_stack_has_no_torch_for(tmp_path):
    asked = 'import sys; sys.version_info = (3, 12, 1)'
    fake_python(tmp_path, 'python3', f'[ "$1" = -c ] && exec {sys.executable} -c "{asked}; $2"')
    for name in ('python3.13', 'python3.12', 'python3.11', 'python3.10'):
        fake_python(tmp_path, name, 'exit 1')
    args = ('env', f'VENV={tmp_path / "venv"}')
    path = f'{tmp_path}:/usr/bin:/bin'
    result = run_make(*args, 'STACK=openmmlab', PATH=path)
    assert 'No Python 3.10 to 3.11 was found' in result.stderr
    result = run_make(*args, 'STACK=onedl', PATH=path)
    assert 'was found' not in result.stderr


def test_make_says_when_no_python_fits(tmp_path):
    for name in ('python3', 'python3.13', 'python3.12', 'python3.11', 'python3.10'):
        fake_python(tmp_path, name, 'exit 1')
    result = run_make('env', f'VENV={tmp_path / "venv"}', PATH=f'{tmp_path}:/usr/bin:/bin')
    assert result.returncode
    assert 'No Python 3.10 to 3.13 was found' in result.stderr


@pytest.mark.parametrize(
    'target, command',
    [('test', '-m pytest tests'), ('demo', 'tools/demo.py'), ('docs', '-m mkdocs serve')],
)
def test_make_runs_in_the_environment(tmp_path, target, command):
    """A setting that makes other packages visible must not reach it."""
    fake_python(tmp_path / 'bin', 'python', 'test -z "$PYTHONPATH" && echo "ran $@"')
    result = run_make(target, f'VENV={tmp_path}', 'PYTHON=true', PYTHONPATH='/elsewhere')
    assert result.returncode == 0, result.stderr
    assert f'ran {command}' in result.stdout


# The set-up, with commands that only pretend to install


@pytest.fixture
def ready(module, monkeypatch, tmp_path):
    """Let the set-up run on this machine, whatever it lacks."""
    for check in ('check_ensurepip', 'check_headers', 'check_disk'):
        monkeypatch.setattr(module, check, lambda *args: None)
    monkeypatch.setattr(module, 'find_compiler', lambda environ: 'c++')
    monkeypatch.setattr(module, 'operator_target', lambda venv, env: (['cpu'], {}))
    return str(tmp_path / 'venv')


class FakeSteps:
    """Takes down the commands, and fails those that `fails` picks."""

    def __init__(self, module, fails=lambda command: False):
        self.commands = []
        self.module = module
        self.fails = fails

    def __call__(self, count, log, env):
        self.count, self.env, self.titles = count, env, []
        return self

    @contextmanager
    def step(self, title):
        self.titles.append(title)
        yield

    def run(self, command, cure, **env):
        assert os.path.isdir(self.env['TMPDIR'])
        self.commands.append(' '.join(command))
        if self.fails(self.commands[-1]):
            raise self.module.StepError(cure)
        if command[1:3] == ['-m', 'venv']:
            os.makedirs(os.path.join(command[3], 'bin'))
            os.symlink(sys.executable, os.path.join(command[3], 'bin', 'python'))


def set_up(module, monkeypatch, venv, fails=lambda command: False):
    steps = FakeSteps(module, fails)
    monkeypatch.setattr(module, 'Steps', steps)
    module.set_up(venv, 'onedl')
    return steps


def test_second_run_does_nothing(module, monkeypatch, ready):
    first = set_up(module, monkeypatch, ready)
    assert len(first.titles) == first.count
    assert first.env['TMPDIR'].startswith(ready) and not os.path.exists(first.env['TMPDIR'])
    assert set_up(module, monkeypatch, ready).commands == []

    files = {path: path.stat().st_mtime_ns for path in Path(ready).rglob('*')}
    begun = time.time()
    result = run_script('--venv', ready, PATH='')
    assert (result.returncode, result.stdout, result.stderr) == (0, '', '')
    assert time.time() - begun < 1
    assert files == {path: path.stat().st_mtime_ns for path in Path(ready).rglob('*')}


def test_changed_requirements_are_installed(module, monkeypatch, ready, tmp_path):
    set_up(module, monkeypatch, ready)
    shutil.copytree(ROOT / 'requirements', tmp_path / 'requirements')
    monkeypatch.setattr(module, 'ROOT', str(tmp_path))
    set_up(module, monkeypatch, ready)
    assert set_up(module, monkeypatch, ready).commands == []
    with open(tmp_path / 'requirements' / 'lock-onedl.txt', 'a') as file:
        file.write('another==1.0\n')
    assert set_up(module, monkeypatch, ready).commands


def test_failed_step_is_made_good_by_the_next_run(module, monkeypatch, ready):
    with pytest.raises(module.SetupError):
        set_up(module, monkeypatch, ready, lambda command: 'torch.txt' in command)
    info = Path(ready) / 'lib' / f'python{PYTHON}' / 'site-packages' / 'half-1.0.dist-info'
    info.mkdir(parents=True)
    monkeypatch.setattr(module, 'has_pip', lambda venv: True)
    steps = set_up(module, monkeypatch, ready)
    assert not info.exists(), 'pip takes a package without RECORD for installed'
    assert not any('-m venv' in command for command in steps.commands)
    assert any('torch.txt' in command for command in steps.commands)
    assert set_up(module, monkeypatch, ready).commands == []


def test_environment_without_pip_is_made_again(module, monkeypatch, ready):
    with pytest.raises(module.SetupError):
        set_up(module, monkeypatch, ready, lambda command: 'build.txt' in command)
    (Path(ready) / 'lib').mkdir()
    (Path(ready) / 'lib' / 'rest').touch()
    monkeypatch.setattr(module, 'has_pip', lambda venv: False)
    assert any('-m venv' in command for command in set_up(module, monkeypatch, ready).commands)
    assert not (Path(ready) / 'lib').exists()


@pytest.mark.parametrize('free, option', [(13e9, ['--no-cache-dir']), (20e9, [])])
def test_scarce_disk_is_not_shared_with_a_cache(module, monkeypatch, ready, free, option):
    monkeypatch.setattr(module.shutil, 'disk_usage', lambda path: SimpleNamespace(free=free))
    torch = next(
        command.split()
        for command in set_up(module, monkeypatch, ready).commands
        if 'torch.txt' in command
    )
    assert [word for word in torch if word == '--no-cache-dir'] == option


def test_operators_that_fail_are_compiled_once_more(module, monkeypatch, ready, capsys):
    tries = []

    def fails(command):
        if 'mmcv.ops' in command:
            tries.append(command)
            return len(tries) == 1

    steps = set_up(module, monkeypatch, ready, fails)
    (rebuild,) = [command for command in steps.commands if '--force-reinstall' in command]
    assert len(tries) == 2 and '--no-cache-dir' in rebuild
    for option in ('--no-deps', '--no-build-isolation', 'onedl-mmcv=='):
        assert option in rebuild
    assert 'compiling once more' in capsys.readouterr().out

    with pytest.raises(module.SetupError, match='operators do not work'):
        os.remove(os.path.join(ready, 'mmhcnet-env.json'))
        shutil.rmtree(ready)
        set_up(module, monkeypatch, ready, lambda command: 'mmcv.ops' in command)


@pytest.mark.parametrize(
    'answer, devices, hidden',
    [
        ('cpu', ['cpu'], False),
        ('cuda', ['cpu', 'cuda'], False),
        ('no CUDA compiler (nvcc) was found', ['cpu'], True),
    ],
)
def test_operators_are_compiled_for_what_can_be(module, monkeypatch, answer, devices, hidden):
    monkeypatch.setattr(module.subprocess, 'check_output', lambda *args, **kwargs: answer + '\n')
    assert module.operator_target('venv', {}) == (
        devices,
        {'CUDA_VISIBLE_DEVICES': ''} if hidden else {},
    )


# Running a step


@pytest.fixture
def steps(module, tmp_path):
    with module.locked_log(str(tmp_path)) as log:
        yield module.Steps(2, log, dict(os.environ))


def shell(script):
    return ['/bin/sh', '-c', script]


def test_output_goes_to_the_log_and_progress_to_the_terminal(module, steps, monkeypatch, capsys):
    monkeypatch.setattr(module, 'HEARTBEAT', 0.3)
    with steps.step('compile'):
        steps.run(shell('echo "  [3/78] c++ -c a.cpp"; sleep .6; echo $WORD'), '', WORD='spoken')
    out = capsys.readouterr().out
    assert '[1/2] compile' in out and 'compiled 3 of 78' in out and 'done in 0:0' in out
    log = Path(steps.log.name).read_text()
    assert 'spoken' in log and 'c++ -c a.cpp' in log and 'spoken' not in out


def test_failure_shows_the_end_of_the_output_and_the_cure(module, steps, capsys):
    with pytest.raises(module.StepError, match=r'Step 1 of 2 failed: try again.*setup\.log'):
        with steps.step('torch'):
            steps.run(shell('seq 100; echo no such host; exit 3'), 'try again')
    shown = capsys.readouterr().out
    assert 'no such host' in shown and '| 99' in shown and '| 12\n' not in shown


def test_what_was_started_ends_with_the_set_up(module, steps, monkeypatch, tmp_path):
    def stop(text):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, 'HEARTBEAT', 0.3)
    monkeypatch.setattr(module, 'say', stop)
    with pytest.raises(KeyboardInterrupt):
        steps.run(shell(f'(sleep 2; touch {tmp_path}/survived) & wait'), '')
    time.sleep(2.2)
    assert not (tmp_path / 'survived').exists()


def test_second_set_up_waits_for_the_first(module, tmp_path):
    code = (
        f'import importlib.util as u; s = u.spec_from_file_location("m", {str(SCRIPT)!r}); '
        'm = u.module_from_spec(s); s.loader.exec_module(m)\n'
        f'with m.locked_log({str(tmp_path)!r}): print("in", flush=True)'
    )
    with ExitStack() as stack:
        with module.locked_log(str(tmp_path)):
            second = stack.enter_context(Started([sys.executable, '-c', code]))
            second.wait_for('waiting.*\n')
        assert second.wait(60) == 0
        assert second.stdout.splitlines()[1:] == ['in']
