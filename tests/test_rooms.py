"""The walls between the rooms of the package: who imports whom, read from the source."""

import ast
import json
import sys
from pathlib import Path

import pytest

import mmhcnet

from .processes import run

PACKAGE = Path(mmhcnet.__file__).parent
# From the ground up; a room imports from those before it only. Modules outside the rooms, as
# mmhcnet.errors and mmhcnet.registry, stand below all of them.
ROOMS = (
    'ops',
    'checkpoints',
    'models',
    'training',
    'cli',
    'datasets',
    'inference',
    'visualization',
)


def module_of(path):
    parts = ('mmhcnet', *path.relative_to(PACKAGE).with_suffix('').parts)
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


SOURCES = {module_of(path): path for path in PACKAGE.rglob('*.py') if '.mim' not in path.parts}


def imports_of(module):
    """The modules of mmhcnet that a module imports as it is imported itself."""
    path, found = SOURCES[module], set()
    package = module if path.name == '__init__.py' else module.rpartition('.')[0]
    todo = list(ast.parse(path.read_text()).body)
    while todo:
        node = todo.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        todo += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ''
            if node.level:
                up = package.split('.')[: len(package.split('.')) - node.level + 1]
                base = '.'.join([*up, base] if base else up)
            names = [base, *(f'{base}.{alias.name}' for alias in node.names)]
        else:
            continue
        found |= {name for name in names if name in SOURCES}
    # A package is imported before what is in it, but that is no wish of the module.
    return found - {'mmhcnet', package, module}


def room_of(module):
    parts = module.split('.')
    return parts[1] if len(parts) > 1 and parts[1] in ROOMS else None


def test_every_folder_is_a_room():
    folders = {path.name for path in PACKAGE.iterdir() if (path / '__init__.py').exists()}
    assert folders == set(ROOMS)


def test_a_room_imports_from_those_below():
    for module in SOURCES:
        room = room_of(module)
        # The package's own names and tools stand above all rooms.
        below = ROOMS[: ROOMS.index(room) + 1] if room else ROOMS
        for other in imports_of(module):
            assert room_of(other) in (None, *below), f'{module} imports {other}'


@pytest.mark.parametrize('room', ['checkpoints', 'training'])
def test_imports_no_model(room):
    """Not from others either: in a process of its own, with everything of the room imported."""
    modules = [module for module in SOURCES if room_of(module) == room]
    code = (
        'import importlib, json, sys\n'
        f'for name in {modules!r}: importlib.import_module(name)\n'
        'print(json.dumps([m for m in sys.modules if m.startswith("mmhcnet")]))'
    )
    done = run([sys.executable, '-c', code])
    assert done.returncode == 0, done.stderr
    assert not [
        name
        for name in json.loads(done.stdout.splitlines()[-1])
        if name.startswith('mmhcnet.models')
    ]


def test_no_cycles():
    graph = {module: imports_of(module) for module in SOURCES}
    done, path = set(), []

    def visit(module):
        assert module not in path, ' -> '.join([*path[path.index(module) :], module])
        if module not in done:
            path.append(module)
            for other in graph[module]:
                visit(other)
            path.pop()
            done.add(module)

    for module in graph:
        visit(module)


def test_no_public_name_hides_a_module():
    """It would be the module or the function, as the order of imports has it."""
    for module, path in SOURCES.items():
        if path.name != '__init__.py' or module == 'mmhcnet':
            continue
        inside = {name.rpartition('.')[2] for name in SOURCES if name.rpartition('.')[0] == module}
        tree = ast.parse(path.read_text())
        given = {
            alias.asname or alias.name
            for node in tree.body
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        assert not given & inside, f'{module}: {given & inside}'
    assert not set(mmhcnet.__all__) & {name.split('.')[1] for name in SOURCES if '.' in name}
