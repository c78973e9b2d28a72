"""Where the configs that come with mmhcnet are."""

from pathlib import Path

from mmengine.config.utils import MODULE2PACKAGE

# mmengine reads '<name>::<config>' only for the names in this table, and has no call to add one. It
# looks for the distribution or module that a name stands for. The distribution of an editable
# install is elsewhere than its package, so this names a module: mmengine takes its folder.
MODULE2PACKAGE['mmhcnet'] = 'mmhcnet.version'

_PACKAGE = Path(__file__).resolve().parent


def _config_root() -> Path:
    # A wheel carries the configs inside the package, where an editable install has links to those
    # of the checkout; a checkout that is not installed has them next to it only.
    installed = _PACKAGE / '.mim' / 'configs'
    return installed.resolve() if installed.is_dir() else _PACKAGE.parent / 'configs'


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
    known = sorted(
        p.relative_to(root).as_posix() for p in folder.rglob('*.py') if '_base_' not in p.parts
    )
    raise FileNotFoundError(f"mmhcnet has no config '{name}'; choose one of: {', '.join(known)}")
