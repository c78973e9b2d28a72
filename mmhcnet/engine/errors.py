import difflib
import importlib.util
import inspect
import re
import sys
from contextlib import contextmanager
from importlib import import_module
from typing import Iterator, Type

from mmhcnet.registry import MODELS

DOCTOR = ('"python -m mmhcnet.doctor" names what is wrong in this environment and the command that '
          'mends it.')


class UserError(ValueError):
    """What only the user can put right; the message is one sentence that says how."""


def explain(error: Exception) -> str:
    """The message of an error, with the accepted names where a config has an unknown argument."""
    # str() of a KeyError is the quoted repr of its message.
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error).strip()
    text = text or type(error).__name__
    match = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", text)
    cls = MODELS.module_dict.get(match[1]) if match else None
    if cls is None:
        return text
    known = list(inspect.signature(cls).parameters)
    near = difflib.get_close_matches(match[2], known, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else '.'
    return f"{match[1]} has no argument '{match[2]}'{hint} It takes: {', '.join(known)}"


def require_packages(*names: str) -> None:
    """Make sure that packages which an option needs, and nothing else does, are installed.

    Raises:
        ModuleNotFoundError: One is missing; the message has the command that installs it.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(f'this needs {" and ".join(missing)}: '
                                  f'pip install {" ".join(missing)}')


# What comes from a mistake in a config or command while they are read and built from.
MISTAKES = (FileExistsError, FileNotFoundError, KeyError, ModuleNotFoundError, TypeError, ValueError)


@contextmanager
def one_line_errors(*kinds: Type[Exception]) -> Iterator[None]:
    """End the program with one line instead of a traceback.

    Args:
        kinds (type): Exceptions that are the user's to put right; by default those that a mistake
            in config or command raises, which fits loading a config and building from it.
    """
    try:
        yield
    except kinds or MISTAKES as error:
        sys.exit(f'Error: {explain(error)}')


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
        sys.exit(f'Error: import {scope}.models fails: {" ".join(explain(error).split())}. {DOCTOR}')
