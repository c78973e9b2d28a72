"""Where the checkpoints of a run are, and which of them it resumes from."""
import os
import re
from pathlib import Path
from typing import List, Optional, Tuple

from mmhcnet.errors import UserError

from .files import fault_of

NAMES = ('epoch_{}.pth', 'iter_{}.pth')


def numbered(folder: str, names: Tuple[str, ...]) -> List[Path]:
    """Checkpoints in a folder, newest first.

    Args:
        folder (str): Where they lie; may be missing.
        names (tuple[str]): File names with ``{}`` for the number; other files are not looked at.
    """
    patterns = [re.compile(r'(\d+)'.join(map(re.escape, name.split('{}')))) for name in names]
    found = []
    for name in os.listdir(folder) if os.path.isdir(folder) else ():
        match = next(filter(None, (pattern.fullmatch(name) for pattern in patterns)), None)
        if match:
            path = Path(folder, name)
            # A clock may be too coarse to tell two of them apart.
            found.append((path.lstat().st_mtime_ns, int(match[1]), path))
    return [path for _, _, path in sorted(found, reverse=True)]


def newest_whole(folder: str, names: Tuple[str, ...]) -> Tuple[Optional[Path], List[str]]:
    """The newest checkpoint in a folder that is whole, and what was passed over.

    Returns:
        tuple: The path, or None; and for each newer one that is damaged a line with the reason.
    """
    skipped = []
    for path in numbered(folder, names):
        fault = fault_of(path)
        if fault is None:
            return path, skipped
        skipped.append(f'{path}: {fault}')
    return None, skipped


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
