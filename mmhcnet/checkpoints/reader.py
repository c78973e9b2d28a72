"""Reading checkpoints without running what is in them, from wherever mmengine reads them.

A checkpoint is a pickle, and a pickle may call any function; here :mod:`.formats` reads it, which
makes plain data and tensors only. A config is a program too, and mmengine runs the text of one that
it finds in a checkpoint: that text is left out.
"""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import (
    _get_mmengine_home,
    get_deprecated_model_names,
    get_external_models,
    get_mmcls_models,
    get_torchvision_models,
)
from torch import Tensor

from mmhcnet.errors import UserError, nearest

from .download import download
from .formats import Refused, open_regular, read_plain

_CONVERT = (
    'where it may run anything, as in a container: python -c "import torch; torch.save({}, '
    "'weights.pth')\""
)
_PROGRAMS = {
    'a TorchScript program': _CONVERT.format("torch.jit.load('{0}', 'cpu').state_dict()"),
    'a tar archive': _CONVERT.format("torch.load('{0}', 'cpu', weights_only=False)"),
}


def read_file(path: str, map_location: Any = None, lenient: bool = False) -> Any:
    """The contents of a checkpoint file; nothing in it is run.

    Args:
        path (str): A file that ``torch.save`` wrote, or a safetensors file.
        map_location: As for :func:`torch.load`; ``None`` stands for the CPU.
        lenient (bool): Objects that are not plain data come out as empty dicts.

    Returns:
        Plain data: numbers, strings, containers, tensors, numpy arrays and mmengine's logs.

    Raises:
        UserError: There is no such file, it holds something else, or it is damaged.
    """
    with open_regular(path) as file:
        try:
            return read_plain(file, map_location, lenient)
        except UserError:
            raise
        except Refused as error:
            what = str(error)
            if what in _PROGRAMS:
                raise UserError(
                    f"'{path}' is {what} and not weights: convert it {_PROGRAMS[what].format(path)}"
                ) from None
            raise UserError(
                f"'{path}' is refused: besides weights it holds '{what}', and loading that could "
                'run any program. If you trust where the file is from, add --trust-checkpoint'
            ) from None
        except Exception as error:
            # A damaged file can fail in any way.
            reason = (str(error).strip() or repr(error)).splitlines()[0]
            raise UserError(
                f"'{path}' is not a checkpoint that torch can read ({reason}): copy or "
                'download it again'
            ) from error


def load_local(path: str, map_location: Any = None, trust: bool = False) -> dict:
    """A checkpoint file.

    Args:
        path (str): The file.
        map_location: As for :func:`torch.load`; ``None`` stands for the CPU.
        trust (bool): Let the file run what it wants to.

    Returns:
        dict: The checkpoint: a dict of tensors, or one that has such a dict as ``state_dict``.

    Raises:
        UserError: The file holds more than weights and what mmengine keeps with them, no weights,
            or it cannot be read.
    """
    path = os.path.expanduser(path)
    if trust:
        with open_regular(path) as file:
            checkpoint = torch.load(file, map_location=map_location, weights_only=False)
    else:
        checkpoint = read_file(path, map_location)
    fault = _fault_of_weights(checkpoint)
    if fault:
        raise UserError(
            f"'{path}' {fault}: give a checkpoint, or what "
            'torch.save(model.state_dict(), ...) writes'
        )
    return checkpoint if trust else _without_programs(checkpoint)


def _fault_of_weights(checkpoint: Any) -> str | None:
    weights = (
        checkpoint.get('state_dict', checkpoint) if isinstance(checkpoint, dict) else checkpoint
    )
    if not isinstance(weights, dict):
        return f'holds no weights, but a {type(weights).__name__} where a dict of them should be'
    for key, value in weights.items():
        if type(key) is not str:
            return f'holds no weights, but a dict with a key of type {type(key).__name__}'
        # A bare dict may be a checkpoint in the form of other projects.
        if (
            weights is not checkpoint
            and not isinstance(value, Tensor)
            and not (key.endswith('_extra_state'))
        ):
            return f"holds a {type(value).__name__} as the weight '{key}'"
    return None


def _without_programs(checkpoint: dict) -> dict:
    """Without the text of a config, where mmengine looks for one to run."""
    hub = checkpoint.get('message_hub')
    info = hub.get('runtime_info') if isinstance(hub, dict) else None
    for holder in (checkpoint.get('meta'), info):
        for key in ('cfg', 'config'):
            if isinstance(holder, dict) and isinstance(holder.get(key), str):
                del holder[key]
    return checkpoint


def load_url(url: str, map_location: Any = None, trust: bool = False) -> dict:
    """A checkpoint from the web, kept in torch's cache folder."""
    return load_local(download(url), map_location, trust)


def _load_named(
    name: str,
    map_location: Any = None,
    trust: bool = False,
    *,
    models: Callable[[], dict[str, str]],
    owner: str,
) -> dict:
    name = name.split('://', 1)[1]
    known = models()
    if name not in known:
        raise UserError(f"{owner} has no weights '{name}'{nearest(name, known)}")
    if '://' in known[name]:
        return load_url(known[name], map_location, trust)
    # Of a user's own list of OpenMMLab's models.
    return load_local(os.path.join(_get_mmengine_home(), known[name]), map_location, trust)


def _openmmlab_models() -> dict[str, str]:
    known = get_external_models()
    return {
        **known,
        **{old: known[new] for old, new in get_deprecated_model_names().items() if new in known},
    }


def _load_mmcls(name: str, map_location: Any = None, trust: bool = False) -> dict:
    """The backbone of a classifier, as mmengine takes it from there."""
    checkpoint = _load_named(name, map_location, trust, models=get_mmcls_models, owner='mmcls')
    weights = checkpoint.get('state_dict', checkpoint)
    return dict(
        state_dict={
            key.removeprefix('backbone.'): value
            for key, value in weights.items()
            if key.startswith('backbone.')
        }
    )


def _refuse(path: str, map_location: Any = None) -> dict:
    raise UserError(
        f"'{path}' is not read from there: download the file and give its path, or "
        'add --trust-checkpoint'
    )


def load_safely(trust: bool = False) -> None:
    """Let every checkpoint that mmengine loads in this process be read by this module.

    That covers resuming, ``load_from``, every ``init_cfg``, and the inferencers of mmpretrain,
    mmdet and mmseg.

    Args:
        trust (bool): Files may hold anything, and remote storages are read as mmengine does.
    """
    for prefixes, loader, name in (
        ('', load_local, 'local'),
        (('http://', 'https://'), load_url, 'http'),
        (
            ('modelzoo://', 'torchvision://'),
            partial(_load_named, models=get_torchvision_models, owner='torchvision'),
            'torchvision',
        ),
        (
            ('open-mmlab://', 'openmmlab://'),
            partial(_load_named, models=_openmmlab_models, owner='OpenMMLab'),
            'openmmlab',
        ),
        ('mmcls://', _load_mmcls, 'mmcls'),
    ):
        function = partial(loader, trust=trust)
        # mmengine logs it.
        function.__name__ = f'load_from_{name}'
        CheckpointLoader.register_scheme(prefixes, function, force=True)
    if not trust:
        CheckpointLoader.register_scheme(
            ('pavi://', r'(\S+\:)?s3://', r'(\S+\:)?petrel://'), _refuse, force=True
        )
