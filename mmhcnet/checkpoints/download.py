"""Checkpoints from the web, kept in torch's cache folder: complete, and of the right address."""

import hashlib
import os
import re

import torch
from mmengine.dist import barrier, get_rank

from mmhcnet.errors import UserError

from .files import sha256_of
from .formats import Refused, open_regular, read_plain

# torch's convention: NAME-<first digits of the sha256>.pth. Eight digits may be a date, too.
_DIGEST = re.compile(r'-(?!20\d{6}\.)([0-9a-f]{8,64})\.\w+$')


def digest_in(name: str) -> str | None:
    """The first digits of the sha256 that a file name states, or None."""
    match = _DIGEST.search(name)
    return match and match[1]


def cached_path(url: str) -> str:
    """Where the file of an address is kept.

    That is where torch keeps it if its name states a digest; else the name begins with a digest of
    the address, because other addresses end in the same name.
    """
    name = os.path.basename(url.split('?')[0])
    if not digest_in(name):
        name = f'{hashlib.sha256(url.encode()).hexdigest()[:16]}-{name}'
    return os.path.join(torch.hub.get_dir(), 'checkpoints', name)


def download(url: str) -> str:
    """The path of the file of an address, which is downloaded if it is not there yet.

    Raises:
        UserError: It cannot be downloaded, is not an intact checkpoint, or has another sha256 than
            its name states. Nothing is kept then.
    """
    path = cached_path(url)
    if int(os.environ.get('LOCAL_RANK', 0)) == 0 and not (
        os.path.isfile(path) and _has_stated_digest(path, path)
    ):
        _fetch(url, path)
    barrier()
    return path


def _has_stated_digest(path: str, name: str) -> bool:
    return sha256_of(path).startswith(digest_in(os.path.basename(name)) or '')


def _fetch(url: str, path: str) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    new = f'{path}.{os.getpid()}.new'
    try:
        try:
            torch.hub.download_url_to_file(url, new, progress=get_rank() == 0)
        except OSError as error:
            raise UserError(
                f"cannot download '{url}' ({error}): download it elsewhere and give its path"
            ) from error
        if not _has_stated_digest(new, path):
            raise UserError(
                f"what came from '{url}' has another sha256 than its name states: it "
                'was cut, or is another file. Try again, or download it elsewhere'
            )
        try:
            # A download that was cut is found by reading it.
            with open_regular(new) as file:
                read_plain(file, lenient=True)
        except Refused:
            pass
        except Exception as error:
            raise UserError(
                f"what came from '{url}' is not an intact checkpoint ({error}): try again"
            ) from error
        os.replace(new, path)
    finally:
        if os.path.exists(new):
            os.remove(new)
