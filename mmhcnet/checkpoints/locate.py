"""Where the checkpoints of a run are, and which of them it resumes from."""

import os
import re
from pathlib import Path

from mmengine.config import Config
from torch import Tensor

from mmhcnet.errors import UserError

from .files import fault_of, read_record
from .fitting import weights_of
from .reader import load_local

NAMES = ('epoch_{}.pth', 'iter_{}.pth')


def numbered(folder: str, names: tuple[str, ...]) -> list[Path]:
    """Checkpoints in a folder, newest first.

    Args:
        folder (str): Their folder; may be missing.
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


def _ruin_of(path: Path) -> str | None:
    """Which weight of an intact checkpoint is not finite, in a sentence, or None."""
    # What this package writes it has looked at.
    if 'run' in read_record(path):
        return None
    try:
        weights = weights_of(load_local(str(path)))
    except UserError:
        # Said when it is loaded.
        return None
    name = next(
        (
            key
            for key, value in weights.items()
            if isinstance(value, Tensor) and not value.isfinite().all()
        ),
        None,
    )
    return name and f"its weight '{name}' is not finite"


def newest_intact(folder: str, names: tuple[str, ...]) -> tuple[Path | None, list[str]]:
    """The newest checkpoint in a folder that is intact and of finite weights, and what was
    passed over.

    Returns:
        tuple: The path, or None; and for each newer one that is damaged a line with the reason.
    """
    skipped = []
    for path in numbered(folder, names):
        fault = fault_of(path) or _ruin_of(path)
        if fault is None:
            return path, skipped
        skipped.append(f'{path}: {fault}')
    return None, skipped


def place_of(
    work_dir: str, out_dir: str | None = None, filename_tmpl: str | None = None
) -> tuple[str, tuple[str, ...]]:
    """The folder of a run's checkpoints, and their names with ``{}`` for the number.

    Args:
        work_dir (str): Of the run.
        out_dir (str, optional): As given to the checkpoint hook, which adds the name of the work
            directory to it. By default the checkpoints are in the work directory.
        filename_tmpl (str, optional): As given to the checkpoint hook.
    """
    folder = os.path.join(out_dir, Path(work_dir).name) if out_dir else work_dir
    return folder, (filename_tmpl, *NAMES) if filename_tmpl else NAMES


def _checkpoint_hooks(cfg: Config) -> list[dict]:
    """Settings of the hooks that write checkpoints, the default one first."""
    default = cfg.get('default_hooks') or {}
    hooks = [default.get('checkpoint', {}), *(cfg.get('custom_hooks') or [])]
    found = [
        hook
        for i, hook in enumerate(hooks)
        if isinstance(hook, dict)
        and (not i or re.search(r"CheckpointHook\b", str(hook.get('type'))))
    ]
    # Without any, the work directory may hold those of an earlier command.
    return found or [{}]


def resume_of_attempt(cfg: Config, resume: str | None) -> str | None:
    """The value of ``--resume`` for this attempt of torchrun (``MAX_RESTARTS``).

    The first attempt does what the command says, a later one goes on from the newest checkpoint of
    the run, if there is one.

    Args:
        cfg (Config): Of the run; its work directory and checkpoint hook say where checkpoints are.
        resume (str, optional): The value on the command line: None, 'auto' or a path.

    Raises:
        UserError: A first attempt that may be restarted would start from scratch next to
            checkpoints of an earlier run, and a restart would take those for its own.
    """
    places = [
        place_of(cfg.work_dir, hook.get('out_dir'), hook.get('filename_tmpl'))
        for hook in _checkpoint_hooks(cfg)
    ]
    folder, found = next(
        ((folder, True) for folder, names in places if numbered(folder, names)), (None, False)
    )
    if int(os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)) > 0:
        return 'auto' if found else resume
    if int(os.environ.get('TORCHELASTIC_MAX_RESTARTS', 0)) > 0 and found and not resume:
        raise UserError(
            f"'{folder}' holds checkpoints of an earlier run: with MAX_RESTARTS add "
            '--resume to go on from them, or name another --work-dir'
        )
    return resume
