"""The bytes of a checkpoint: a file that is opened once, its format, and a reader for each format.

None of the readers runs anything, imports anything or changes what was there before.
"""

import io
import os
import stat
import sys
import zipfile
from typing import Any, BinaryIO

import torch
from torch import Tensor

from mmhcnet.errors import UserError

from .inert_pickle import STAND_INS, Damaged, InertUnpickler, Refused, settled, width

# The number 0x1950a86a20f9469cfc6c as a pickle, which torch wrote first before version 1.6.
_BEFORE_ZIP = b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.'
_LONGEST_HEADER = 100_000_000


def open_regular(path: str) -> BinaryIO:
    """Open a file for reading, once: what is read is what was looked at.

    Raises:
        UserError: There is none, or it is a pipe or a device, which could be waited for forever.
    """
    try:
        # The look before it spares a device the opening; a pipe is opened without waiting for it.
        found = os.stat(path)
        if stat.S_ISREG(found.st_mode):
            file = open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), 'rb')
            found = os.fstat(file.fileno())
    except FileNotFoundError:
        raise UserError(f"no checkpoint file '{path}'") from None
    except OSError as error:
        raise UserError(f"cannot read '{path}': {error.strerror or error}") from error
    if not stat.S_ISREG(found.st_mode):
        kind = 'a folder' if stat.S_ISDIR(found.st_mode) else 'a pipe or a device'
        raise UserError(f"'{path}' is {kind}: give a checkpoint file")
    return file


def format_of(file: BinaryIO) -> str:
    """'zip', 'before zip', 'safetensors', 'tar' or '', by the contents and not by the name."""
    start = file.read(512)
    file.seek(0)
    if start.startswith(b'PK\x03\x04'):
        return 'zip'
    if start.startswith(_BEFORE_ZIP):
        return 'before zip'
    if start[257:262] == b'ustar':
        return 'tar'
    header = int.from_bytes(start[:8], 'little')
    if start[8:9] == b'{' and header <= min(_LONGEST_HEADER, _size(file) - 8):
        return 'safetensors'
    return ''


def _size(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


def read_safetensors(file: BinaryIO) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        UserError: The package safetensors is not installed.
        Exception: Whatever that package raises on a damaged file.
    """
    try:
        from safetensors.torch import load
    except ImportError:
        raise UserError(
            'a safetensors file needs the package safetensors: pip install safetensors'
        ) from None
    return load(file.read())


class Archive:
    """A zip file as ``torch.save`` writes it, and no other.

    Two readers of zip files could take different parts of a forged one for its contents; what torch
    does not write itself is therefore refused: compression, names that differ in case only or lie
    outside the one folder, parts that overlap or are larger than the file.

    Raises:
        Damaged: It is none.
        Refused: It is a TorchScript archive.
    """

    def __init__(self, file: BinaryIO):
        self.zip = zipfile.ZipFile(file)
        entries = self.zip.infolist()
        root = entries[0].filename.split('/')[0] + '/' if entries else ''
        self.entries = {entry.filename[len(root) :]: entry for entry in entries}
        if any(not entry.filename.startswith(root) for entry in entries):
            raise Damaged('it has more than one folder')
        if 'constants.pkl' in self.entries:
            raise Refused('a TorchScript program')
        # Without regard to case, as torch looks them up.
        if len({entry.filename.lower() for entry in entries}) < len(entries):
            raise Damaged('two of its parts have the same name')
        if any(
            entry.compress_type != zipfile.ZIP_STORED
            or entry.flag_bits & 1
            or entry.file_size != entry.compress_size
            for entry in entries
        ):
            raise Damaged('it is compressed or encrypted')
        if sum(entry.file_size for entry in entries) > _size(file):
            raise Damaged('its parts overlap')
        order = self.read('byteorder').decode() if 'byteorder' in self.entries else 'little'
        if order != sys.byteorder:
            raise Damaged(f'its numbers are {order}-endian')

    def read(self, name: str) -> bytes:
        if name not in self.entries:
            raise Damaged(f"its part '{name}' is missing")
        return self.zip.read(self.entries[name])

    def check(self, stated: dict[str, tuple[torch.dtype, int]]) -> None:
        """Make sure that the storages are there and of the sizes that the pickle states.

        Not every version of torch does, and some then read past the end.
        """
        for key, (dtype, count) in stated.items():
            entry = self.entries.get(f'data/{key}')
            if entry is None or entry.file_size != count * width(dtype):
                raise Damaged(f'the storage {key} is missing or not of the size that is stated')

    def storages(self, stated: dict[str, tuple[torch.dtype, int]]) -> dict[str, Tensor]:
        """The numbers."""
        found = {}
        for key, (dtype, count) in stated.items():
            with self.zip.open(self.entries[f'data/{key}']) as part:
                found[key] = _numbers(part, dtype, count)
        return found


def _numbers(file: BinaryIO, dtype: torch.dtype, count: int) -> Tensor:
    raw = torch.empty(count * width(dtype), dtype=torch.uint8)
    if file.readinto(raw.numpy()) != len(raw):
        raise Damaged('it ends early')
    # A byte that is neither 0 nor 1 is no truth value.
    return raw != 0 if dtype == torch.bool else raw.view(dtype)


def _stated(file: BinaryIO, lenient: bool) -> dict[str, tuple[torch.dtype, int]]:
    """Reads a pickle without any storage, and returns which ones it asks for."""
    stated: dict[str, tuple[torch.dtype, int]] = {}

    def storage_of(key: str, dtype: torch.dtype, count: int) -> Tensor:
        if stated.setdefault(key, (dtype, count)) != (dtype, count):
            raise Damaged(f'the storage {key} is stated twice and differently')
        return torch.empty(count, dtype=dtype, device='meta')

    settled(InertUnpickler(storage_of, lenient).load(file))
    return stated


def _made(file: BinaryIO, storages: dict[str, Tensor], device: Any, lenient: bool) -> Any:
    """The contents of a pickle."""
    placed = {key: storage.to(device) for key, storage in storages.items()}
    unpickler = InertUnpickler(lambda key, dtype, count: placed[key], lenient)
    return settled(unpickler.load(file))


def read_zip_inertly(file: BinaryIO, device: Any = 'cpu', lenient: bool = False) -> Any:
    """What ``torch.save`` wrote, by the reader of this package alone.

    Args:
        file (BinaryIO): The zip file.
        device: Where the tensors go.
        lenient (bool): Objects that are not plain data come out as empty dicts.

    Raises:
        Refused: It holds something else than plain data.
        Exception: It is damaged.
    """
    archive = Archive(file)
    content = archive.read('data.pkl')
    stated = _stated(io.BytesIO(content), lenient)
    archive.check(stated)
    return _made(io.BytesIO(content), archive.storages(stated), device, lenient)


def read_zip_with_torch(file: BinaryIO, map_location: Any = 'cpu') -> Any:
    """What ``torch.save`` wrote, by torch's reader of plain data, once ours has found only that.

    Raises:
        Refused: It holds something else than plain data.
        Exception: It is damaged.
    """
    archive = Archive(file)
    archive.check(_stated(io.BytesIO(archive.read('data.pkl')), lenient=False))
    file.seek(0)
    with torch.serialization.safe_globals([(made, name) for name, made in STAND_INS.items()]):
        return settled(torch.load(file, map_location=map_location, weights_only=True))


def read_before_zip(file: BinaryIO, device: Any = 'cpu', lenient: bool = False) -> Any:
    """What ``torch.save`` wrote before torch 1.6, and most published checkpoints of OpenMMLab are.

    Four pickles (a magic number, a version, sizes of C's types, the contents), a fifth with the
    keys of the storages, and these: the number of elements, 8 bytes, and the elements.

    Args:
        file (BinaryIO): The file.
        device: Where the tensors go.
        lenient (bool): Objects that are not plain data come out as empty dicts.

    Raises:
        Refused: It holds something else than plain data.
        Exception: It is damaged.
    """

    def no_storage(key: str, dtype: torch.dtype, count: int) -> Tensor:
        raise Damaged('there is a storage before the contents')

    plain = InertUnpickler(no_storage)
    plain.load(file)
    version, system = plain.load(file), plain.load(file)
    if version != 1001 or system['little_endian'] != (sys.byteorder == 'little'):
        raise Damaged('it is of another version or byte order')
    start = file.tell()
    stated = _stated(file, lenient)
    if sum(width(dtype) * count for dtype, count in stated.values()) > _size(file):
        raise Damaged('its storages are larger than the file')
    storages = {}
    for key in plain.load(file):
        dtype, count = stated[key]
        if int.from_bytes(file.read(8), 'little') != count:
            raise Damaged(f'the storage {key} is not of the size that is stated')
        storages[key] = _numbers(file, dtype, count)
    file.seek(start)
    return _made(file, storages, device, lenient)


def device_of(map_location: Any) -> Any:
    """Where ``map_location``, as for :func:`torch.load`, puts what lies on the CPU."""
    if callable(map_location):
        placed = map_location(torch.empty(0).untyped_storage(), 'cpu')
        return 'cpu' if placed is None else placed.device
    if isinstance(map_location, dict):
        return map_location.get('cpu', 'cpu')
    return map_location or 'cpu'


# The reader of plain data in torch has a known hole before version 2.6 (CVE-2025-32434).
TORCH_IS_SOUND = tuple(map(int, torch.__version__.split('.')[:2])) >= (2, 6)


def read_plain(file: BinaryIO, map_location: Any = 'cpu', lenient: bool = False) -> Any:
    """The contents of a checkpoint file; nothing in it is run.

    Args:
        file (BinaryIO): From :func:`open_regular`.
        map_location: As for :func:`torch.load`; ``None`` stands for the CPU.
        lenient (bool): Objects that are not plain data come out as empty dicts.

    Raises:
        Refused: It holds something else than plain data, or is in a format that does.
        Damaged: It is not a checkpoint.
        Exception: It is damaged in one of many ways.
    """
    kind = format_of(file)
    if kind == 'zip' and TORCH_IS_SOUND and not lenient:
        return read_zip_with_torch(file, map_location or 'cpu')
    if kind == 'zip':
        return read_zip_inertly(file, device_of(map_location), lenient)
    if kind == 'before zip':
        return read_before_zip(file, device_of(map_location), lenient)
    if kind == 'safetensors':
        device = device_of(map_location)
        return dict(
            state_dict={key: value.to(device) for key, value in read_safetensors(file).items()}
        )
    if kind == 'tar':
        raise Refused('a tar archive')
    raise Damaged('no format of checkpoints begins like it')
