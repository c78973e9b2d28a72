import argparse
import codecs
import functools
import importlib
import io
import operator
import os
import pathlib
import runpy
import shutil
import subprocess
import sys
import zipfile
from collections import Counter, OrderedDict, defaultdict

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader

from mmhcnet.checkpoints.reader import load_local, load_safely
from mmhcnet.errors import UserError

from ..toy import toy_runner


class Call:
    """Pickles as the call of a function; loading the pickle calls it."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __call__(self):
        """Not used: a pickled function must only look callable."""

    def __reduce__(self):
        return self.function, self.args


def raw(path, pickled):
    """A checkpoint around a pickle written by hand."""
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('archive/data.pkl', pickled)
        archive.writestr('archive/version', '3\n')
        archive.writestr('archive/byteorder', 'little')


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
    'pathlib': lambda made: Call(getattr(pathlib.Path, 'mkdir'), pathlib.Path(made)),
    'shutil': lambda made: Call(shutil.copytree, str(pathlib.Path(made).parent / 'bait'), made),
    'runpy': lambda made: Call(runpy.run_path, str(pathlib.Path(made).parent / 'bait.py')),
    'numpy.savetxt': lambda made: Call(np.savetxt, made, [1]),
    'torch.save': lambda made: Call(torch.save, 1, made),
    'a storage in a storage': lambda made: Call(torch.storage._load_from_bytes, nested(made)),
    'methodcaller': lambda made: Call(Call(operator.methodcaller, 'mkdir'), pathlib.Path(made)),
    'getattr of a module': lambda made: Call(
        Call(getattr, Call(importlib.import_module, 'os'), 'mkdir'), made),
    'through a log': lambda made: Call(
        Call(getattr, globals_of_history('np'), 'savetxt'), made, [1]),
    'map': lambda made: Call(list, Call(map, os.mkdir, [made])),
    'default of a dict': lambda made: Call(
        Call(getattr, defaultdict, '__missing__'),
        Call(defaultdict, Call(functools.partial, os.mkdir, made)), 1),
    'the key of a dict': lambda made: {Call(os.mkdir, made): 1},
    'a keyword of a class': lambda made: Call(Call(functools.partial, os.mkdir, made)),
}
RAW = {
    'INST': lambda made: b"(S'" + made.encode() + b"'\nios\nmkdir\n.",
    'OBJ': lambda made: b'(cos\nmkdir\nS\'' + made.encode() + b"'\no.",
    'STACK_GLOBAL': lambda made: (b'\x80\x04\x8c\x02os\x8c\x05mkdir\x93\x8c'
                                  + bytes([len(made)]) + made.encode() + b'\x85R.'),
    'renamed module': lambda made: (b'\x80\x02c__builtin__\nexec\nX'
                                    + len(script(made)).to_bytes(4, 'little')
                                    + script(made).encode() + b'\x85R.'),
}


@pytest.fixture
def made(tmp_path):
    (tmp_path / 'bait').mkdir()
    (tmp_path / 'bait.py').write_text(script(str(tmp_path / 'made')))
    return tmp_path / 'made'


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('name', HOSTILE)
def test_a_hostile_checkpoint_is_refused_and_not_run(name, zipped, tmp_path, made):
    weights = dict(state_dict=dict(a=torch.zeros(1)), evil=HOSTILE[name](str(made)))
    torch.save(weights, tmp_path / 'a.pth', _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError) as caught:
        load_local(str(tmp_path / 'a.pth'))
    assert not made.exists()
    assert 'is refused' in str(caught.value) and '--trust-checkpoint' in str(caught.value)
    assert '\n' not in str(caught.value)
    # It is live: trusted, it runs.
    try:
        load_local(str(tmp_path / 'a.pth'), trust=True)
    except TypeError:
        pass
    assert made.exists()


@pytest.mark.parametrize('name', RAW)
def test_a_hostile_pickle_written_by_hand(name, tmp_path, made):
    raw(tmp_path / 'a.pth', RAW[name](str(made)))
    with pytest.raises(UserError):
        load_local(str(tmp_path / 'a.pth'))
    assert not made.exists()
    try:
        load_local(str(tmp_path / 'a.pth'), trust=True)
    except RuntimeError:
        pass
    assert made.exists()


def test_a_program_of_torchscript(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / 'a.pth'))
    with pytest.raises(UserError, match='is a TorchScript program'):
        load_local(str(tmp_path / 'a.pth'))


@pytest.mark.parametrize('codec', ['rot13', 'base64', 'utf-8'])
def test_no_other_codec(tmp_path, codec):
    torch.save(dict(a=Call(codecs.encode, 'x', codec)), tmp_path / 'a.pth')
    with pytest.raises(UserError):
        load_local(str(tmp_path / 'a.pth'))


@pytest.mark.parametrize('zipped', [True, False])
def test_what_a_checkpoint_holds(tmp_path, zipped):
    log = HistoryBuffer()
    log.update(1.5)
    checkpoint = dict(
        state_dict=OrderedDict(a=torch.randn(3, 2), b=torch.arange(4).half(),
                               c=torch.nn.Parameter(torch.randn(2)), d=torch.randn(4, 6).T,
                               e=torch.zeros(2, dtype=torch.bool), f=torch.randn(2).bfloat16()),
        message_hub=dict(log_scalars=dict(loss=log), score=np.float64(0.5), n=np.int64(3)),
        meta=dict(seed=1, classes=('a', 'b'), palette=[[1, 2]], config=ConfigDict(x=dict(y=1)),
                  array=np.arange(6.).reshape(2, 3), nothing=None, raw=b'\x00\xff'),
        param_schedulers=[dict(milestones=Counter({8: 1, 11: 1}))],
        sets={1, 2}, size=torch.Size([1, 2]), dtype=torch.bfloat16, device=torch.device('cpu'))
    torch.save(checkpoint, tmp_path / 'a.pth', _use_new_zipfile_serialization=zipped)
    loaded = load_local(str(tmp_path / 'a.pth'))
    for key, value in checkpoint['state_dict'].items():
        assert torch.equal(loaded['state_dict'][key], value)
        assert loaded['state_dict'][key].dtype == value.dtype
    assert loaded['message_hub']['log_scalars']['loss'].mean() == 1.5
    assert loaded['message_hub']['score'] == 0.5 and loaded['message_hub']['n'] == 3
    assert (loaded['meta']['array'] == checkpoint['meta']['array']).all()
    for key in ('seed', 'classes', 'palette', 'config', 'nothing', 'raw'):
        assert loaded['meta'][key] == checkpoint['meta'][key]
    for key in ('param_schedulers', 'sets', 'size', 'dtype', 'device'):
        assert loaded[key] == checkpoint[key]


def test_a_whole_runs_checkpoint(tmp_path):
    runner = toy_runner(tmp_path, custom_hooks=[dict(type='EMAHook')], param_scheduler=[
        dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=3),
        dict(type='MultiStepLR', milestones=[1, 2])])
    runner.train()
    loaded = load_local(str(tmp_path / 'epoch_3.pth'))
    weights = runner.model.state_dict()
    assert set(loaded) >= {'meta', 'state_dict', 'ema_state_dict', 'optimizer', 'message_hub',
                           'param_schedulers'}
    # With the moving average mmengine swaps the two.
    assert all(torch.equal(loaded['ema_state_dict'][f'module.{key}'], weights[key])
               for key in weights)


def test_the_refusal_names_what_is_not_weights(tmp_path):
    torch.save(dict(args=argparse.Namespace(lr=1)), tmp_path / 'a.pth')
    with pytest.raises(UserError, match="beside weights it holds 'argparse.Namespace'.*add "
                       '--trust-checkpoint'):
        load_local(str(tmp_path / 'a.pth'))
    assert load_local(str(tmp_path / 'a.pth'), trust=True)['args'].lr == 1


@pytest.mark.parametrize('content', [b'', b'<html>', b'version https://git-lfs.github.com/spec/v1',
                                     b'PK\x03\x04', b'PK\x03\x04' + bytes(500), bytes(1000)])
def test_not_a_checkpoint(tmp_path, content):
    (tmp_path / 'a.pth').write_bytes(content)
    with pytest.raises(UserError, match="a.pth' is not a checkpoint .*copy or download it again"):
        load_local(str(tmp_path / 'a.pth'))


def test_missing_file_and_other_contents(tmp_path):
    with pytest.raises(UserError, match="no checkpoint file '.*none.pth'"):
        load_local(str(tmp_path / 'none.pth'))
    with pytest.raises(UserError, match='cannot read .*: Is a directory'):
        load_local(str(tmp_path))
    torch.save([1], tmp_path / 'a.pth')
    with pytest.raises(UserError, match='holds a list, not a dict of weights'):
        load_local(str(tmp_path / 'a.pth'))


def test_safetensors_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'safetensors', None)
    monkeypatch.setitem(sys.modules, 'safetensors.torch', None)
    with pytest.raises(UserError, match='pip install safetensors'):
        load_local(str(tmp_path / 'a.safetensors'))


def test_safetensors(tmp_path):
    safetensors = pytest.importorskip('safetensors.torch')
    weights = dict(a=torch.randn(3, 2), b=torch.arange(4))
    safetensors.save_file(weights, str(tmp_path / 'a.safetensors'))
    loaded = load_local(str(tmp_path / 'a.safetensors'))['state_dict']
    assert all(torch.equal(loaded[key], value) for key, value in weights.items())
    (tmp_path / 'b.safetensors').write_text('?')
    with pytest.raises(UserError, match='is not a safetensors file'):
        load_local(str(tmp_path / 'b.safetensors'))


@pytest.fixture
def schemes(monkeypatch):
    """The loaders of mmengine, put back afterwards."""
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))


def test_all_that_mmengine_loads_is_read_safely(tmp_path, made, schemes):
    load_safely()
    torch.save(dict(state_dict={}, evil=Call(os.mkdir, str(made))), tmp_path / 'a.pth')
    path = str(tmp_path / 'a.pth')
    from mmengine.model import BaseModule
    model = BaseModule(init_cfg=dict(type='Pretrained', checkpoint=path))
    for load in (lambda: CheckpointLoader.load_checkpoint(path), model.init_weights,
                 lambda: toy_runner(tmp_path / 'run', load_from=path).train(),
                 lambda: CheckpointLoader.load_checkpoint(f'{tmp_path.as_uri()[7:]}/a.pth')):
        with pytest.raises(UserError, match='is refused'):
            load()
    assert not made.exists()
    load_safely(trust=True)
    CheckpointLoader.load_checkpoint(path)
    assert made.exists()


@pytest.mark.parametrize('url', ['s3://bucket/a.pth', 'petrel:s3://a.pth', 'open-mmlab://resnet50',
                                 'mmcls://a', 'pavi://a'])
def test_other_places_need_trust(schemes, url):
    load_safely()
    with pytest.raises(UserError, match='download the file and give its path'):
        CheckpointLoader.load_checkpoint(url)


def test_from_the_web(tmp_path, made, schemes, monkeypatch):
    load_safely()
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))

    def download(url, path, progress):
        assert url == 'https://somewhere/a.pth?x=1'
        torch.save(dict(state_dict={}, evil=Call(os.mkdir, str(made))), path)

    monkeypatch.setattr(torch.hub, 'download_url_to_file', download)
    with pytest.raises(UserError, match='is refused'):
        CheckpointLoader.load_checkpoint('https://somewhere/a.pth?x=1')
    assert not made.exists()


def test_weights_alone_are_not_resumed_from(tmp_path, schemes):
    load_safely()
    torch.save(dict(state_dict=toy_runner(tmp_path / 'a').model.state_dict()), tmp_path / 'a.pth')
    with pytest.raises(UserError, match='holds weights only .*load_from=.* without --resume'):
        toy_runner(tmp_path / 'b', load_from=str(tmp_path / 'a.pth'), resume=True).train()
