from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def _config_root() -> Path:
    # A wheel carries the configs inside the package; a checkout has them beside it.
    installed = _PACKAGE / '.mim' / 'configs'
    return installed if installed.is_dir() else _PACKAGE.parent / 'configs'


def config(name: str) -> str:
    """Path of a config that comes with mmhcnet.

    Args:
        name (str): Path below ``configs/``, e.g. ``'detection/mask_rcnn_hcnet_t_1x.py'``.

    Returns:
        str: The absolute path; usable as ``_base_`` and in ``Config.fromfile``.

    Raises:
        FileNotFoundError: No such config; the message lists those in the same folder.
    """
    root = _config_root()
    path = root / name
    if path.is_file():
        return str(path)
    folder = path.parent if path.parent.is_dir() else root
    known = sorted(p.relative_to(root).as_posix() for p in folder.rglob('*.py')
                   if '_base_' not in p.parts)
    raise FileNotFoundError(f"mmhcnet has no config '{name}'; choose one of: {', '.join(known)}")
