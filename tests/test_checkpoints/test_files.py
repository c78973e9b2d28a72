import errno
import io
import json
import os
import shutil

import pytest
import torch

from mmhcnet.checkpoints import files
from mmhcnet.checkpoints.files import CheckpointBackend, fault_of, record_of

from ..processes import exit_code, fork


def content(value, size=20_000):
    buffer = io.BytesIO()
    torch.save(dict(value=value, ballast=torch.full((size,), float(value))), buffer)
    return buffer.getvalue()


def value_of(path):
    return torch.load(path, weights_only=True)['value']


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / 'epoch_1.pth'
    CheckpointBackend().put(content(1), path)
    return path


def test_round_trip(saved):
    assert value_of(saved) == 1
    assert fault_of(saved) is None
    record = json.loads(record_of(saved).read_text())
    assert record['size'] == os.path.getsize(saved)
    assert sorted(p.name for p in saved.parent.iterdir()) == ['epoch_1.pth', 'epoch_1.pth.json']


def test_removed_with_its_record(saved):
    CheckpointBackend().remove(saved)
    assert not list(saved.parent.iterdir())


def flip(path, at):
    raw = bytearray(path.read_bytes())
    raw[int(at * len(raw))] ^= 0x10
    path.write_bytes(raw)


def cut(path, share):
    raw = path.read_bytes()
    path.write_bytes(raw[: int(share * len(raw))])


# With and without the record next to it: 2 x 15 damaged files.
DAMAGES = (
    {f'flipped at {at}': lambda path, at=at: flip(path, at) for at in (0.3, 0.5, 0.7, 0.9)}
    | {
        f'cut to {share}': lambda path, share=share: cut(path, share)
        for share in (0, 0.001, 0.1, 0.5, 0.9, 0.999)
    }
    | {
        'zeros': lambda path: path.write_bytes(bytes(path.stat().st_size)),
        'text': lambda path: path.write_text('<html>404</html>'),
        'a hole': lambda path: path.write_bytes(
            path.read_bytes()[:3000] + bytes(2000) + path.read_bytes()[5000:]
        ),
        'missing': lambda path: path.unlink(),
        'a folder': lambda path: (path.unlink(), path.mkdir()),
    }
)


@pytest.mark.parametrize('recorded', [True, False])
@pytest.mark.parametrize('damage', DAMAGES)
def test_damage_is_found(saved, damage, recorded):
    if not recorded:
        record_of(saved).unlink()
    assert fault_of(saved) is None
    DAMAGES[damage](saved)
    assert fault_of(saved)


def test_another_whole_checkpoint_in_its_place(saved):
    saved.write_bytes(content(2))
    assert 'sha256' in fault_of(saved)


@pytest.mark.parametrize('text', ['', '{', '[]', '{"size": 3}'])
def test_a_broken_record_counts_as_none(saved, text):
    record_of(saved).write_text(text)
    assert fault_of(saved) is None
    flip(saved, 0.5)
    assert fault_of(saved)


def test_an_unreadable_file(saved, monkeypatch):

    def refuse(path):
        raise OSError(errno.EIO, 'Input/output error')

    monkeypatch.setattr(files, 'sha256_of', refuse)
    assert fault_of(saved) == 'it cannot be read (Input/output error)'


# The calls that change what is on the disk, in CheckpointBackend.put and remove.
CALLS = ('open', 'fsync', 'replace', 'unlink', 'remove')


def call_at(number, action, patch):
    """Let the ``number``-th of the CALLS do ``action`` instead; counts across all of them."""
    count = iter(range(10**6))

    def wrapped(original):

        def call(*args, **kwargs):
            if next(count) == number:
                action()
            return original(*args, **kwargs)

        return call

    for name in CALLS:
        patch.setattr(os, name, wrapped(getattr(os, name)))
    return count


def test_a_kill_between_any_two_steps(tmp_path, monkeypatch):
    """Overwrite one checkpoint, write another, remove the first; die at each step of it."""
    backend, first, second = CheckpointBackend(), tmp_path / 'a.pth', tmp_path / 'b.pth'

    def change(number):
        with monkeypatch.context() as patch:
            call_at(number, lambda: os._exit(9), patch)
            backend.put(content(2), first)
            backend.put(content(3), second)
            backend.remove(first)

    for number in range(100):
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        backend.put(content(1), first)
        code = exit_code(fork(lambda number=number: change(number)))
        whole = [path for path in (first, second) if path.exists() and fault_of(path) is None]
        assert whole and all(value_of(path) in (1, 2, 3) for path in whole)
        # What exists under its own name is intact: nothing is half-written there.
        assert whole == [path for path in (first, second) if path.exists()]
        if code == 0:
            break
    assert number > 15 and whole == [second] and value_of(second) == 3


@pytest.mark.parametrize('number', range(7))
def test_an_error_of_the_disk_leaves_the_former_one(saved, monkeypatch, number):

    def full():
        raise OSError(errno.ENOSPC, 'No space left on device')

    with monkeypatch.context() as patch:
        call_at(number, full, patch)
        with pytest.raises(OSError, match='No space left'):
            CheckpointBackend().put(content(2), saved)
    assert fault_of(saved) is None
    assert value_of(saved) in (1, 2)
    assert not list(saved.parent.glob('.*'))


def test_a_disk_that_does_not_keep_what_was_written(saved, monkeypatch):
    monkeypatch.setattr(files, 'sha256_of', lambda path: 'other')
    with pytest.raises(OSError, match='reads back differently'):
        CheckpointBackend().put(content(2), saved)
    monkeypatch.undo()
    assert value_of(saved) == 1 and fault_of(saved) is None
