"""Reading checkpoints as the papers' authors publish them."""

from mmhcnet.errors import UserError

from .reader import read_file


def read_official(path: str) -> dict:
    """A checkpoint's dict; objects of the training code in it, as settings, come out empty.

    Nothing that the file names is imported or run, so neither the authors' code is needed nor is a
    file trusted.

    Args:
        path (str): A file that ``torch.save`` wrote, or a safetensors file.

    Returns:
        dict: With the tensors on the CPU.

    Raises:
        UserError: Not such a file, or something else than a dict in it.
    """
    checkpoint = read_file(path, lenient=True)
    if not isinstance(checkpoint, dict):
        raise UserError(f"'{path}' holds a {type(checkpoint).__name__}, not a dict of weights")
    return checkpoint
