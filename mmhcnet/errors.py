"""Errors that only the user can fix, and the parts of their messages."""

import difflib
import importlib.util
from typing import Any

# EX_TEMPFAIL of sysexits.h, try again later: a signal has ended the run.
EXIT_PREEMPTED = 75


class UserError(ValueError):
    """What only the user can fix; the message is one sentence that says how."""


def nearest(name: str, known: Any) -> str:
    """``; did you mean '...'?`` where one of the known names is near, else ``.``"""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean '{near[0]}'?" if near else '.'


def require_packages(*names: str) -> None:
    """Make sure that packages which an option needs, and nothing else does, are installed.

    Raises:
        ModuleNotFoundError: One is missing; the message has the command that installs it.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(
            f'this needs {" and ".join(missing)}: pip install {" ".join(missing)}'
        )
