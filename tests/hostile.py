"""Checkpoints that try to do something when they are loaded."""

import codecs
import functools
import importlib
import io
import json
import operator
import os
import pathlib
import pickle
import runpy
import shutil
import struct
import subprocess
import sys
import types
import zipfile
from collections import Counter, OrderedDict, defaultdict

import numpy as np
import torch
from mmengine.logging import HistoryBuffer


class Call:
    """Pickles as the call of a function; loading the pickle calls it."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __call__(self):
        """Not used: a pickled function must only look callable."""

    def __reduce__(self):
        return self.function, self.args


def archive(path, pickled, parts=(), compression=zipfile.ZIP_STORED):
    """A checkpoint around a pickle written by hand; ``parts`` are (name, content) next to it."""
    with zipfile.ZipFile(path, 'w', compression) as file:
        for name, content in (
            ('data.pkl', pickled),
            ('version', '3\n'),
            ('byteorder', 'little'),
            *parts,
        ):
            file.writestr(f'archive/{name}', content)


def before_zip(path, pickled):
    """The same in the format before torch 1.6."""
    path.write_bytes(
        b''.join(
            pickle.dumps(value, 2)
            for value in (
                0x1950A86A20F9469CFC6C,
                1001,
                dict(protocol_version=1001, little_endian=True, type_sizes={}),
            )
        )
        + pickled
        + pickle.dumps([], 2)
    )


def nested(made):
    buffer = io.BytesIO()
    torch.save(Call(os.mkdir, made), buffer)
    return buffer.getvalue()


def script(made):
    return f"import os; os.mkdir({made!r})"


def globals_of_history(name):
    """A module or function that mmengine's log class can see, through getattr alone."""
    attributes = Call(getattr, Call(getattr, HistoryBuffer, '__init__'), '__globals__')
    return Call(Call(getattr, attributes, 'get'), name)


# What loading would do; each makes the folder or file ``made``.
HOSTILE = {
    'os.mkdir': lambda made: Call(os.mkdir, made),
    'os.system': lambda made: Call(os.system, f'touch {made}'),
    'os.rename': lambda made: Call(os.rename, str(pathlib.Path(made).parent / 'bait'), made),
    'eval': lambda made: Call(eval, f"__import__('os').mkdir({made!r})"),
    'exec': lambda made: Call(exec, script(made)),
    'open': lambda made: Call(open, made, 'w'),
    'io.open': lambda made: Call(io.FileIO, made, 'w'),
    'codecs.open': lambda made: Call(codecs.open, made, 'w'),
    'subprocess': lambda made: Call(subprocess.check_call, ['touch', made]),
    'pathlib': lambda made: Call(pathlib.Path.mkdir, pathlib.Path(made)),
    'shutil': lambda made: Call(shutil.copytree, str(pathlib.Path(made).parent / 'bait'), made),
    'runpy': lambda made: Call(runpy.run_path, str(pathlib.Path(made).parent / 'bait.py')),
    'numpy.savetxt': lambda made: Call(np.savetxt, made, [1]),
    'torch.save': lambda made: Call(torch.save, 1, made),
    'a storage in a storage': lambda made: Call(torch.storage._load_from_bytes, nested(made)),
    'methodcaller': lambda made: Call(Call(operator.methodcaller, 'mkdir'), pathlib.Path(made)),
    'getattr of a module': lambda made: Call(
        Call(getattr, Call(importlib.import_module, 'os'), 'mkdir'), made
    ),
    'through a log': lambda made: Call(
        Call(getattr, globals_of_history('np'), 'savetxt'), made, [1]
    ),
    'map': lambda made: Call(list, Call(map, os.mkdir, [made])),
    'default of a dict': lambda made: Call(
        Call(getattr, defaultdict, '__missing__'),
        Call(defaultdict, Call(functools.partial, os.mkdir, made)),
        1,
    ),
    'the key of a dict': lambda made: {Call(os.mkdir, made): 1},
    'a keyword of a class': lambda made: Call(Call(functools.partial, os.mkdir, made)),
}
# The same, as pickles written by hand.
RAW = {
    'INST': lambda made: b"(S'" + made.encode() + b"'\nios\nmkdir\n.",
    'OBJ': lambda made: b'(cos\nmkdir\nS\'' + made.encode() + b"'\no.",
    'STACK_GLOBAL': lambda made: (
        b'\x80\x04\x8c\x02os\x8c\x05mkdir\x93\x8c' + bytes([len(made)]) + made.encode() + b'\x85R.'
    ),
    'renamed module': lambda made: (
        b'\x80\x02c__builtin__\nexec\nX'
        + len(script(made)).to_bytes(4, 'little')
        + script(made).encode()
        + b'\x85R.'
    ),
}


def text(value):
    value = value.encode()
    return b'X' + struct.pack('<I', len(value)) + value


def number(value):
    return b'\x8a\x08' + struct.pack('<q', value)


def name(module, attribute):
    return f'c{module}\n{attribute}\n'.encode()


def slots(*pairs):
    """The state of an object with slots: attributes to set on it."""
    return b'N}(' + b''.join(text(key) + value for key, value in pairs) + b'u\x86'


def storage(count, kind='FloatStorage', key='0'):
    return (
        b'(('
        + text('storage')
        + name('torch', kind)
        + text(key)
        + text('cpu')
        + number(count)
        + b'tQ'
    )[1:]


def tensor(count, offset, size, stride):
    """A tensor of a storage of ``count`` floats."""
    return (
        name('torch._utils', '_rebuild_tensor_v2')
        + b'('
        + storage(count)
        + number(offset)
        + b'('
        + b''.join(map(number, size))
        + b't('
        + b''.join(map(number, stride))
        + b't\x89'
        + name('collections', 'OrderedDict')
        + b')RtR'
    )


def module_id(made):
    """Makes torch's reader of old files write a patch for a "changed module"."""
    function = name('torch._utils', '_rebuild_tensor')
    return (
        b'\x80\x02'
        + function
        + slots(('dump_patches', b'\x88'), ('__name__', text(made)))
        + b'b0('
        + text('module')
        + function
        + text(made)
        + text('source')
        + b'tQ.'
    )


_FUNCTIONS = [
    ('torch._utils', '_rebuild_tensor'),
    ('torch._utils', '_rebuild_tensor_v2'),
    ('torch._utils', '_rebuild_parameter'),
    ('_codecs', 'encode'),
    ('numpy._core.multiarray', '_reconstruct'),
    ('numpy._core.multiarray', 'scalar'),
    ('builtins', 'getattr'),
]
_CLASSES = [
    ('collections', 'Counter'),
    ('collections', 'OrderedDict'),
    ('collections', 'defaultdict'),
    ('mmengine.logging.history_buffer', 'HistoryBuffer'),
    ('numpy', 'dtype'),
    ('numpy', 'ndarray'),
    ('mmengine.config.config', 'ConfigDict'),
    ('torch', 'Size'),
    ('torch', 'device'),
    ('torch', 'float32'),
    ('torch', 'FloatStorage'),
    ('torch.storage', 'UntypedStorage'),
    ('builtins', 'set'),
]
_SELF = {kind: name(*kind) for kind in _FUNCTIONS + _CLASSES}
# Pickles that set attributes on what was there before, or ask for memory or time without end.
CUNNING = {
    **{
        f'slots of {".".join(kind)}': b'\x80\x02'
        + own
        + slots(
            ('dump_patches', b'\x88'),
            ('__name__', text('x')),
            ('most_common', own),
            ('update', own),
            ('__setstate__', own),
        )
        + b'b.'
        for kind, own in _SELF.items()
    },
    **{
        f'state of {".".join(kind)}': b'\x80\x02'
        + own
        + b'}('
        + text('most_common')
        + own
        + text('mean')
        + own
        + b'ub.'
        for kind, own in _SELF.items()
    },
    **{
        f'attributes of an object of {".".join(kind)}': b'\x80\x02'
        + own
        + b')\x81'
        + slots(('__class__', own), ('items', own))
        + b'b.'
        for kind, own in _SELF.items()
    },
    'an address of memory': b'\x80\x02'
    + name('torch.storage', 'UntypedStorage')
    + b')}('
    + text('allocator')
    + number(0xDEADBEEF)
    + text('device')
    + text('cpu')
    + b'u\x92.',
    'memory for a storage': b'\x80\x02'
    + name('torch.storage', 'UntypedStorage')
    + number(2**40)
    + b'\x85R.',
    'memory for bytes': b'\x80\x02' + name('builtins', 'bytearray') + number(2**40) + b'\x85R.',
    'memory for a tensor': b'\x80\x02' + name('torch', 'Tensor') + number(2**40) + b'\x85R.',
    'a large text': b'\x80\x02X\xff\xff\xff\xff...',
    'large bytes': b'\x80\x05\x96' + struct.pack('<Q', 2**60) + b'...',
    'a large memo': b'\x80\x02Nr\xff\xff\xff\x7f.',
    'a large storage': b'\x80\x02' + storage(2**40) + b'.',
    'a storage of other size': b'\x80\x02' + tensor(10**6, 0, (10**6,), (1,)) + b'.',
    'a tensor past its storage': b'\x80\x02' + tensor(2, 1, (2,), (1,)) + b'.',
    'a tensor before its storage': b'\x80\x02' + tensor(2, -1, (1,), (1,)) + b'.',
    'a tensor of negative stride': b'\x80\x02' + tensor(2, 1, (2,), (-1,)) + b'.',
    'a tensor of overflowing size': b'\x80\x02' + tensor(2, 0, (2**62, 4), (4, 1)) + b'.',
    'a hash without end': b'\x80\x02}' + b'N' + b'q\x00h\x00\x86' * 60 + b'Ns.',
    'nested without end': b'\x80\x02' + b']' * 10**5 + b'a' * (10**5 - 1) + b'.',
    'a call of a number': b'\x80\x02K\x01)R.',
    'a call of a tensor': b'\x80\x02' + tensor(2, 0, (1,), (1,)) + b')R.',
    'a module': b'\x80\x02('
    + text('module')
    + name('torch._utils', '_rebuild_tensor')
    + text('a')
    + text('b')
    + b'tQ.',
    'an extension': b'\x80\x02\x82\x01.',
    'no stack': b'\x80\x02R.',
    'a mark too few': b'\x80\x02u.',
}


def snapshot():
    """What a file could change in this process: attributes of every loaded module, and of each
    class and function of those that a checkpoint may name."""
    found = {}
    for module_name, module in list(sys.modules.items()):
        # There torch binds a new set with the same contents, compared below.
        if module_name != 'torch._weights_only_unpickler':
            for key, value in list(getattr(module, '__dict__', {}).items()):
                # A module that another one imports late is no change, nor is a warning.
                if not isinstance(value, types.ModuleType) and key != '__warningregistry__':
                    found[module_name, key] = id(value)
    for owner in (
        Counter,
        OrderedDict,
        defaultdict,
        HistoryBuffer,
        torch._utils._rebuild_tensor,
        torch._utils._rebuild_tensor_v2,
        torch._utils._rebuild_parameter,
        *(
            value
            for module in list(sys.modules.values())
            if getattr(module, '__name__', '').startswith('mmhcnet.checkpoints')
            for value in vars(module).values()
            if isinstance(value, (type, types.FunctionType))
        ),
    ):
        found[repr(owner), ''] = id(owner)
        for key, value in dict(vars(owner)).items():
            found[repr(owner), key] = id(value)
    found['torch.serialization', 'safe globals'] = (
        set(torch.serialization.get_safe_globals())
        if hasattr(torch.serialization, 'get_safe_globals')
        else None
    )
    return found


def changed(before):
    """What of a snapshot is another thing now, and what is new in an owner that was there."""
    after = snapshot()
    owners = {owner for owner, _ in before}
    return [
        key for key in {**before, **after} if before.get(key) != after.get(key) and key[0] in owners
    ]


def safetensors_and_pickle(path, pickled):
    """A safetensors file whose bytes are a zip archive, too."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as file:
        file.writestr('archive/data.pkl', pickled)
    zipped = buffer.getvalue()
    header = json.dumps(
        dict(
            a=dict(dtype='F32', shape=[1], data_offsets=[0, 4]),
            b=dict(dtype='U8', shape=[len(zipped)], data_offsets=[4, 4 + len(zipped)]),
        )
    ).encode()
    path.write_bytes(struct.pack('<Q', len(header)) + header + bytes(4) + zipped)
