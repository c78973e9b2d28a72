"""Which line of a user's config an error comes from."""

import ast
import os
import re
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmhcnet.errors import UserError

# What messages of mmengine and ours put in quotes and have from the config.
_QUOTED = re.compile(r"(?:path|type|argument|got) '([^']+)'")


def fault_line(error: BaseException, message: str, config: str | None) -> str | None:
    """``file:line`` of the fault that an error is about, if it is in a config or a base of it.

    That is, in this order: the line at which Python stopped or a base is missing, the setting that
    the object which failed to build was given and its message names, the word that the message
    quotes.

    Args:
        error (BaseException): As it was caught, with its traceback.
        message (str): What the user is told.
        config (str, optional): Path of the config; nothing is looked for in YAML and JSON.
    """
    files = _files(Path(config)) if config else []
    for path in files:
        line = (
            _line_of_syntax_error(path)
            or _line_of_missing_base(path)
            or _line_in_traceback(error, path)
        )
        if line:
            return _shown(path, line)
    for key, value in [
        *_settings_named(error),
        *((quoted, ...) for quoted in _QUOTED.findall(message)[:1]),
    ]:
        for path in files:
            for line, name, node in _settings(path):
                if (name == key and _may_be(node, value)) or (
                    value is ... and isinstance(node, ast.Constant) and node.value == key
                ):
                    return _shown(path, line)
    return None


def _shown(path: Path, line: int) -> str:
    shown = os.path.relpath(path)
    return f'{path if shown.startswith("..") else shown}:{line}'


def _files(path: Path) -> list[Path]:
    """A Python config and its bases, as far as those are named by a path."""
    if path.suffix != '.py' or not path.is_file():
        return []
    found = [path]
    for _, base in _bases(path):
        found += [file for file in _files(base) if file not in found]
    return found


def _bases(path: Path) -> Iterator[tuple[int, Path]]:
    """(line, path) of the bases that a config names by a path, not by an expression."""
    for _, name, node in _settings(path):
        if name == '_base_':
            for base in node.elts if isinstance(node, (ast.List, ast.Tuple)) else [node]:
                if isinstance(base, ast.Constant) and '::' not in str(base.value):
                    yield base.lineno, path.parent / str(base.value)


def _settings(path: Path) -> Iterator[tuple[int, str | None, ast.AST]]:
    """(line, name, value) of every assignment, keyword argument and entry of a dict."""
    try:
        tree = ast.parse(path.read_text())
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    yield node.lineno, target.id, node.value
        elif isinstance(node, ast.keyword):
            yield node.value.lineno, node.arg, node.value
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values):
                if isinstance(key, ast.Constant) and isinstance(key.value, str):
                    yield value.lineno, key.value, value


def _may_be(node: ast.AST, value: Any) -> bool:
    try:
        return value is ... or ast.literal_eval(node) == value
    except ValueError:
        # Known only when the config runs.
        return True


def _line_of_syntax_error(path: Path) -> int | None:
    try:
        ast.parse(path.read_text())
    except SyntaxError as error:
        return error.lineno
    except ValueError:
        return 1
    return None


def _line_of_missing_base(path: Path) -> int | None:
    return next((line for line, base in _bases(path) if not base.is_file()), None)


def _line_in_traceback(error: BaseException, path: Path) -> int | None:
    lines = []
    cause: BaseException | None = error
    while cause is not None:
        lines += [
            frame.lineno
            for frame in traceback.extract_tb(cause.__traceback__)
            if os.path.abspath(frame.filename) == os.path.abspath(path)
        ]
        cause = cause.__cause__
    return lines[-1] if lines else None


def _settings_named(error: BaseException) -> list[tuple[str, Any]]:
    """Settings of the innermost object that was being built, as far as the error names them."""
    if isinstance(error, UserError):
        return []
    built = [
        frame.f_locals['cfg']
        for frame, _ in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_name == 'build_from_cfg' and 'cfg' in frame.f_locals
    ]
    words = set(re.findall(r'\w+', str(error)))
    return [
        (key, value)
        for key, value in (built[-1].items() if built else ())
        if key in words or key == 'type' and 'is not in the' in str(error)
    ]
