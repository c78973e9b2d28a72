"""Reading checkpoints as the papers' authors publish them."""
from .reader import TensorUnpickler, load_local, read_pickle


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


class _Unpickler(TensorUnpickler):

    def unknown(self, module, name):
        return _Inert


def read_official(path: str) -> dict:
    """A checkpoint's dict; objects of the training code in it, as settings, come out empty.

    Nothing that the file names is imported or run except the rebuilding of tensors, so neither
    the authors' code is needed nor is a file trusted.

    Args:
        path (str): A file that ``torch.save`` wrote, or a ``.safetensors`` file.

    Returns:
        dict: With the tensors on the CPU.

    Raises:
        UserError: Not such a file, or something else than a dict in it.
    """
    if path.endswith('.safetensors'):
        return load_local(path)['state_dict']
    checkpoint = read_pickle(path, _Unpickler)
    if not isinstance(checkpoint, dict):
        raise ValueError(f"'{path}' holds a {type(checkpoint).__name__}, not a dict of weights")
    return checkpoint
