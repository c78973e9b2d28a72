"""Checkpoint files that are complete or absent, whatever happens while they are written.

Next to each is a record, ``<checkpoint>.json``, of its size and sha256.
"""

import fcntl
import hashlib
import json
import os
import re
import zipfile
from pathlib import Path
from typing import TextIO

from mmengine.fileio import LocalBackend, register_backend

_CHUNK = 1 << 20


def write_file(path: str | Path, content: bytes) -> None:
    """Replace a file at one instant: before it is the old one, after it the complete new one.

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


def record_of(path: str | Path) -> Path:
    """The file with a checkpoint's size, digest and run."""
    return Path(f'{path}.json')


def read_record(path: str | Path) -> dict:
    """What is recorded of a checkpoint; empty if there is no record."""
    try:
        # A pipe of that name would be waited for.
        record = json.loads(record_of(path).read_text()) if record_of(path).is_file() else {}
    except (OSError, ValueError):
        record = {}
    return record if isinstance(record, dict) else {}


def change_record(path: str | Path, **changes: str) -> None:
    """Write something more into the record of a checkpoint."""
    write_file(record_of(path), json.dumps({**read_record(path), **changes}).encode())


class FolderInUse(Exception):
    """Another process writes to the folder."""


def lock_folder(folder: str | Path) -> TextIO | None:
    """Take a folder for this process, until the returned file is closed or the process ends.

    Returns:
        TextIO: The locked file, or None on a storage that has no locks.

    Raises:
        FolderInUse: Another process has it; the message says which one.
    """
    path = Path(folder, '.lock')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, 'a+')
    except OSError:
        # Writing checkpoints there fails, too, and says so.
        return None
    try:
        # Of the process: workers that it forks do not hold it.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        raise FolderInUse(file.read().strip() or 'another process') from None
    except OSError:
        file.close()
        return None
    file.truncate(0)
    file.write(f'process {os.getpid()} on {os.uname().nodename}')
    file.flush()
    return file


class CheckpointBackend(LocalBackend):
    """mmengine's file backend for checkpoints on a local disk: atomic, with a record next to each.

    Args:
        run (str, optional): Names the run that writes, in the records.
    """

    def __init__(self, run: str | None = None):
        super().__init__()
        self.run = run

    def put(self, obj: bytes, filepath: str | Path) -> None:
        obj = bytes(obj)
        # Without a record a checkpoint is checked by its own checksums: so at no instant does a
        # record of other contents exist next to it.
        record_of(filepath).unlink(missing_ok=True)
        write_file(filepath, obj)
        record = dict(size=len(obj), sha256=hashlib.sha256(obj).hexdigest(), run=self.run)
        write_file(record_of(filepath), json.dumps(record).encode())

    def remove(self, filepath: str | Path) -> None:
        super().remove(filepath)
        record_of(filepath).unlink(missing_ok=True)


register_backend('mmhcnet.checkpoint', CheckpointBackend)


def fault_of(path: str | Path) -> str | None:
    """Why a checkpoint cannot be intact, or None.

    With a record, size and sha256 must agree with it. Without one, every checksum in the file
    must.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if not path.is_file():
            return 'it is not a file'
        record = read_record(path)
        if 'size' in record and 'sha256' in record:
            if size != record['size']:
                return f"it has {size} bytes, recorded are {record['size']}"
            if sha256_of(path) != record['sha256']:
                return 'its sha256 is not the recorded one'
            return record.get('doubt')
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        return f"its part '{damaged}' is damaged" if damaged else None
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        return f'it has no record and is not an intact checkpoint ({error})'
    except OSError as error:
        return f'it cannot be read ({error.strerror or error})'


def remove_leftovers(folder: str | Path, template: str) -> list[str]:
    """Remove the temporary files of killed writers of checkpoints; returns their names.

    Args:
        folder (str): Where the checkpoints lie.
        template (str): Their names, with ``{}`` for the number.
    """
    names = '|'.join(
        r'\d+'.join(map(re.escape, name.split('{}'))) for name in (template, 'iter_{}.pth')
    )
    pattern = re.compile(rf'\.(best_.+_)?({names})(\.json)?\.tmp')
    found = [path for path in Path(folder).glob('.*.tmp') if pattern.fullmatch(path.name)]
    for path in found:
        path.unlink(missing_ok=True)
    return [path.name for path in found]
