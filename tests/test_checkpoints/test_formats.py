"""Each reader over the same files: the same contents, the same refusals, nothing else."""

import collections
import io
import os
import pathlib
import socket
import struct
import sys
import zipfile
from collections import Counter, OrderedDict

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer

from mmhcnet.checkpoints import formats
from mmhcnet.checkpoints.formats import (
    Damaged,
    Refused,
    device_of,
    format_of,
    open_regular,
    read_before_zip,
    read_plain,
    read_zip_inertly,
    read_zip_with_torch,
)
from mmhcnet.errors import UserError

from ..hostile import (
    CUNNING,
    HOSTILE,
    RAW,
    Call,
    archive,
    before_zip,
    changed,
    module_id,
    safetensors_and_pickle,
    script,
    snapshot,
    tensor,
)

READERS = {
    'torch': pytest.param(
        read_zip_with_torch,
        archive,
        marks=pytest.mark.skipif(
            not formats.TORCH_IS_SOUND, reason="torch's own reader is sound from 2.6 on"
        ),
    ),
    'inert': (read_zip_inertly, archive),
    'before zip': (read_before_zip, before_zip),
}
readers = pytest.mark.parametrize('read, write', READERS.values(), ids=READERS)


def load(read, path, **kwargs):
    with open_regular(str(path)) as file:
        return read(file, **kwargs)


def save(value, path, write):
    torch.save(value, path, _use_new_zipfile_serialization=write is archive)


def contents():
    log = HistoryBuffer()
    log.update(1.5)
    log.update(2, count=3)
    whole = torch.randn(24)
    weights = OrderedDict(
        a=torch.randn(3, 2),
        b=torch.arange(4).half(),
        c=torch.nn.Parameter(torch.randn(2)),
        d=torch.randn(4, 6).T,
        e=torch.tensor([True, False]),
        f=torch.randn(2).bfloat16(),
        g=whole[3:9].view(2, 3),
        h=whole[4:4],
        i=torch.empty(0),
        j=torch.tensor(3),
        k=torch.randn(2, dtype=torch.complex64),
        l=torch.randn(1).expand(3),
        m=whole,
        n=torch.nn.Parameter(torch.arange(2), requires_grad=False),
    )
    weights._metadata = OrderedDict({'': dict(version=1)})
    return dict(
        state_dict=weights,
        message_hub=dict(log_scalars=OrderedDict(loss=log), score=np.float64(0.5), n=np.int64(3)),
        meta=dict(
            seed=1,
            big=2**70,
            classes=('a', 'b'),
            palette=[[1, 2]],
            half=-0.5,
            i=2 + 3j,
            inner=ConfigDict(x=dict(y=1)),
            array=np.arange(6.0).reshape(2, 3),
            order=np.asfortranarray(np.arange(6, dtype=np.int32).reshape(2, 3)),
            flags=np.array([True, False]),
            nothing=None,
            raw=b'\x00\xff',
            yes=True,
        ),
        param_schedulers=[dict(milestones=Counter({8: 1, 11: 1}))],
        ends=slice(1, None),
        default=collections.defaultdict(list, {(0, 'a'): [1]}),
        sets={1, 2},
        size=torch.Size([1, 2]),
        dtype=torch.bfloat16,
        device=torch.device('cpu'),
    )


@readers
def test_what_a_checkpoint_holds(tmp_path, read, write):
    saved = contents()
    save(saved, tmp_path / 'a.pth', write)
    loaded = load(read, tmp_path / 'a.pth')
    assert list(loaded) == list(saved)
    assert list(loaded['state_dict']) == list(saved['state_dict'])
    for key, value in saved['state_dict'].items():
        found = loaded['state_dict'][key]
        assert torch.equal(found, value) and type(found) is type(value)
        assert found.dtype == value.dtype and found.stride() == value.stride()
        assert found.requires_grad == value.requires_grad
    assert loaded['state_dict']._metadata == saved['state_dict']._metadata
    # Views of one storage stay views of one.
    assert loaded['state_dict']['g'].data_ptr() == loaded['state_dict']['m'].data_ptr() + 3 * 4
    log = loaded['message_hub']['log_scalars']['loss']
    assert type(log) is HistoryBuffer and log.mean() == 3.5 / 4
    log.update(4.0)
    assert log.current() == 4
    assert loaded['message_hub']['score'] == 0.5 and loaded['message_hub']['n'] == 3
    for key in ('array', 'order', 'flags'):
        assert (loaded['meta'].pop(key) == saved['meta'][key]).all()
        saved['meta'].pop(key)
    for key in ('meta', 'param_schedulers', 'sets', 'size', 'dtype', 'device', 'ends', 'default'):
        assert loaded[key] == saved[key]


@readers
@pytest.mark.parametrize('name', HOSTILE)
def test_a_call_is_refused_and_not_made(name, tmp_path, read, write):
    (tmp_path / 'bait').mkdir()
    (tmp_path / 'bait.py').write_text(script(str(tmp_path / 'made')))
    save(
        dict(state_dict=dict(a=torch.zeros(1)), evil=HOSTILE[name](str(tmp_path / 'made'))),
        tmp_path / 'a.pth',
        write,
    )
    with pytest.raises(Refused):
        load(read, tmp_path / 'a.pth')
    assert not (tmp_path / 'made').exists()
    # It is live: Python's own unpickler runs it.
    try:
        torch.load(tmp_path / 'a.pth', weights_only=False)
    except TypeError:
        pass
    assert (tmp_path / 'made').exists()


@readers
@pytest.mark.parametrize('name', RAW)
def test_a_call_written_by_hand(name, tmp_path, read, write):
    write(tmp_path / 'a.pth', RAW[name](str(tmp_path / 'made')))
    with pytest.raises(Refused):
        load(read, tmp_path / 'a.pth')
    assert not (tmp_path / 'made').exists()


@readers
def test_what_was_there_before_is_not_changed(tmp_path, read, write):
    before = snapshot()
    for name in set(CUNNING) - {'a large memo'}:
        if write is archive:
            archive(tmp_path / 'a.pth', CUNNING[name], [('data/0', bytes(8))])
        else:
            before_zip(tmp_path / 'a.pth', CUNNING[name])
        try:
            load(read, tmp_path / 'a.pth')
        except Exception:
            continue
        pytest.fail(f'{name} was read')
    assert not changed(before)


@readers
def test_a_memo_costs_what_is_in_it(tmp_path, read, write):
    # Python's own unpickler reserves 32 GB for this one.
    write(tmp_path / 'a.pth', CUNNING['a large memo'])
    assert load(read, tmp_path / 'a.pth') is None


@readers
def test_no_patch_is_written(tmp_path, read, write, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / 'a.pth', module_id('made'))
    with pytest.raises(Refused):
        load(read, tmp_path / 'a.pth')
    assert os.listdir(tmp_path) == ['a.pth']


@readers
@pytest.mark.parametrize('codec', ['rot13', 'base64', 'utf-8'])
def test_no_other_codec(tmp_path, codec, read, write):
    save(dict(a=Call(__import__('codecs').encode, 'x', codec)), tmp_path / 'a.pth', write)
    with pytest.raises(Refused):
        load(read, tmp_path / 'a.pth')


@readers
def test_a_container_in_itself(tmp_path, read, write):
    value = [1]
    value.append(dict(value=value))
    save(value, tmp_path / 'a.pth', write)
    loaded = load(read, tmp_path / 'a.pth')
    assert loaded[1]['value'] is loaded


def test_nothing_stays_registered_with_torch(tmp_path):
    if not formats.TORCH_IS_SOUND:
        pytest.skip('torch takes no stand-ins before 2.5')
    before = set(torch.serialization.get_safe_globals())
    torch.save(contents(), tmp_path / 'a.pth')
    load(read_plain, tmp_path / 'a.pth')
    torch.save(dict(a=Call(os.getcwd)), tmp_path / 'b.pth')
    with pytest.raises(Refused):
        load(read_plain, tmp_path / 'b.pth')
    assert set(torch.serialization.get_safe_globals()) == before


GOOD = b'\x80\x02}' + b'X\x01\x00\x00\x00a' + tensor(2, 0, (2,), (1,)) + b's.'
TWO = [('data/0', struct.pack('<2f', 1, 2))]


def overlapping(path):
    """Two entries of a zip file that share the bytes of one."""
    archive(path, GOOD, [('data/0', bytes(8)), ('data/1', bytes(10000))])
    raw = path.read_bytes()
    with zipfile.ZipFile(path) as file:
        start = file.getinfo('archive/data/1').header_offset
    at = raw.rindex(b'archive/data/1') - 46
    entry = raw[at : at + 46] + b'archive/data/2' + raw[at + 60 : at + 60]
    end = raw.rindex(b'PK\x05\x06')
    fields = list(struct.unpack('<4s4H2LH', raw[end:]))
    fields[3:6] = fields[3] + 1, fields[4] + 1, fields[5] + len(entry)
    path.write_bytes(raw[:end] + entry + struct.pack('<4s4H2LH', *fields))
    assert start


BAD_ARCHIVES = {
    'compressed': (lambda path: archive(path, GOOD, TWO, zipfile.ZIP_DEFLATED), 'compressed'),
    'a bomb': (
        lambda path: archive(path, GOOD, [('data/0', bytes(10**8))], zipfile.ZIP_DEFLATED),
        'compressed',
    ),
    'the same name': (lambda path: archive(path, GOOD, TWO * 2), 'same name'),
    'the same name but for case': (
        lambda path: archive(path, GOOD, [*TWO, ('DATA.PKL', GOOD)]),
        'same name',
    ),
    'another folder': (lambda path: archive(path, GOOD, [*TWO, ('../a/data.pkl', GOOD)]), None),
    'no storage': (lambda path: archive(path, GOOD), 'storage 0 is missing'),
    'a short storage': (lambda path: archive(path, GOOD, [('data/0', bytes(7))]), 'storage 0'),
    'a long storage': (lambda path: archive(path, GOOD, [('data/0', bytes(9))]), 'storage 0'),
    'other byte order': (
        lambda path: (
            archive(path, GOOD, [*TWO[:1]])
            or path.write_bytes(path.read_bytes().replace(b'little', b'biggie'))
        ),
        None,
    ),
    'overlapping parts': (overlapping, 'overlap'),
    'TorchScript': (
        lambda path: torch.jit.script(torch.nn.Linear(2, 2)).save(str(path)),
        'TorchScript',
    ),
}


@pytest.mark.filterwarnings('ignore:Duplicate name')
@pytest.mark.parametrize(
    'read',
    [pytest.param(read_zip_with_torch, marks=READERS['torch'].marks), read_zip_inertly],
)
@pytest.mark.parametrize('name', BAD_ARCHIVES)
def test_a_forged_archive(tmp_path, name, read):
    make, message = BAD_ARCHIVES[name]
    make(tmp_path / 'a.pth')
    if name == 'another folder':
        # Its own root is the first part's.
        assert load(read, tmp_path / 'a.pth')['a'].tolist() == [1, 2]
        return
    with pytest.raises(Exception, match=message):
        load(read, tmp_path / 'a.pth')


def test_two_folders(tmp_path):
    archive(tmp_path / 'a.pth', GOOD, TWO)
    with zipfile.ZipFile(tmp_path / 'a.pth', 'a') as file:
        file.writestr('other/data.pkl', GOOD)
    with pytest.raises(Damaged, match='more than one folder'):
        load(read_plain, tmp_path / 'a.pth')


def test_the_contents_decide_on_the_format(tmp_path):
    torch.save(dict(a=torch.ones(1)), tmp_path / 'a.safetensors')
    assert load(read_plain, tmp_path / 'a.safetensors')['a'] == 1
    safetensors = pytest.importorskip('safetensors.torch')
    safetensors.save_file(dict(a=torch.ones(1)), str(tmp_path / 'b.pth'))
    assert load(read_plain, tmp_path / 'b.pth')['state_dict']['a'] == 1
    # What is valid as both is read as what it was looked at, and nothing in it is run.
    safetensors_and_pickle(tmp_path / 'c.pth', RAW['renamed module'](str(tmp_path / 'made')))
    assert zipfile.is_zipfile(tmp_path / 'c.pth')
    assert load(read_plain, tmp_path / 'c.pth')['state_dict']['a'] == 0
    assert not (tmp_path / 'made').exists()


@pytest.mark.parametrize(
    'start, kind',
    [
        (b'PK\x03\x04', 'zip'),
        (b'', ''),
        (b'<html>', ''),
        (bytes(1000), ''),
        (bytes(257) + b'ustar', 'tar'),
        (struct.pack('<Q', 10**15) + b'{', ''),
        (b'\x80\x02}q\x00.', ''),
        (struct.pack('<Q', 2) + b'{}', 'safetensors'),
    ],
)
def test_format(tmp_path, start, kind):
    (tmp_path / 'a').write_bytes(start)
    with open_regular(str(tmp_path / 'a')) as file:
        assert format_of(file) == kind
        assert file.tell() == 0


def special_files(folder):
    os.mkfifo(folder / 'fifo')
    (folder / 'link').symlink_to(folder / 'fifo')
    (folder / 'zero').symlink_to('/dev/zero')
    (folder / 'folder').mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / 'socket'))
    return ['fifo', 'link', 'zero', 'folder', 'socket']


def test_only_regular_files_are_opened(tmp_path):
    for name in special_files(tmp_path):
        with pytest.raises(UserError, match="is a .*: give a checkpoint file"):
            open_regular(str(tmp_path / name))
    with pytest.raises(UserError, match='no checkpoint file'):
        open_regular(str(tmp_path / 'none'))
    (tmp_path / 'loop').symlink_to(tmp_path / 'loop')
    with pytest.raises(UserError, match='cannot read'):
        open_regular(str(tmp_path / 'loop'))


def test_a_pipe_put_in_place_of_the_file(tmp_path, monkeypatch):
    """Between the look at it and the opening."""
    path = tmp_path / 'a.pth'
    path.write_bytes(b'')
    found = os.stat(path)
    path.unlink()
    os.mkfifo(path)
    monkeypatch.setattr(formats.os, 'stat', lambda path: found)
    with pytest.raises(UserError, match='is a pipe or a device'):
        open_regular(str(path))


@pytest.mark.parametrize(
    'map_location, device',
    [
        (None, 'cpu'),
        ('meta', 'meta'),
        (torch.device('meta'), 'meta'),
        ({'cpu': 'meta'}, 'meta'),
        ({'cuda:0': 'cpu'}, 'cpu'),
        (lambda storage, place: storage, 'cpu'),
        (lambda storage, place: None, 'cpu'),
    ],
)
def test_device(map_location, device):
    assert torch.device(device_of(map_location)) == torch.device(device)


@readers
def test_tensors_go_where_they_are_wanted(tmp_path, read, write):
    save(dict(a=torch.ones(2)), tmp_path / 'a.pth', write)
    with open_regular(str(tmp_path / 'a.pth')) as file:
        assert read(file, 'meta')['a'].device.type == 'meta'


def test_a_truth_value_is_0_or_1(tmp_path):
    content = GOOD.replace(b'FloatStorage', b'BoolStorage').replace(b'X\x01', b'X\x01', 1)
    archive(tmp_path / 'a.pth', content, [('data/0', b'\x02\xff')])
    loaded = load(read_zip_inertly, tmp_path / 'a.pth')['a']
    assert loaded.view(torch.uint8).tolist() == [1, 1]


def test_the_readers_import_nothing(tmp_path):
    loaded = set(sys.modules)
    name = next(name for name in ('antigravity', 'this', 'turtledemo') if name not in loaded)
    archive(tmp_path / 'a.pth', f'\x80\x02c{name}\nx\n.'.encode('latin1'))
    for read in (READERS['torch'].values[0], read_zip_inertly):
        with pytest.raises(Refused):
            load(read, tmp_path / 'a.pth')
    assert name not in sys.modules


def test_objects_of_unknown_classes_may_come_out_empty(tmp_path):
    for zipped in (True, False):
        torch.save(
            dict(a=torch.ones(1), path=pathlib.Path('a'), where=io.StringIO),
            tmp_path / 'a.pth',
            _use_new_zipfile_serialization=zipped,
        )
        with open_regular(str(tmp_path / 'a.pth')) as file:
            loaded = read_plain(file, lenient=True)
        assert loaded == dict(a=torch.ones(1), path={}, where={})
