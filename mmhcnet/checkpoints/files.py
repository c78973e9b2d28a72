"""Checkpoint files that are complete or absent, whatever happens while they are written.

Beside each lies a record, ``<checkpoint>.json``, of its size and sha256.
"""
import hashlib
import json
import os
import zipfile
from pathlib import Path
from typing import List, Optional, Union

from mmengine.fileio import LocalBackend, register_backend

_CHUNK = 1 << 20


def write_file(path: Union[str, Path], content: bytes) -> None:
    """Replace a file at one instant: before it is the old one, after it the whole new one.

    Raises:
        OSError: The disk is full, the folder is not writable, or what was written reads back
            differently. The old file is as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # One name per file, so that a killed writer leaves at most one behind.
    temporary = path.with_name(f'.{path.name}.tmp')
    try:
        with open(temporary, 'wb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if sha256_of(temporary) != hashlib.sha256(content).hexdigest():
            raise OSError(f"'{path}' reads back differently from what was written")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    # The new name is on the disk once the folder is.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def record_of(path: Union[str, Path]) -> Path:
    """The file with a checkpoint's size and digest."""
    return Path(f'{path}.json')


@register_backend('mmhcnet.checkpoint')
class CheckpointBackend(LocalBackend):
    """mmengine's file backend for checkpoints on a local disk: atomic, with a record beside."""

    def put(self, obj: bytes, filepath: Union[str, Path]) -> None:
        obj = bytes(obj)
        # Without a record a checkpoint is checked by its own checksums: so at no instant does a
        # record of other contents stand beside it.
        record_of(filepath).unlink(missing_ok=True)
        write_file(filepath, obj)
        record = dict(size=len(obj), sha256=hashlib.sha256(obj).hexdigest())
        write_file(record_of(filepath), json.dumps(record).encode())

    def remove(self, filepath: Union[str, Path]) -> None:
        super().remove(filepath)
        record_of(filepath).unlink(missing_ok=True)


def fault_of(path: Union[str, Path]) -> Optional[str]:
    """Why a checkpoint cannot be whole, or None.

    With a record, size and sha256 must agree with it. Without one, every checksum in the file
    must.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if not path.is_file():
            return 'it is not a file'
        try:
            record = json.loads(record_of(path).read_text())
            expected = record['size'], record['sha256']
        except (OSError, ValueError, KeyError, TypeError):
            expected = None
        if expected:
            if size != expected[0]:
                return f'it has {size} bytes, recorded are {expected[0]}'
            return None if sha256_of(path) == expected[1] else 'its sha256 is not the recorded one'
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        return f"its part '{damaged}' is damaged" if damaged else None
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        return f'it has no record and is not a whole checkpoint ({error})'
    except OSError as error:
        return f'it cannot be read ({error.strerror or error})'


def remove_leftovers(folder: Union[str, Path]) -> List[str]:
    """Remove the temporary files of killed writers; returns their names."""
    found = [*Path(folder).glob('.*.pth.tmp'), *Path(folder).glob('.*.pth.json.tmp')]
    for path in found:
        path.unlink(missing_ok=True)
    return [path.name for path in found]
