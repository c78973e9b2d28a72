"""Mutated checkpoints against the readers: no crash, no file, nothing changed in the process."""

import functools
import os
import random
import resource
import time
from collections import OrderedDict

import pytest
import torch

from mmhcnet.checkpoints.formats import open_regular, read_before_zip, read_plain, read_zip_inertly

from ..hostile import CUNNING, HOSTILE, RAW, archive, before_zip, changed, module_id, snapshot
from ..processes import exit_code, fork
from ..test_checkpoints.test_formats import contents

# Beyond what the process has; what a file asks for without holding it fails there.
MEMORY = 4 << 30
CPU_SECONDS = 60
BLOCK = 50


def seeds(folder):
    """Good and hostile files in both formats, to mutate."""
    found = []
    made = str(folder / 'made')
    values = {'contents': contents(), 'weights': OrderedDict(a=torch.randn(5), b=torch.arange(3))}
    values.update(
        {
            name: dict(a=torch.zeros(1), evil=HOSTILE[name](made))
            for name in ('os.mkdir', 'open', 'through a log', 'a storage in a storage')
        }
    )
    for value in values.values():
        for zipped in (True, False):
            path = folder / f'{len(found)}.pth'
            torch.save(value, path, _use_new_zipfile_serialization=zipped)
            found.append(path.read_bytes())
    pickles = [*CUNNING.values(), module_id(made), *(make(made) for make in RAW.values())]
    for content in pickles:
        path = folder / 'raw.pth'
        archive(path, content, [('data/0', bytes(8))])
        found.append(path.read_bytes())
        before_zip(path, content)
        found.append(path.read_bytes())
    return found


def mutated(content, others, rng):
    """A few bytes changed, cut, doubled, put elsewhere or taken from another file."""
    content = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 4, 8])):
        at = rng.randrange(len(content) + 1)
        length = rng.choice([1, 2, 4, 16, 64])
        kind = rng.randrange(6)
        if kind == 0 and at < len(content):
            content[at] = rng.randrange(256)
        elif kind == 1:
            content[at : at + length] = bytes(rng.randrange(256) for _ in range(length))
        elif kind == 2:
            del content[at : at + length]
        elif kind == 3:
            content[at:at] = content[at : at + length]
        elif kind == 4:
            other = rng.choice(others)
            start = rng.randrange(len(other))
            content[at : at + length] = other[start : start + length]
        else:
            # Numbers at the edges of their types.
            content[at : at + 4] = rng.choice(
                [b'\xff' * 4, b'\0' * 4, b'\x7f' + b'\xff' * 3, b'\xff\xff\xff\x7f']
            )
    return bytes(content)


def attack(folder, block, files):
    """Reads the files of a block in this process; raises if one leaves anything."""
    os.chdir(folder)
    limit = MEMORY + int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    before, listed = snapshot(), sorted(os.listdir())
    for number, content in enumerate(files):
        with open('file.pth', 'wb') as file:
            file.write(content)
        with open('number', 'w') as file:
            file.write(f'{block}.{number}')
        for read in (read_plain, read_zip_inertly, read_before_zip):
            try:
                with open_regular('file.pth') as file:
                    read(file)
            except Exception:
                pass
    assert sorted(os.listdir()) == sorted({*listed, 'file.pth', 'number'})
    assert not changed(before)


def check(tmp_path, count):
    rng = random.Random(0)
    (tmp_path / 'seeds').mkdir()
    originals = seeds(tmp_path / 'seeds')
    # What a reader imports on first use is not of a file's making.
    attack_folder = tmp_path / 'run'
    attack_folder.mkdir()
    for content in originals[:4]:
        (tmp_path / 'first.pth').write_bytes(content)
        with open_regular(str(tmp_path / 'first.pth')) as file:
            read_plain(file)
    began = time.time()
    for block in range(0, count, BLOCK):
        files = [
            mutated(rng.choice(originals), originals, rng) for _ in range(min(BLOCK, count - block))
        ] + (originals if block == 0 else [])
        code = exit_code(
            fork(functools.partial(attack, attack_folder, block, files), 2 * CPU_SECONDS)
        )
        assert code == 0, f'exit code {code} at file {(attack_folder / "number").read_text()}'
    assert not (tmp_path / 'seeds' / 'made').exists()
    print(f'{count} mutated files, each with three readers, in {time.time() - began:.0f} s')


def test_100_mutated_files(tmp_path):
    check(tmp_path, 100)


@pytest.mark.faults
def test_2000_mutated_files(tmp_path):
    check(tmp_path, 2000)
