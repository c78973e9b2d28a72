"""The models by name, from every OpenMMLab scope, and what importing mmhcnet costs."""

import ast
import re
import sys
from pathlib import Path

import pytest

import mmhcnet

from .processes import run

SMALL = 'embed_dims=[8, 12, 16, 20], depths=[1, 1, 1, 1]'
MODELS = {
    'HcNet': f'arch=dict({SMALL})',
    'VHeat': f'arch=dict({SMALL}, post_norm=False, layer_scale=None)',
    'HeatConductionLayer': 'in_channels=8',
    'HeatConductionOperator': 'in_channels=8',
}


@pytest.mark.parametrize('package', ['mmpretrain', 'mmdet', 'mmseg', 'mmengine'])
def test_found_by_dotted_name_without_an_import(package):
    # A process of its own: here mmhcnet is imported already.
    code = f'from {package}.registry import MODELS\n' + ''.join(
        f"print(type(MODELS.build(dict(type='mmhcnet.{name}', {args}))).__name__)\n"
        for name, args in MODELS.items()
    )
    done = run([sys.executable, '-c', code])
    assert done.stdout.split()[-len(MODELS) :] == list(MODELS), done.stderr


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
    """Each in a fresh process, which a fork of one that has imported mmengine only is."""
    names = sorted(registered())
    assert len(names) >= 13
    code = f'''
import os, sys
import mmengine.registry, mmengine.runner
assert not [name for name in sys.modules if name.startswith('mmhcnet')]
for registry, name in {names!r}:
    child = os.fork()
    if not child:
        found = getattr(mmengine.registry, registry).get('mmhcnet.' + name)
        os._exit(getattr(found, '__name__', None) != name)
    assert os.waitpid(child, 0)[1] == 0, name
'''
    done = run([sys.executable, '-c', code])
    assert done.returncode == 0, done.stderr


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
