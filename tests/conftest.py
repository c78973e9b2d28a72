import gc
import importlib.util
import os
import shutil
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from torch import nn

from mmhcnet.tracing import COMPILES_FUNCTIONS

from .processes import run

# A compiler's pool of processes has threads here, and a data loader that forks next to them may
# wait for ever.
os.environ.setdefault('TORCHINDUCTOR_COMPILE_THREADS', '1')

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / 'shared'
OFFLINE = ('-q', '--no-index', '--no-deps', '--no-build-isolation')


def load_script(path):
    """A script as a module: what it does as a program is left out."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='session')
def frozen():
    """Names of the modules whose objects the collector of garbage passes over."""
    return set()


@pytest.fixture(autouse=True)
def libraries_are_no_garbage(frozen):
    """mmengine collects garbage at each data set: half a second, with all libraries imported."""
    imported = sys.modules.keys() - frozen
    if len(imported) > 50:
        gc.collect()
        gc.freeze()
        frozen.update(imported)


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


@pytest.fixture
def traced(monkeypatch):
    """Blocks are traced and then run by torch, which takes less time than a compiler."""
    if not COMPILES_FUNCTIONS:
        pytest.skip('needs torch 2.7')
    with_inductor = nn.Module.compile

    def compile(module, dynamic, options):
        with_inductor(module, dynamic=dynamic, backend='eager')

    monkeypatch.setattr(nn.Module, 'compile', compile)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def golden():
    """Folder of the reference implementations' outputs."""
    return ROOT / 'tests' / 'golden'


@pytest.fixture
def photos():
    """Folder of small real data: coco_tiny, coco_semantic, ade_tiny, imagenet_samples."""
    folder = Path(os.environ.get('MMHCNET_TEST_DATA', SHARED / 'data'))
    if not folder.is_dir():
        pytest.skip('the real photos (../shared/data or $MMHCNET_TEST_DATA) are not here')
    return folder


@pytest.fixture(scope='session')
def source(tmp_path_factory):
    """A copy of the repository to install from: that writes into it."""
    folder = tmp_path_factory.mktemp('source') / 'mmhcnet'
    folder.mkdir()
    ignore = shutil.ignore_patterns('__pycache__', '.mim')
    for name in (
        'setup.py',
        'pyproject.toml',
        'MANIFEST.in',
        'README.md',
        'LICENSE',
        'model-index.yml',
    ):
        shutil.copy(ROOT / name, folder)
    for name in ('mmhcnet', 'configs', 'tools'):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    return folder


@pytest.fixture(scope='session')
def new_environment(tmp_path_factory):
    """Make a virtual environment with mmhcnet and, from this one, all other packages.

    Takes the arguments of ``pip install``; returns the environment's Python.
    """

    def make(*what):
        venv = tmp_path_factory.mktemp('environment')
        run([sys.executable, '-m', 'venv', '--without-pip', venv], check=True)
        python = venv / 'bin' / 'python'
        code = "import sysconfig; print(sysconfig.get_path('purelib'))"
        packages = run([python, '-c', code], check=True).stdout.strip()
        # A folder named in a .pth file comes last, and its own .pth files are not read: so an
        # editable install of mmhcnet in this environment is not seen. But one of them is needed:
        # mmengine imports distutils, which Python 3.12 no longer has and setuptools brings.
        outer = Path(sysconfig.get_path('purelib'))
        distutils = (outer / 'distutils-precedence.pth').read_text()
        Path(packages, 'outer.pth').write_text(f'{outer}\n{distutils}\n')
        pip = [sys.executable, '-m', 'pip', '--python', python, 'install', *OFFLINE]
        run([*pip, *what], check=True)
        return python

    return make


@pytest.fixture(scope='session')
def installed(source, new_environment, tmp_path_factory):
    """The Python of an environment where mmhcnet has been installed from a wheel."""
    wheels = tmp_path_factory.mktemp('wheels')
    run([sys.executable, '-m', 'pip', 'wheel', *OFFLINE, '-w', wheels, source], check=True)
    (wheel,) = wheels.iterdir()
    return new_environment(wheel)


def outside():
    """Variables for a process that must not see this checkout."""
    return {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
