"""Each private interface of torch and mmengine in use is on its page, and still there."""

import ast
import importlib
import inspect
import re

import pytest
import torch
from torch.torch_version import TorchVersion

from .conftest import ROOT
from .test_rooms import SOURCES

PAGE = (ROOT / 'docs' / 'private_interfaces.md').read_text()
# Name -> the first release of torch that has it, if that matters.
LISTED = {
    name: re.findall(r'torch (\d+\.\d+)', line)
    for line in PAGE.splitlines()
    if line.startswith('| `')
    for name in re.findall(r'`([\w.]+)`', line.split('|')[1])
}
# Python's own, not torch's or mmengine's.
PYTHON = {'_exit', '_fields', '_replace', '_asdict'}


def private(name):
    return name.startswith('_') and not name.startswith('__') and name.strip('_') != ''


def names_in(tree):
    """Private names that a module uses of others, and those that it makes itself."""
    used, own = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            own.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            own.add(node.id)
        elif isinstance(node, ast.Attribute):
            self = isinstance(node.value, ast.Name) and node.value.id in ('self', 'cls')
            if self and isinstance(node.ctx, ast.Store):
                own.add(node.attr)
            else:
                used.add(node.attr)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            used |= {
                part
                for name in (node.module, *(a.name for a in node.names))
                for part in name.split('.')
            }
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func) in ('getattr', 'hasattr')
            and isinstance(node.args[1], ast.Constant)
        ):
            used.add(node.args[1].value)
    return used, own


def overridden():
    """Private methods of classes of ours that a base of somebody else has too."""
    for module in SOURCES:
        if '.triton' in module or '.visualization' in module:
            continue
        for cls in vars(importlib.import_module(module)).values():
            if inspect.isclass(cls) and cls.__module__ == module:
                foreign = [
                    base
                    for base in cls.__mro__
                    if base.__module__.partition('.')[0] in ('torch', 'mmengine')
                ]
                # What metaclasses put there is no method.
                yield from (
                    name
                    for name, value in vars(cls).items()
                    if private(name)
                    and inspect.isfunction(value)
                    and any(name in vars(base) for base in foreign)
                )


def test_what_is_used_is_on_the_page():
    pairs = [names_in(ast.parse(path.read_text())) for path in SOURCES.values()]
    own = set.union(*(own for _, own in pairs)) | PYTHON
    used = {name for names, _ in pairs for name in names if private(name) and name not in own}
    found = used | set(overridden())
    on_page = {name: set(filter(private, name.split('.'))) for name in LISTED}
    assert found <= set.union(*on_page.values())
    sources = '\n'.join(path.read_text() for path in SOURCES.values())
    for name, parts in on_page.items():
        assert parts & found or name.rpartition('.')[2] in sources, f'{name} is not used'


@pytest.mark.parametrize('name', LISTED)
def test_what_is_on_the_page_is_there(name):
    if LISTED[name] and TorchVersion(torch.__version__) < LISTED[name][0]:
        pytest.skip(f'torch has it from {LISTED[name][0]} on')
    parts = name.split('.')
    for end in range(len(parts), 0, -1):
        try:
            found = importlib.import_module('.'.join(parts[:end]))
            break
        except ImportError:
            continue
    for part in parts[end:]:
        if hasattr(found, part):
            found = getattr(found, part)
        else:
            # An attribute that a constructor or method sets.
            assert re.search(rf'\.{part}\b', inspect.getsource(found)), part
