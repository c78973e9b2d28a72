"""What a run resumes from when its launcher starts it again."""
import os
from typing import Optional

from .checkpoint_hook import NAMES, numbered
from .errors import UserError


def resume_of_attempt(work_dir: str, resume: Optional[str]) -> Optional[str]:
    """The value of ``--resume`` for this attempt of torchrun (``MAX_RESTARTS``).

    The first attempt does what the command says, a later one goes on from the newest checkpoint of
    the work directory, if there is one.

    Args:
        work_dir (str): Of the run.
        resume (str, optional): The value on the command line: None, 'auto' or a path.

    Raises:
        UserError: A first attempt that may be restarted would start anew beside checkpoints of an
            earlier run, and a restart would take those for its own.
    """
    found = bool(numbered(work_dir, NAMES))
    if int(os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)) > 0:
        return 'auto' if found else resume
    if int(os.environ.get('TORCHELASTIC_MAX_RESTARTS', 0)) > 0 and found and not resume:
        raise UserError(f"'{work_dir}' holds checkpoints of an earlier run: with MAX_RESTARTS add "
                        '--resume to go on from them, or name another --work-dir')
    return resume
