"""Reading checkpoints without running what is in them.

A checkpoint is a pickle, and a pickle may call any function. Here only a list of names is known to
the reader: tensors, numbers, containers and what mmengine keeps in its checkpoints. torch's own
``weights_only`` takes no such list before torch 2.5, and needs ``getattr`` on it for mmengine's
logs, through which a file could reach everything else.
"""
import collections
import os
import pickle
import types
from functools import partial
from typing import Any, Type

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.dist import barrier, get_rank
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import get_torchvision_models

from mmhcnet.errors import UserError


class _Refused(Exception):
    """Names what is not on the list."""


def _history_method(cls: type, name: str) -> Any:
    """Stands for getattr, by which mmengine's logs name their own statistics."""
    if cls is not HistoryBuffer or name.startswith('_'):
        raise _Refused('builtins.getattr')
    return getattr(cls, name)


def _latin1(text: str, encoding: str) -> bytes:
    """Stands for codecs.encode, by which old pickles write bytes."""
    if encoding != 'latin1':
        raise _Refused('_codecs.encode')
    return text.encode(encoding)


_NUMPY = {'ndarray': np.ndarray, 'dtype': np.dtype,
          # Their modules have other names in numpy 2.
          '_reconstruct': np.zeros(0).__reduce__()[0], 'scalar': np.float64(0).__reduce__()[0]}
_TENSORS = {
    ('torch', 'Size'): torch.Size,
    ('torch', 'device'): torch.device,
    **{('torch', str(value).split('.')[1]): value for value in vars(torch).values()
       if isinstance(value, torch.dtype)},
    **{('torch', name): getattr(torch, name) for name in dir(torch) if name.endswith('Storage')},
    **{('torch.storage', name): getattr(torch.storage, name)
       for name in ('UntypedStorage', 'TypedStorage')},
    **{('torch._utils', name): getattr(torch._utils, name)
       for name in ('_rebuild_tensor', '_rebuild_tensor_v2', '_rebuild_parameter')},
    ('collections', 'OrderedDict'): collections.OrderedDict,
}
_OTHERS = {
    ('collections', 'Counter'): collections.Counter,
    ('collections', 'defaultdict'): collections.defaultdict,
    **{('builtins', t.__name__): t
       for t in (set, frozenset, slice, complex, bytearray, dict, list)},
    ('builtins', 'getattr'): _history_method,
    ('_codecs', 'encode'): _latin1,
    **{(module, name): value for name, value in _NUMPY.items()
       for module in ('numpy', 'numpy.core.multiarray', 'numpy._core.multiarray')},
    (HistoryBuffer.__module__, 'HistoryBuffer'): HistoryBuffer,
    (ConfigDict.__module__, 'ConfigDict'): ConfigDict,
}


class TensorUnpickler(pickle.Unpickler):
    """Knows tensors; :meth:`unknown` decides on all other names."""

    def find_class(self, module: str, name: str) -> Any:
        module = {'__builtin__': 'builtins'}.get(module, module)
        if (module, name) in _TENSORS:
            return _TENSORS[module, name]
        return self.unknown(module, name)

    def unknown(self, module: str, name: str) -> Any:
        raise NotImplementedError


class _CheckpointUnpickler(TensorUnpickler):

    def unknown(self, module, name):
        if (module, name) in _OTHERS:
            return _OTHERS[module, name]
        raise _Refused(f'{module}.{name}')


def read_pickle(path: str, unpickler: Type[TensorUnpickler], map_location: Any = 'cpu') -> Any:
    """What ``torch.save`` wrote, with names resolved by ``unpickler`` alone.

    Raises:
        UserError: Not such a file.
    """
    # The part of the pickle module that torch.load uses.
    module = types.SimpleNamespace(
        __name__='pickle', Unpickler=unpickler, UnpicklingError=pickle.UnpicklingError,
        load=lambda file, **kwargs: unpickler(file, **kwargs).load())
    try:
        with open(path, 'rb') as file:
            zipped = file.read(4) == b'PK\x03\x04'
        # torch.load would hand a TorchScript archive, which is a program, to torch.jit. Its own
        # reader decides, because another one may see other contents in a forged archive.
        if zipped and 'constants.pkl' in torch._C.PyTorchFileReader(str(path)).get_all_records():
            raise UserError(f"'{path}' is a TorchScript program: give a file with weights, as "
                            'torch.save(model.state_dict(), ...) writes it')
        return torch.load(path, map_location=map_location, pickle_module=module,
                          weights_only=False)
    except (UserError, _Refused):
        raise
    except FileNotFoundError:
        raise UserError(f"no checkpoint file '{path}'") from None
    except OSError as error:
        raise UserError(f"cannot read '{path}': {error.strerror or error}") from error
    except Exception as error:
        # A damaged pickle can fail in any way.
        raise UserError(
            f"'{path}' is not a checkpoint that torch can read "
            f'({(str(error) or repr(error)).splitlines()[0]}): copy or download it again'
        ) from error


def load_local(path: str, map_location: Any = None, trust: bool = False) -> dict:
    """A checkpoint file, ``.safetensors`` included.

    Args:
        path (str): The file.
        map_location: As for :func:`torch.load`.
        trust (bool): Let the file run what it wants to.

    Returns:
        dict: The checkpoint.

    Raises:
        UserError: The file holds more than weights and what mmengine keeps beside them, or it
            cannot be read.
    """
    path = os.path.expanduser(path)
    if path.endswith('.safetensors'):
        return _load_safetensors(path)
    if trust and os.path.isfile(path):
        return torch.load(path, map_location=map_location, weights_only=False)
    try:
        checkpoint = read_pickle(path, _CheckpointUnpickler, map_location)
    except _Refused as error:
        raise UserError(
            f"'{path}' is refused: beside weights it holds '{error}', and loading that could run "
            'any program. If you trust where the file is from, add --trust-checkpoint') from None
    if not isinstance(checkpoint, dict):
        raise UserError(f"'{path}' holds a {type(checkpoint).__name__}, not a dict of weights")
    return checkpoint


def _load_safetensors(path: str) -> dict:
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise UserError(f"'{path}' needs the package safetensors: pip install safetensors"
                        ) from None
    if not os.path.isfile(path):
        raise UserError(f"no checkpoint file '{path}'")
    try:
        return dict(state_dict=load_file(path))
    except Exception as error:
        raise UserError(f"'{path}' is not a safetensors file ({error}): copy or download it again"
                        ) from error


def load_url(url: str, map_location: Any = None, trust: bool = False) -> dict:
    """A checkpoint from the web, kept in torch's cache folder."""
    folder = os.path.join(torch.hub.get_dir(), 'checkpoints')
    path = os.path.join(folder, os.path.basename(url.split('?')[0]))
    if not os.path.isfile(path) and int(os.environ.get('LOCAL_RANK', 0)) == 0:
        os.makedirs(folder, exist_ok=True)
        # Downloads beside its place and renames.
        torch.hub.download_url_to_file(url, path, progress=get_rank() == 0)
    barrier()
    return load_local(path, map_location, trust)


def load_torchvision(name: str, map_location: Any = None, trust: bool = False) -> dict:
    """A checkpoint of torchvision, ``torchvision://resnet50``."""
    name = name.split('://')[1]
    urls = get_torchvision_models()
    if name not in urls:
        raise UserError(f"torchvision has no weights '{name}'")
    return load_url(urls[name], map_location, trust)


def _refuse(path: str, map_location: Any = None) -> dict:
    raise UserError(f"'{path}' is not read from there: download the file and give its path, or "
                    'add --trust-checkpoint')


def load_safely(trust: bool = False) -> None:
    """Let every checkpoint that mmengine loads in this process be read by this module.

    Args:
        trust (bool): Files may hold anything, and remote storages are read as mmengine does.
    """
    for prefixes, loader in (('', load_local), (('http://', 'https://'), load_url),
                             (('modelzoo://', 'torchvision://'), load_torchvision)):
        function = partial(loader, trust=trust)
        function.__name__ = loader.__name__.replace('load', 'load_from')
        CheckpointLoader.register_scheme(prefixes, function, force=True)
    if not trust:
        CheckpointLoader.register_scheme(
            ('pavi://', r'(\S+\:)?s3://', r'(\S+\:)?petrel://', 'open-mmlab://', 'openmmlab://',
             'mmcls://'), _refuse, force=True)
