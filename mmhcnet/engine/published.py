"""Reading checkpoints as the papers' authors publish them."""
import pickle
import types
import zipfile

import torch

# What a pickle of tensors names; anything else in it is data that weights do not need.
_TENSOR_GLOBALS = {
    'collections': {'OrderedDict'},
    'torch': {'Size', 'device', *(str(d).split('.')[1] for d in vars(torch).values()
                                  if isinstance(d, torch.dtype)),
              *(name for name in vars(torch) if name.endswith('Storage'))},
    'torch.storage': {'UntypedStorage', 'TypedStorage'},
    'torch._utils': {'_rebuild_tensor', '_rebuild_tensor_v2', '_rebuild_parameter'},
}


class _Inert(dict):
    """Stands for an object of the training code: takes whatever the file says, does nothing."""

    def __init__(self, *args, **kwargs):
        super().__init__()

    def __setstate__(self, state):
        pass

    def append(self, item):
        pass

    def extend(self, items):
        pass

    def __hash__(self):
        return id(self)


class _Unpickler(pickle.Unpickler):

    def find_class(self, module, name):
        if name in _TENSOR_GLOBALS.get(module, ()):
            return super().find_class(module, name)
        return _Inert


# The part of the pickle module that torch.load uses.
_PICKLE = types.SimpleNamespace(
    __name__='pickle', Unpickler=_Unpickler, UnpicklingError=pickle.UnpicklingError,
    load=lambda file, **kwargs: _Unpickler(file, **kwargs).load())


def read_published(path: str) -> dict:
    """A checkpoint's dict; objects of the training code in it, as settings, come out empty.

    Nothing that the file names is imported or run except the rebuilding of tensors, so neither
    the authors' code is needed nor is a file trusted.

    Args:
        path (str): A file that ``torch.save`` wrote.

    Returns:
        dict: With the tensors on the CPU.

    Raises:
        ValueError: Not such a file, or something else than a dict in it.
    """
    try:
        checkpoint = torch.load(
            path, map_location='cpu', pickle_module=_PICKLE, weights_only=False)
    except (pickle.UnpicklingError, zipfile.BadZipFile, EOFError, RuntimeError, AttributeError,
            TypeError, ValueError, KeyError, IndexError) as error:
        raise ValueError(f"'{path}' is not a checkpoint that torch can read: "
                         f'{str(error).splitlines()[0] if str(error) else error!r}') from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f"'{path}' holds a {type(checkpoint).__name__}, not a dict of weights")
    return checkpoint
