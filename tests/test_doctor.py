"""What the doctor finds: from facts, and in environments of packages that only pretend."""

import ast
import importlib.metadata
import os
import re
import sys
from pathlib import Path

import pytest

from mmhcnet.doctor import DISTRIBUTIONS, Facts, examine
from mmhcnet.stacks import STACKS, TORCH, UNASKED

from .conftest import ROOT
from .processes import run

LEGACY = {
    **dict(STACKS['openmmlab'].values()),
    **TORCH['openmmlab'],
    'numpy': '1.26.4',
}
ONEDL = {
    **dict(STACKS['onedl'].values()),
    **TORCH['onedl'],
    'numpy': '2.2.6',
}


def requirement_pins(name):
    text = (ROOT / 'requirements' / name).read_text()
    return dict(re.findall(r'^([\w-]+)==([\w.]+)', text, re.M))


@pytest.mark.parametrize('stack', STACKS)
def test_versions_are_those_of_the_requirement_files(stack):
    pins = dict(STACKS[stack].values())
    assert pins.items() <= requirement_pins(f'{stack}.txt').items()
    assert pins.items() <= requirement_pins(f'lock-{stack}.txt').items()
    assert TORCH[stack].items() <= requirement_pins(f'lock-{stack}.txt').items()
    assert set(UNASKED[stack]) <= set(requirement_pins(f'{stack}.txt'))


def test_imaug_is_that_of_the_lock_file():
    name, _, version = DISTRIBUTIONS['imgaug'].partition('==')
    assert requirement_pins('lock-onedl.txt')[name] == version


def test_extras_of_the_package_are_the_stacks(tmp_path):
    code = (
        "import setuptools; found = {}; setuptools.setup = lambda **k: found.update(k); "
        "import runpy; runpy.run_path('setup.py'); print(found['extras_require'])"
    )
    done = run([sys.executable, '-c', code], cwd=ROOT)
    extras = ast.literal_eval(done.stdout)
    pinned = dict(pin.split('==') for pin in extras['deploy'] if '==' in pin)
    assert pinned and pinned.items() <= requirement_pins('deploy.txt').items()
    for stack, pins in STACKS.items():
        assert extras[stack] == ['=='.join(pin) for pin in pins.values()] + list(UNASKED[stack])


def test_the_page_has_the_versions_of_the_lock_files():
    page = (ROOT / 'docs' / 'compatibility.md').read_text().split('\n## ')[0]
    rows = {
        tuple(name for name in re.findall(r'[a-z]+', row[0])): row[1:]
        for row in (
            [cell.strip() for cell in line.strip('|').split('|')]
            for line in page.splitlines()
            if line.startswith('| ')
        )
        if len(row) == 3
    }
    shown = 0
    for names, cells in rows.items():
        for i, stack in enumerate(STACKS):
            lock = requirement_pins(f'lock-{stack}.txt')
            versions = re.findall(r'\d+(?:\.\d+)+', cells[i])
            for name, version in zip(names, versions):
                assert lock[STACKS[stack].get(name, (name,))[0]] == version, name
                shown += 1
    assert shown == 2 * (len(STACKS['onedl']) + len(('torch', 'torchvision', 'numpy')))


@pytest.mark.parametrize('versions', [LEGACY, ONEDL])
def test_nothing_is_wrong_with_either_stack(versions):
    assert examine(Facts(versions, {})) == []


@pytest.mark.parametrize(
    'versions, failures, problem, cure',
    [
        # mmdet's own check, after the newest mmcv was installed
        (
            {**LEGACY, 'mmcv': '2.2.0'},
            {
                'mmdet.models': 'AssertionError: MMCV==2.2.0 is used but incompatible. Please '
                'install mmcv>=2.0.0rc4, <2.2.0.'
            },
            'mmcv 2.2.0 is not one',
            r'"setuptools<70" .* --no-build-isolation .* mmcv==2\.1\.0$',
        ),
        (
            {**LEGACY, 'mmengine': '0.6.0'},
            {
                'mmdet.models': 'AssertionError: MMEngine==0.6.0 is used but incompatible. Please '
                'install mmengine>=0.7.1, <1.0.0.'
            },
            'mmengine 0.6.0 is not one',
            r'^pip install mmengine==0\.10\.7$',
        ),
        # both stacks
        (
            {**ONEDL, 'mmengine': '0.10.7', 'mmcv': '2.1.0'},
            {},
            r'both stacks are installed \(mmcv, mmengine, onedl-mmcv',
            r'pip uninstall -y mmcv mmengine onedl-mmcv .* && .*onedl-mmengine==0\.10\.12',
        ),
        (
            {**LEGACY, 'mmcv-lite': '2.1.0'},
            {},
            'mmcv and mmcv-lite are installed',
            r'^pip uninstall -y mmcv mmcv-lite && .*mmcv==2\.1\.0$',
        ),
        # transformers 5
        (
            {**ONEDL, 'transformers': '5.24.0'},
            {'mmpretrain.models': 'TypeError: NoneType takes no arguments'},
            r'transformers 5\.24\.0 lacks what mmpretrain',
            r'^pip install "transformers<5"$',
        ),
        # numpy 2 with the legacy stack
        (
            {**LEGACY, 'numpy': '2.2.6'},
            {'mmcv': 'ImportError: numpy.core.multiarray failed to import'},
            r'numpy 2\.2\.6 with torch 2\.1\.2',
            '"numpy<2"',
        ),
        # torchvision of another release, and of another device
        (
            {**ONEDL, 'torchvision': '0.24.1'},
            {},
            r'torchvision 0\.24\.1 does not fit torch 2\.10\.0: .*other releases',
            r'torch==2\.10\.0 torchvision==0\.25\.0$',
        ),
        (
            {**ONEDL, 'torch': '2.10.0+cpu'},
            {
                'torchvision': 'RuntimeError: operator torchvision::nms does not exist',
                'mmpretrain.models': 'RuntimeError: operator torchvision::nms does not exist',
            },
            'different devices',
            r'torch==2\.10\.0 torchvision==0\.25\.0$',
        ),
        # mmcv's operators
        (
            LEGACY,
            {'mmcv.ops': "ModuleNotFoundError: No module named 'mmcv._ext'"},
            'without its operators',
            r'MMCV_WITH_OPS=1 .*mmcv==2\.1\.0$',
        ),
        (
            ONEDL,
            {'mmcv.ops': 'ImportError: /venv/mmcv/_ext.so: undefined symbol: _ZN3c106detail'},
            r'built for another torch than 2\.10\.0',
            r'--no-cache-dir .*onedl-mmcv==2\.3\.6$',
        ),
        (
            ONEDL,
            {'mmcv.ops': 'ImportError: libtorch_cuda.so: cannot open shared object file'},
            'built for another torch',
            'onedl-mmcv',
        ),
        # opencv
        (
            {**LEGACY, 'opencv-python': '4.10.0.84'},
            {
                'cv2': 'ImportError: libGL.so.1: cannot open shared object file: No such file',
                'mmcv': 'ImportError: libGL.so.1: cannot open shared object file: No such file',
            },
            r'cv2 needs libGL\.so\.1',
            r'opencv-python-headless==4\.10\.0\.84$',
        ),
        # torch, without which pip can compile no mmcv
        (
            {k: v for k, v in ONEDL.items() if not k.startswith('torch')},
            dict.fromkeys(
                ('torch', 'mmengine', 'mmcv', 'mmdet.models'),
                "ModuleNotFoundError: No module named 'torch'",
            ),
            "torch is not installed, and mmcv's operators are compiled against it",
            r'^pip install torch==2\.10\.0 torchvision==0\.25\.0$',
        ),
        (
            {k: v for k, v in LEGACY.items() if not k.startswith('torch')},
            {'torch': "ModuleNotFoundError: No module named 'torch'"},
            'torch is not installed',
            r'^pip install torch==2\.1\.2 torchvision==0\.16\.2$',
        ),
        (
            {k: v for k, v in ONEDL.items() if k != 'torchvision'} | {'torch': '2.9.1'},
            {'torchvision': "ModuleNotFoundError: No module named 'torchvision'"},
            'torchvision is not installed',
            r'^pip install torchvision==0\.24\.1$',
        ),
        # modules that pip knows by another name
        (
            ONEDL,
            {'mmdet.datasets': "ModuleNotFoundError: No module named 'imgaug'"},
            'imgaug is not installed',
            r'^pip install imaug==0\.4\.3$',
        ),
        (
            ONEDL,
            {'mmdet.datasets': "ModuleNotFoundError: No module named 'skimage'"},
            'skimage is not installed',
            r'^pip install scikit-image$',
        ),
        (
            ONEDL,
            {'distutils': "ModuleNotFoundError: No module named 'distutils'"},
            'distutils is not installed',
            r'^pip install setuptools$',
        ),
        # missing packages
        (
            {'torch': '2.10.0'},
            {name: f"ModuleNotFoundError: No module named '{name}'" for name in STACKS['onedl']},
            'no OpenMMLab packages',
            r'onedl-mmengine==0\.10\.12 onedl-mmcv==2\.3\.6',
        ),
        (
            {k: v for k, v in LEGACY.items() if k != 'mmdet'},
            {'mmdet.models': "ModuleNotFoundError: No module named 'mmdet'"},
            'mmdet is not installed',
            r'^pip install mmdet==3\.3\.0$',
        ),
        (
            LEGACY,
            {'mmseg.models': "ModuleNotFoundError: No module named 'ftfy'"},
            'ftfy is not installed',
            r'^pip install ftfy$',
        ),
        (
            LEGACY,
            {'pkg_resources': "ModuleNotFoundError: No module named 'pkg_resources'"},
            'pkg_resources is not installed',
            '"setuptools<70"',
        ),
        # what no check knows
        (
            ONEDL,
            {'mmseg.models': 'SyntaxError: invalid\nsyntax'},
            r'import mmseg\.models fails: SyntaxError: invalid syntax',
            r'python -c "import mmseg\.models"',
        ),
        (ONEDL, {'mmcv.ops': 'the process ended with code -6'}, 'ended with code -6', 'python -c'),
    ],
)
def test_names_the_problem_and_its_cure(versions, failures, problem, cure):
    (finding,) = examine(Facts(versions, failures))
    assert re.search(problem, finding.problem), finding
    assert re.search(cure, finding.cure), finding


@pytest.mark.parametrize(
    'versions, cure',
    [
        (ONEDL, r'^pip install "numpy>=2,<2\.3"$'),
        (LEGACY, r'^pip install "numpy<2" opencv-python$'),
    ],
    ids=['onedl', 'openmmlab'],
)
def test_numpy_1_beside_a_package_that_asks_for_2(versions, cure):
    versions = {**versions, 'numpy': '1.26.4'}
    (finding,) = examine(Facts(versions, {}, ('opencv-python 4.12.0.88',)))
    assert finding.problem.startswith('numpy 1.26.4 is installed, and numpy 2 is what these ask')
    assert finding.problem.endswith(': opencv-python 4.12.0.88')
    assert re.search(cure, finding.cure)
    assert examine(Facts({**ONEDL, 'numpy': '2.2.6'}, {}, ('opencv-python 4.12.0.88',))) == []


def test_onedl_does_not_need_pkg_resources():
    assert (
        examine(
            Facts(
                ONEDL, {'pkg_resources': 'ModuleNotFoundError: No module named \'pkg_resources\''}
            )
        )
        == []
    )


# In a process


@pytest.fixture
def pretended(tmp_path):
    """Run the doctor, or another program, in an empty environment with pretended packages."""
    run([sys.executable, '-m', 'venv', '--without-pip', tmp_path / 'venv'], check=True)

    def run_there(packages, versions, *command):
        for name, code in packages.items():
            file = tmp_path / 'packages' / Path(*name.split('.')) / '__init__.py'
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(code)
        for name, about in versions.items():
            version, *requires = about.split('; requires ')
            info = tmp_path / 'packages' / f'{name.replace("-", "_")}-{version}.dist-info'
            info.mkdir(parents=True)
            (info / 'METADATA').write_text(
                f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n'
                + ''.join(f'Requires-Dist: {wanted}\n' for wanted in requires)
            )
        path = f'{tmp_path / "packages"}{os.pathsep}{ROOT}'
        return run(
            [tmp_path / 'venv' / 'bin' / 'python', *command],
            cwd=tmp_path,
            env={'PATH': os.environ['PATH'], 'PYTHONPATH': path},
        )

    return run_there


DOCTOR = ('-m', 'mmhcnet.doctor')
WORKING = dict.fromkeys(
    (
        'torch',
        'torchvision',
        'cv2',
        'distutils',
        'mmengine',
        'mmcv',
        'mmcv.ops',
        'mmdet',
        'mmdet.models',
        'mmdet.datasets',
        'mmseg',
        'mmseg.models',
        'mmpretrain',
        'mmpretrain.models',
    ),
    '',
)
PRESENT = {name: ONEDL[name] for name in ('onedl-mmengine', 'onedl-mmcv', 'torch', 'torchvision')}


def test_runs_where_nothing_is_installed(pretended):
    done = pretended({}, {}, *DOCTOR)
    assert done.returncode == 1
    assert 'no OpenMMLab packages are installed: pip install ' in done.stdout
    # torch first: without it pip can compile no mmcv.
    first, *_ = done.stdout.splitlines()
    assert first.startswith('torch is not installed,')
    assert first.endswith(': pip install torch==2.10.0 torchvision==0.25.0')
    assert done.stderr == ''


def test_a_crash_is_a_finding(pretended):
    crash = 'import os; print("@noise", flush=True); os.abort()'
    done = pretended({**WORKING, 'torchvision': crash}, PRESENT, *DOCTOR)
    assert (done.returncode, done.stderr) == (1, '')
    assert 'import torchvision fails: the process ended with code -6: ' in done.stdout
    # What was to be tried after it has been tried.
    assert 'import mmhcnet.models fails' in done.stdout and 'import cv2' not in done.stdout


def test_reads_versions_and_errors(pretended):
    packages = {**WORKING, 'mmcv.ops': "raise ImportError('_ext.so: undefined symbol: _ZN2at')"}
    done = pretended(packages, PRESENT, *DOCTOR)
    assert (done.returncode, done.stderr) == (1, '')
    (line,) = done.stdout.splitlines()
    assert line.startswith("mmcv's operators were built for another torch than 2.10.0: pip install")


def test_reads_what_asks_for_numpy_2(pretended):
    asks = {
        'A': '1; requires numpy>=2.0.0',
        'B': '1; requires numpy<2.3.0,>=2; python_version >= "3.9"',
        'C': '1; requires numpy>2',
        'not-d': '1; requires numpy<2.5,>=1.23.2; requires numpy>=2; python_version >= "3.99"',
        'not-e': '1; requires numpy>=2; extra == "new"; requires numpy-quaternion>=2',
    }
    done = pretended(WORKING, {**PRESENT, 'numpy': '1.26.4', **asks}, *DOCTOR)
    line = done.stdout.splitlines()[0]
    assert 'these ask for: a 1, b 1, c 1: pip install "numpy>=2,<2.3"' in line


@pytest.mark.parametrize('script, args', [('train.py', ()), ('test.py', ('checkpoint.pth',))])
def test_tools_point_to_it_when_an_import_fails(pretended, script, args):
    packages = {'mmengine': "raise ImportError('libGL.so.1: cannot open shared object file')"}
    done = pretended(packages, {}, str(ROOT / 'tools' / script), 'config.py', *args)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith('Error: libGL.so.1: cannot open')
    assert '"python -m mmhcnet.doctor"' in line


def test_nothing_is_wrong_here():
    """The environment of these tests, whose packages are all there."""
    done = run([sys.executable, *DOCTOR], cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, '')
    torch = importlib.metadata.version('torch')
    assert re.fullmatch(
        rf'nothing is wrong: torch {re.escape(torch)}, .*mmpretrain [\d.]+\n', done.stdout
    )
