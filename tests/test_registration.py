"""The models by name, from every OpenMMLab scope, and what importing mmhcnet costs."""

import ast
import re
import sys
from pathlib import Path

import pytest

import mmhcnet

from .processes import run

PACKAGES = ('mmpretrain', 'mmdet', 'mmseg', 'mmengine')
SMALL = dict(embed_dims=[8, 12, 16, 20], depths=[1, 1, 1, 1])
MODELS = {
    'HcNet': dict(arch=SMALL),
    'VHeat': dict(arch=dict(SMALL, post_norm=False, layer_scale=None)),
    'HeatConductionLayer': dict(in_channels=8),
    'HeatConductionOperator': dict(in_channels=8),
}


# Calls a function in fresh processes: forks of one that has imported mmengine and mmcv only.
FORKS = """
import os, sys, traceback
import mmcv.ops, mmengine.registry, mmengine.runner
FRESH = {'mmhcnet', 'mmpretrain', 'mmdet', 'mmseg'}
for case in CASES:
    assert not FRESH & set(sys.modules)
    child = os.fork()
    if not child:
        right = False
        try:
            right = check(*case)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(not right)
    assert os.waitpid(child, 0)[1] == 0, case
"""


def in_fresh_processes(check, cases):
    done = run([sys.executable, '-c', f'{check}\nCASES = {cases!r}\n{FORKS}'])
    assert done.returncode == 0, done.stderr


def test_found_by_dotted_name_without_an_import():
    """From the registry of each package."""
    in_fresh_processes(
        """
def check(package, models):
    from importlib import import_module
    registry = import_module(package + '.registry').MODELS
    built = {
        name: registry.build(dict(type='mmhcnet.' + name, **args)) for name, args in models.items()
    }
    return all(type(model).__name__ == name for name, model in built.items())
""",
        [(package, MODELS) for package in PACKAGES],
    )


def registered():
    """(registry, name) of everything that the package registers, read from its source."""
    package = Path(__file__).parents[1] / 'mmhcnet'
    for path in package.rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())) if '.mim' not in path.parts else ():
            for decorator in getattr(node, 'decorator_list', ()):
                call = re.fullmatch(r'(\w+)\.register_module\(\)', ast.unparse(decorator))
                if call:
                    yield call[1].removeprefix('OUR_'), node.name


def test_everything_registered_is_found_by_its_name():
    names = sorted(registered())
    assert len(names) >= 13
    in_fresh_processes(
        """
def check(registry, name):
    found = getattr(mmengine.registry, registry).get('mmhcnet.' + name)
    return found.__name__ == name
""",
        names,
    )


def test_importing_alone_imports_nothing_else():
    code = (
        "import sys, mmhcnet, mmhcnet.doctor\n"
        "print([name for name in ('torch', 'mmengine') if name in sys.modules])"
    )
    done = run([sys.executable, '-c', code])
    assert done.stdout == '[]\n', done.stderr


def test_public_names():
    assert set(mmhcnet.__all__) < set(dir(mmhcnet))
    for name in mmhcnet.__all__:
        assert getattr(mmhcnet, name) is not None
    with pytest.raises(AttributeError, match="module 'mmhcnet' has no attribute 'HCNet'"):
        mmhcnet.HCNet


def test_importing_needs_torch_and_mmengine_only():
    code = (
        "import sys\n"
        "for name in ('mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'timm', 'sklearn', 'scipy'):\n"
        "    sys.modules[name] = None\n"
        "import mmhcnet, mmhcnet.registry\n"
        "print(mmhcnet.HcNet.__name__, mmhcnet.VHeat.__name__)"
    )
    done = run([sys.executable, '-c', code])
    assert done.stdout.split()[-2:] == ['HcNet', 'VHeat'], done.stderr
