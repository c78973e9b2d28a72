"""How the tools end on an error: one line that says how to fix it."""

import inspect
import json
import os
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module

import mmengine.registry
from mmengine.hooks import Hook
from mmengine.registry import Registry
from torch.utils.data import DataLoader

import mmhcnet.registry
from mmhcnet.checkpoints.files import write_file
from mmhcnet.doctor import ADVICE, CHECKS, Facts, installed_versions
from mmhcnet.errors import UserError, nearest

from .config_lines import fault_line

# An error.log that is older is of an earlier run.
_STARTED = time.time()


def _registered(kind: str | None = None) -> dict[str, type]:
    """What mmengine's registries and their children know by now, of one kind or all."""
    roots = [value for value in vars(mmengine.registry).values() if isinstance(value, Registry)]
    found = {}
    for root in roots:
        if kind in (None, root.name):
            for registry in [root, *root.children.values()]:
                found.update(registry.module_dict)
    return found


def _ours(name: str, kind: str) -> str | None:
    """The name with its scope, where it is one of this package's."""
    for value in vars(mmhcnet.registry).values():
        if (
            isinstance(value, Registry)
            and value.scope == 'mmhcnet'
            and value.name == kind
            and name in (value.import_from_location() or value.module_dict)
        ):
            return f'mmhcnet.{name}'
    return None


def explain(error: BaseException) -> str:
    """The message of an error in one line, with the nearest of the accepted names."""
    # str() of a KeyError is the quoted repr of its message.
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    if 'in DataLoader worker process' in text:
        # The last line of the traceback from there.
        text = text.strip().splitlines()[-1].split(': ', 1)[-1]
    text = ' '.join(text.split()) or type(error).__name__
    match = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", text)
    if match and (cls := {'DataLoader': DataLoader, **_registered()}.get(match[1])):
        known = list(inspect.signature(cls).parameters)
        return (
            f"{match[1]} has no argument '{match[2]}'{nearest(match[2], known)} It takes: "
            f'{", ".join(known)}'
        )
    match = re.match(r"'?([\w.]+) is not in the (\S+)::([\w ]+) registry", text)
    if match and _ours(match[1], match[3]):
        return (
            f"there is no {match[3]} of type '{match[1]}' in {match[2]}; write it with its "
            f"scope: '{_ours(match[1], match[3])}'"
        )
    if match:
        return (
            f"there is no {match[3]} of type '{match[1]}' in {match[2]}"
            f'{nearest(match[1], _registered(match[3]))} For one of your own add its module to '
            'custom_imports in the config'
        )
    match = re.search(r'to have (\d+) channels, but got (\d+) channels', text)
    if match:
        return (
            f'a layer takes {match[1]} channels and is given {match[2]}; if it is the first, '
            f'the images have {match[2]}: set model.backbone.in_channels={match[2]}, with as '
            'many numbers in mean and std of data_preprocessor'
        )
    if isinstance(error, json.JSONDecodeError):
        return f'an annotation file is not complete JSON: {text}'
    # The message of such an error is the key alone.
    if isinstance(error, KeyError) and error.args and ' ' not in text:
        return f"key '{text}' is missing"
    return text


class FirstStep(Hook):
    """Knows whether a first iteration has come to its end, and, where one has begun, a first
    validation or test."""

    def __init__(self):
        self.done = self._validated = False

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.done = True

    def before_val(self, runner):
        self.done = self._validated

    def after_val(self, runner):
        self.done = self._validated = True

    after_test = after_val


def _rank() -> int:
    """The rank of this process, which may have failed before it joined the others."""
    return int(
        next(
            (
                os.environ[name]
                for name in ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK')
                if name in os.environ
            ),
            0,
        )
    )


def _save_traceback(folder: str | None) -> str | None:
    """Write the traceback of the present error; of several ranks only the first one to fail does.

    Args:
        folder (str, optional): Of the run. If it is not there yet the file goes to the folder for
            temporary files.

    Returns:
        str: Path of the file, or None where another rank writes it or no disk takes it.
    """
    text = traceback.format_exc().encode()
    alone = int(os.environ.get('WORLD_SIZE', os.environ.get('SLURM_NTASKS', 1))) == 1
    if folder and os.path.isdir(folder):
        path = os.path.join(folder, 'error.log')
        try:
            if alone or not os.path.isfile(path) or os.path.getmtime(path) < _STARTED:
                write_file(path, text)
            return path
        except OSError:
            # The disk may be what the error is about.
            pass
    if _rank() != 0:
        return None
    try:
        with tempfile.NamedTemporaryFile(
            prefix='mmhcnet-error-', suffix='.log', delete=False
        ) as file:
            file.write(text)
        return file.name
    except OSError:
        return None


@contextmanager
def one_line_errors(
    log_dir: Callable[[], str | None] | None = None,
    begun: Callable[[], bool] = lambda: False,
    config: Callable[[], str | None] = lambda: None,
    whole: Callable[[], bool] = lambda: False,
) -> Iterator[None]:
    """End the program with one line instead of a traceback on a mistake in config or command.

    Until the first iteration is done, and in the first validation, whatever fails comes from what
    the user wrote: config, command, data, checkpoint. The line begins with the file and line of the
    user's config that is at fault, where that can be found.

    Args:
        log_dir (Callable, optional): Folder of the run, which gets the traceback as ``error.log``;
            while there is none, or it returns None, the traceback goes to a temporary file. Without
            it nothing is written.
        begun (Callable): Whether the first iteration (or validation) is done; from then on only a
            :class:`UserError` is shortened.
        config (Callable): Path of the user's config, or None.
        whole (Callable): Whether the user asks for the full traceback. With the environment
            variable ``MMHCNET_TRACEBACK=1`` it is always shown.
    """
    try:
        yield
    except Exception as error:
        saved = _save_traceback(log_dir()) if log_dir else None
        if (
            whole()
            or os.environ.get('MMHCNET_TRACEBACK', '0') not in ('', '0')
            or (begun() and not isinstance(error, UserError))
        ):
            raise
        message = explain(error)
        at = fault_line(error, message, config())
        sys.exit(
            f'Error: {f"{at}: " if at else ""}{message}'
            f'{f" (the traceback is in {saved})" if saved else ""}'
        )


def import_task(scope: str) -> None:
    """Import the models of mmpretrain, mmdet or mmseg.

    mmengine imports them by itself, but passes over an ImportError, and then no detector is known.

    Args:
        scope (str): A config's ``default_scope``; another one is left to mmengine.

    Raises:
        UserError: The import fails; with what fixes it.
    """
    if scope not in ('mmpretrain', 'mmdet', 'mmseg'):
        return
    try:
        import_module(f'{scope}.models')
    except Exception as error:  # a package that does not fit may raise anything
        failure = {f'{scope}.models': f'{type(error).__name__}: {error}'}
        found = [
            finding for check in CHECKS for finding in check(Facts(installed_versions(), failure))
        ]
        cure = f'{found[0].problem}: {found[0].cure}. ' if found else ''
        raise UserError(f'import {scope}.models fails: {explain(error)}. {cure}{ADVICE}') from error
