"""What the command-line tools share: parser, config, schedule, errors, distributed runs, trial."""

from .config import check_data, load_config
from .errors import one_line_errors
from .main import run
from .parser import add_config, add_run, add_shape, make_parser

__all__ = [
    'add_config',
    'add_run',
    'add_shape',
    'check_data',
    'load_config',
    'make_parser',
    'one_line_errors',
    'run',
]
