"""A reader of pickles that makes nothing but plain data and tensors.

Python's own unpickler calls what a file names and sets attributes on what comes back; this one
knows the instructions that ``torch.save`` writes, and to it a name is a string. :data:`MADE` says
what each known name stands for: functions of this package, which return new plain values.
"""

import collections
import pickletools
import re
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from torch import Tensor

# Where numpy 1 and numpy 2 keep what arrays are rebuilt with.
_NUMPY_CORES = ('numpy.core.multiarray', 'numpy._core.multiarray')
HISTORY = f'{HistoryBuffer.__module__}.HistoryBuffer'
_CONFIG_DICT = f'{ConfigDict.__module__}.ConfigDict'


class Refused(Exception):
    """Names what a file holds besides plain data."""


class Damaged(Exception):
    """What is wrong with a file that is damaged or forged."""


class StandIn:
    """In place of an object of another library: keeps the state that the file gives, until the
    whole file is read."""

    __slots__ = ('state',)

    def __init__(self, *args: Any):
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class Array(StandIn):
    """In place of a numpy array."""

    __slots__ = ()


class History(StandIn):
    """In place of mmengine's log of a scalar."""

    __slots__ = ()


class DType(StandIn):
    """In place of a numpy dtype of numbers."""

    __slots__ = ('code',)

    def __init__(self, code: str, *args: Any):
        super().__init__()
        self.code = code

    def numpy(self) -> np.dtype:
        order = self.state[1] if self.state else '|'
        if not re.fullmatch(r'[biufc]\d{1,2}', self.code) or order not in ('<', '>', '|'):
            raise Refused(f'numpy.dtype {self.code}')
        return np.dtype(order + self.code)


class Opaque:
    """In place of an object that the reader was told to leave empty."""

    __slots__ = ()


def _numbers(dtype: Any, raw: Any, count: int) -> np.ndarray:
    kind = dtype.numpy()
    if not isinstance(raw, bytes) or len(raw) != kind.itemsize * count:
        raise Damaged('an array is not of the size that it states')
    return np.frombuffer(raw, kind).copy()


def _scalar(dtype: DType, raw: bytes) -> Any:
    return _numbers(dtype, raw, 1)[0].item()


def _array(*args: Any) -> Array:
    return Array()


def _bytes(text: str, encoding: str) -> bytes:
    """How protocol 2 writes bytes."""
    if encoding != 'latin1':
        raise Refused('_codecs.encode')
    return text.encode('latin1')


def _statistic(owner: Any, name: str) -> None:
    """mmengine's logs name their own methods by getattr; they have them anyway."""
    if owner is not History:
        raise Refused('builtins.getattr')


_SCALARS = (str, bytes, int, float, complex, bool, type(None))


def _hashable(key: Any) -> Any:
    """A key whose hash costs no more than it is long, unlike that of tuples within tuples."""
    for part in key if type(key) is tuple else (key,):
        if type(part) not in _SCALARS:
            raise Refused(f'a key of type {type(part).__name__}')
    return key


def _dict(*args: Any) -> dict:
    """Of a dict, a ConfigDict, or a defaultdict, whose first argument is its factory."""
    return dict(args[-1]) if args and isinstance(args[-1], dict) else {}


# What torch's own reader has to be told. No entry is a function or class of another library, so
# that nothing which a file sets lasts.
STAND_INS: dict[str, Any] = {
    'builtins.getattr': _statistic,
    'builtins.dict': _dict,
    'builtins.list': lambda values=(): [*values] if isinstance(values, (list, tuple)) else [],
    'builtins.frozenset': lambda values=(): frozenset(map(_hashable, values)),
    'builtins.slice': lambda *ends: slice(*map(_hashable, ends)),
    'collections.defaultdict': _dict,
    'numpy.ndarray': Array,
    'numpy.dtype': DType,
    **{
        f'{core}.{name}': value
        for core in _NUMPY_CORES
        for name, value in (('_reconstruct', _array), ('scalar', _scalar))
    },
    HISTORY: History,
    _CONFIG_DICT: _dict,
}
_DTYPES = {
    f'torch.{str(value).split(".")[1]}': value
    for value in vars(torch).values()
    if isinstance(value, torch.dtype)
}
# Element types of the storages that name theirs.
_STORAGES = {
    f'torch.{name}Storage': dtype
    for name, dtype in dict(
        Double=torch.float64,
        Float=torch.float32,
        Half=torch.float16,
        BFloat16=torch.bfloat16,
        Long=torch.int64,
        Int=torch.int32,
        Short=torch.int16,
        Char=torch.int8,
        Byte=torch.uint8,
        Bool=torch.bool,
        ComplexDouble=torch.complex128,
        ComplexFloat=torch.complex64,
    ).items()
}
_STORAGES['torch.storage.UntypedStorage'] = torch.uint8
_TENSORS = (
    'torch._utils._rebuild_tensor',
    'torch._utils._rebuild_tensor_v2',
    'torch._utils._rebuild_tensor_v3',
    'torch._utils._rebuild_parameter',
)


def width(dtype: torch.dtype) -> int:
    """Bytes of an element."""
    return torch.empty(0, dtype=dtype).element_size()


def _tensor(storage: Tensor, offset: int, size: tuple, stride: tuple, *rest: Any) -> Tensor:
    """A view of a storage that lies inside it; ``rest`` is requires_grad, hooks, and a dtype."""
    dtype = rest[2] if len(rest) > 2 else storage.dtype
    if len(size) != len(stride) or any(
        type(n) is not int or n < 0 for n in (offset, *size, *stride)
    ):
        raise Damaged('a tensor has an impossible shape')
    reach = sum((n - 1) * step for n, step in zip(size, stride)) + 1 if all(size) else 0
    if (offset + reach) * width(dtype) > len(storage) * width(storage.dtype):
        raise Damaged('a tensor lies outside its storage')
    return torch.empty(0, dtype=dtype, device=storage.device).set_(
        storage.untyped_storage(), offset, size, stride
    )


def _parameter(data: Tensor, requires_grad: bool, *hooks: Any) -> torch.nn.Parameter:
    if not isinstance(data, Tensor):
        raise Damaged('a parameter is not a tensor')
    return torch.nn.Parameter(data, requires_grad=bool(requires_grad))


def _device(kind: str, index: int | None = None) -> torch.device:
    return torch.device(kind) if index is None else torch.device(kind, index)


# Name -> function of this package, of plain values, that returns a new one.
MADE: dict[str, Callable] = {
    **STAND_INS,
    **dict.fromkeys(_TENSORS[:3], _tensor),
    _TENSORS[3]: _parameter,
    '_codecs.encode': _bytes,
    'collections.OrderedDict': lambda *pairs: collections.OrderedDict(),
    'collections.Counter': lambda *counts: collections.Counter(_dict(*counts)),
    'builtins.set': lambda values=(): set(map(_hashable, values)),
    'builtins.complex': lambda real, imag: complex(float(real), float(imag)),
    'torch.Size': lambda sizes: torch.Size(map(int, sizes)),
    'torch.device': _device,
}
KNOWN = {*MADE, *_DTYPES, *_STORAGES}


class Name(str):
    """A known name; stays a string, whatever the file does with it."""

    __slots__ = ()


class Unknown(Name):
    """A name whose objects are left empty."""

    __slots__ = ()


def full_name(argument: str) -> str:
    """Module and name of a GLOBAL instruction, in Python 3's terms."""
    module, _, name = argument.partition(' ')
    return f"{ {'__builtin__': 'builtins', 'copy_reg': 'copyreg'}.get(module, module) }.{name}"


class InertUnpickler:
    """One pickle of ``torch.save``.

    Args:
        storage_of (Callable): (key, dtype, number of elements) -> one-dimensional tensor.
        lenient (bool): Objects of unknown names come out empty instead of being refused.
    """

    def __init__(
        self, storage_of: Callable[[str, torch.dtype, int], Tensor], lenient: bool = False
    ):
        self.storage_of = storage_of
        self.lenient = lenient

    def load(self, file: BinaryIO) -> Any:
        """The object at the file's position, with stand-ins in it; :func:`settled` replaces them.

        Raises:
            Refused: It holds something else than plain data.
            Damaged: It is not such a pickle.
        """
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        for instruction, argument, _ in pickletools.genops(file):
            if instruction.name == 'STOP':
                return self.stack.pop()
            step = self._STEPS.get(instruction.name)
            if step is None:
                raise Refused(f'the pickle instruction {instruction.name}')
            step(self, argument)
        raise Damaged('it ends early')

    def _push(self, value: Any) -> None:
        self.stack.append(value)

    def _mark(self, _: None) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def _since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def _tuple_of(self, count: int) -> None:
        items = tuple(self.stack[-count:])
        if len(items) != count:
            raise Damaged('its stack is empty')
        del self.stack[-count:]
        self.stack.append(items)

    def _put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def _extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is list:
            target.extend(items)
        elif type(target) is not Opaque:
            raise Refused(f'items of a {type(target).__name__}')

    def _append(self, _: None) -> None:
        item = self.stack.pop()
        self._extend([item])

    def _set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is Opaque:
            return
        if type(target) not in (dict, collections.OrderedDict, collections.Counter):
            raise Refused(f'items of a {type(target).__name__}')
        if len(items) % 2:
            raise Damaged('a key has no value')
        for key, value in zip(items[::2], items[1::2]):
            if type(key) is not Opaque:
                target[_hashable(key)] = value

    def _set_item(self, _: None) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items([key, value])

    def _global(self, argument: str) -> None:
        name = full_name(argument)
        if name in _DTYPES:
            self.stack.append(_DTYPES[name])
        elif name in KNOWN:
            self.stack.append(Name(name))
        elif self.lenient:
            self.stack.append(Unknown(name))
        else:
            raise Refused(name)

    def _make(self, _: None) -> None:
        """REDUCE and NEWOBJ."""
        arguments, name = self.stack.pop(), self.stack.pop()
        if type(name) in (Unknown, Opaque):
            self.stack.append(Opaque())
            return
        if type(name) is not Name or name not in MADE or type(arguments) is not tuple:
            raise Refused(f'a call of {name if type(name) is Name else type(name).__name__}')
        # A class of ours that a file names, as an argument.
        arguments = [
            STAND_INS[value] if type(value) is Name and value in STAND_INS else value
            for value in arguments
        ]
        self.stack.append(MADE[name](*arguments))

    def _build(self, _: None) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, StandIn):
            target.__setstate__(state)
        elif type(target) is collections.OrderedDict and type(state) is dict:
            # Versions of the modules, in a state dict.
            target._metadata = state.get('_metadata')
        elif type(target) is not Opaque:
            raise Refused(f'a state of a {type(target).__name__}')

    def _persistent(self, _: None) -> None:
        where = self.stack.pop()
        # A sixth entry, of the old format, is a view; torch no longer writes one.
        if (
            type(where) is not tuple
            or len(where) not in (5, 6)
            or where[0] not in ('storage', b'storage')
            or where[5:] not in ((), (None,))
        ):
            raise Refused('a persistent id of something else than a storage')
        kind, key, _, count = where[1:5]
        if type(kind) is not Name or kind not in _STORAGES or type(count) is not int or count < 0:
            raise Refused(f'a storage of the type {kind}')
        self.stack.append(self.storage_of(str(key), _STORAGES[kind], count))

    _STEPS: dict[str, Callable] = {
        'PROTO': lambda self, _: None,
        'MARK': _mark,
        'NONE': _push,
        'NEWTRUE': lambda self, _: self._push(True),
        'NEWFALSE': lambda self, _: self._push(False),
        # The last two are text of Python 2.
        **dict.fromkeys(
            (
                'BININT',
                'BININT1',
                'BININT2',
                'LONG1',
                'LONG4',
                'BINFLOAT',
                'BINUNICODE',
                'BINSTRING',
                'SHORT_BINSTRING',
            ),
            _push,
        ),
        'EMPTY_LIST': lambda self, _: self._push([]),
        'EMPTY_TUPLE': lambda self, _: self._push(()),
        'EMPTY_DICT': lambda self, _: self._push({}),
        'APPEND': _append,
        'APPENDS': lambda self, _: self._extend(self._since_mark()),
        'SETITEM': _set_item,
        'SETITEMS': lambda self, _: self._set_items(self._since_mark()),
        'TUPLE': lambda self, _: self._push(tuple(self._since_mark())),
        'TUPLE1': lambda self, _: self._tuple_of(1),
        'TUPLE2': lambda self, _: self._tuple_of(2),
        'TUPLE3': lambda self, _: self._tuple_of(3),
        **dict.fromkeys(('BINPUT', 'LONG_BINPUT'), _put),
        **dict.fromkeys(
            ('BINGET', 'LONG_BINGET'), lambda self, index: self._push(self.memo[index])
        ),
        'GLOBAL': _global,
        **dict.fromkeys(('REDUCE', 'NEWOBJ'), _make),
        'BUILD': _build,
        'BINPERSID': _persistent,
    }


def settled(value: Any, known: dict[int, tuple[Any, Any]] | None = None) -> Any:
    """The same with new containers, and numpy arrays and logs where their stand-ins are.

    Args:
        value: What a reader made.
        known (dict, optional): id -> what was settled, and what it became.

    Raises:
        Refused: There is something else than plain data in it.
    """
    known = {} if known is None else known
    if type(value) in (
        *_SCALARS,
        torch.dtype,
        torch.device,
        torch.Size,
        slice,
        Tensor,
        torch.nn.Parameter,
    ):
        return value
    if id(value) in known:
        return known[id(value)][1]
    if type(value) in (list, dict, collections.OrderedDict, collections.Counter):
        # Before its items, which may hold it.
        known[id(value)] = value, (new := type(value)())
        if type(value) is list:
            new.extend(settled(item, known) for item in value)
        else:
            new.update({_hashable(key): settled(item, known) for key, item in value.items()})
        if getattr(value, '_metadata', None) is not None:
            new._metadata = settled(value._metadata, known)
        return new
    if type(value) is tuple:
        new = tuple(settled(item, known) for item in value)
    elif type(value) in (set, frozenset):
        new = type(value)(map(_hashable, value))
    elif type(value) in (Opaque, Unknown):
        new = {}
    elif type(value) is DType:
        new = value.numpy()
    elif type(value) is Array:
        new = _ndarray(*value.state)
    elif type(value) is History:
        new = _history(settled(value.state, known))
    else:
        raise Refused(value if isinstance(value, Name) else type(value).__name__)
    known[id(value)] = value, new
    return new


def _ndarray(version: int, shape: tuple, dtype: DType, fortran: bool, raw: bytes) -> np.ndarray:
    count = 1
    for n in shape:
        count *= int(n)
    return _numbers(dtype, raw, count).reshape(shape, order='F' if fortran else 'C')


def _history(state: dict) -> HistoryBuffer:
    return HistoryBuffer(state['_log_history'], state['_count_history'], int(state['max_length']))
