"""How the tools end on an error: one line that says how to fix it."""
import inspect
import json
import os
import re
import sys
import traceback
from contextlib import contextmanager
from importlib import import_module
from typing import Callable, Dict, Iterator, Optional

import mmengine.registry
from mmengine.hooks import Hook
from mmengine.registry import Registry
from torch.utils.data import DataLoader

from mmhcnet.doctor import ADVICE, CHECKS, Facts, installed_versions
from mmhcnet.errors import UserError, nearest


def _registered(kind: Optional[str] = None) -> Dict[str, type]:
    """What mmengine's registries and their children know by now, of one kind or all."""
    roots = [value for value in vars(mmengine.registry).values() if isinstance(value, Registry)]
    found = {}
    for root in roots:
        if kind in (None, root.name):
            for registry in [root, *root.children.values()]:
                found.update(registry.module_dict)
    return found


def explain(error: BaseException) -> str:
    """The message of an error in one line, with the nearest of the accepted names."""
    # str() of a KeyError is the quoted repr of its message.
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    if 'in DataLoader worker process' in text:
        # The last line of the traceback from there.
        text = text.strip().splitlines()[-1].split(': ', 1)[-1]
    text = ' '.join(text.split()) or type(error).__name__
    match = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", text)
    cls = {'DataLoader': DataLoader, **_registered()}.get(match[1]) if match else None
    if cls is not None:
        known = list(inspect.signature(cls).parameters)
        return (f"{match[1]} has no argument '{match[2]}'{nearest(match[2], known)} It takes: "
                f'{", ".join(known)}')
    match = re.match(r"'?([\w.]+) is not in the (\S+)::([\w ]+) registry", text)
    if match:
        return (f"there is no {match[3]} of type '{match[1]}' in {match[2]}"
                f'{nearest(match[1], _registered(match[3]))} For one of your own add its module to '
                'custom_imports in the config')
    if isinstance(error, json.JSONDecodeError):
        return f'an annotation file is not whole JSON: {text}'
    # A mere key says nothing.
    if isinstance(error, KeyError) and error.args and ' ' not in text:
        return f"key '{text}' is missing"
    return text


class FirstStep(Hook):
    """Knows whether a first iteration has come to its end."""

    def __init__(self):
        self.done = False

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.done = True

    after_val_iter = after_test_iter = after_train_iter


@contextmanager
def one_line_errors(log_dir: Callable[[], Optional[str]] = lambda: None,
                    begun: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """End the program with one line instead of a traceback on a mistake in config or command.

    Until the first iteration is done, whatever fails comes from what the user wrote: config,
    command, data, checkpoint. The traceback is kept in ``error.log``, for a case where it does not.

    Args:
        log_dir (Callable): Folder for ``error.log``, or None if there is none yet.
        begun (Callable): Whether the first iteration is done; from then on only a
            :class:`UserError` is shortened.
    """
    try:
        yield
    except Exception as error:
        if begun() and not isinstance(error, UserError):
            raise
        folder, where = log_dir(), ''
        if folder and os.path.isdir(folder) and not isinstance(error, UserError):
            path = os.path.join(folder, 'error.log')
            with open(path, 'w') as file:
                traceback.print_exc(file=file)
            where = f' (the traceback is in {path})'
        sys.exit(f'Error: {explain(error)}{where}')


def import_task(scope: str) -> None:
    """Import the models of mmpretrain, mmdet or mmseg, or end the program with one line.

    mmengine imports them by itself, but passes over an ImportError, and then no detector is known.

    Args:
        scope (str): A config's ``default_scope``; another one is left to mmengine.
    """
    if scope not in ('mmpretrain', 'mmdet', 'mmseg'):
        return
    try:
        import_module(f'{scope}.models')
    except Exception as error:  # a package that does not fit raises whatever it likes
        failure = {f'{scope}.models': f'{type(error).__name__}: {error}'}
        found = [finding for check in CHECKS
                 for finding in check(Facts(installed_versions(), failure))]
        cure = f'{found[0].problem}: {found[0].cure}. ' if found else ''
        sys.exit(f'Error: import {scope}.models fails: {explain(error)}. {cure}{ADVICE}')
