import argparse
import hashlib
import io
import os
import pathlib
import sys
import urllib.error

import pytest
import torch
from mmengine.runner import CheckpointLoader

from mmhcnet.checkpoints import formats
from mmhcnet.checkpoints.download import cached_path, digest_in
from mmhcnet.checkpoints.reader import load_local, load_safely
from mmhcnet.errors import UserError

from ..hostile import RAW, Call, archive
from ..toy import toy_runner


@pytest.fixture
def made(tmp_path):
    return tmp_path / 'made'


@pytest.mark.parametrize('zipped', [True, False])
def test_a_hostile_checkpoint_is_refused_in_one_line(zipped, tmp_path, made):
    torch.save(
        dict(state_dict=dict(a=torch.zeros(1)), evil=Call(os.mkdir, str(made))),
        tmp_path / 'a.pth',
        _use_new_zipfile_serialization=zipped,
    )
    with pytest.raises(UserError) as caught:
        load_local(str(tmp_path / 'a.pth'))
    assert not made.exists()
    assert 'is refused' in str(caught.value) and '--trust-checkpoint' in str(caught.value)
    assert '\n' not in str(caught.value)
    # It is live: trusted, it runs.
    load_local(str(tmp_path / 'a.pth'), trust=True)
    assert made.exists()


def test_trust_covers_no_pipe(tmp_path):
    os.mkfifo(tmp_path / 'a.pth')
    with pytest.raises(UserError, match='is a pipe'):
        load_local(str(tmp_path / 'a.pth'), trust=True)


def test_what_is_not_weights_is_converted_by_a_command(tmp_path):
    model = torch.nn.Linear(2, 2)
    torch.jit.script(model).save(str(tmp_path / 'a.pth'))
    with pytest.raises(
        UserError, match='is a TorchScript program and not weights: convert it .*: python -c'
    ) as caught:
        load_local(str(tmp_path / 'a.pth'))
    command = str(caught.value).split('python -c "')[1].removesuffix('"')
    exec(command.replace('weights.pth', str(tmp_path / 'weights.pth')))
    assert torch.equal(load_local(str(tmp_path / 'weights.pth'))['weight'], model.weight)
    (tmp_path / 'b.pth').write_bytes(bytes(257) + b'ustar' + bytes(300))
    with pytest.raises(UserError, match='is a tar archive and not weights: convert it .*python -c'):
        load_local(str(tmp_path / 'b.pth'))


def test_a_whole_runs_checkpoint(tmp_path):
    runner = toy_runner(
        tmp_path,
        custom_hooks=[dict(type='EMAHook')],
        param_scheduler=[
            dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=3),
            dict(type='MultiStepLR', milestones=[1, 2]),
        ],
    )
    runner.train()
    loaded = load_local(str(tmp_path / 'epoch_3.pth'))
    weights = runner.model.state_dict()
    assert set(loaded) >= {
        'meta',
        'state_dict',
        'ema_state_dict',
        'optimizer',
        'message_hub',
        'param_schedulers',
    }
    # With the moving average mmengine swaps the two.
    assert all(
        torch.equal(loaded['ema_state_dict'][f'module.{key}'], weights[key]) for key in weights
    )


def test_a_run_on_an_old_torch(tmp_path, monkeypatch, schemes):
    """Before 2.6 this package's own reader takes the place of torch's."""
    monkeypatch.setattr(formats, 'TORCH_IS_SOUND', False)
    load_safely()
    toy_runner(tmp_path, train_cfg=dict(max_epochs=1)).train()
    runner = toy_runner(tmp_path, train_cfg=dict(max_epochs=2), resume=True)
    runner.train()
    assert (runner.epoch, runner.iter) == (2, 12)


def test_the_refusal_names_what_is_not_weights(tmp_path):
    torch.save(dict(args=argparse.Namespace(lr=1)), tmp_path / 'a.pth')
    with pytest.raises(
        UserError, match="besides weights it holds 'argparse.Namespace'.*add --trust-checkpoint"
    ):
        load_local(str(tmp_path / 'a.pth'))
    assert load_local(str(tmp_path / 'a.pth'), trust=True)['args'].lr == 1


@pytest.mark.parametrize(
    'content',
    [
        b'',
        b'<html>',
        b'version https://git-lfs.github.com/spec/v1',
        b'PK\x03\x04',
        b'PK\x03\x04' + bytes(500),
        bytes(1000),
    ],
)
def test_not_a_checkpoint(tmp_path, content):
    (tmp_path / 'a.pth').write_bytes(content)
    with pytest.raises(UserError, match="a.pth' is not a checkpoint .*copy or download it again"):
        load_local(str(tmp_path / 'a.pth'))


@pytest.mark.parametrize('trust', [True, False])
@pytest.mark.parametrize(
    'content, found',
    [
        ([1], 'but a list where'),
        (None, 'but a NoneType where'),
        ('a', 'but a str where'),
        (torch.ones(1), 'but a Tensor where'),
        (dict(state_dict=None), 'but a NoneType where'),
        (dict(state_dict=[1]), 'but a list where'),
        ({1: torch.ones(1)}, 'a key of type int'),
        (dict(state_dict=dict(a=None)), "holds a NoneType as the weight 'a'"),
        (dict(state_dict=dict(a='x')), "holds a str as the weight 'a'"),
    ],
)
def test_contents_that_are_not_weights(tmp_path, content, found, trust):
    torch.save(content, tmp_path / 'a.pth')
    with pytest.raises(UserError, match=found):
        load_local(str(tmp_path / 'a.pth'), trust=trust)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(UserError, match="no checkpoint file '.*none.pth'"):
        load_local(str(tmp_path / 'none.pth'))
    with pytest.raises(UserError, match='is a folder'):
        load_local(str(tmp_path))


def test_the_text_of_a_config_is_left_out(tmp_path, made):
    text = f"import os; os.mkdir({str(made)!r})"
    torch.save(
        dict(
            state_dict=dict(a=torch.ones(1)),
            meta=dict(config=text, cfg=text, seed=1),
            message_hub=dict(runtime_info=dict(cfg=text, iter=3)),
        ),
        tmp_path / 'a.pth',
    )
    loaded = load_local(str(tmp_path / 'a.pth'))
    assert loaded['meta'] == dict(seed=1)
    assert loaded['message_hub'] == dict(runtime_info=dict(iter=3))


def test_safetensors_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'safetensors', None)
    monkeypatch.setitem(sys.modules, 'safetensors.torch', None)
    (tmp_path / 'a.safetensors').write_bytes(b'\x02' + bytes(7) + b'{}')
    with pytest.raises(UserError, match='pip install safetensors'):
        load_local(str(tmp_path / 'a.safetensors'))


def test_safetensors(tmp_path):
    safetensors = pytest.importorskip('safetensors.torch')
    weights = dict(a=torch.randn(3, 2), b=torch.arange(4))
    safetensors.save_file(weights, str(tmp_path / 'a.safetensors'))
    loaded = load_local(str(tmp_path / 'a.safetensors'))['state_dict']
    assert all(torch.equal(loaded[key], value) for key, value in weights.items())
    (tmp_path / 'b.safetensors').write_text('?')
    with pytest.raises(UserError, match='is not a checkpoint that torch can read'):
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
    for load in (
        lambda: CheckpointLoader.load_checkpoint(path),
        model.init_weights,
        lambda: toy_runner(tmp_path / 'run', load_from=path).train(),
        lambda: CheckpointLoader.load_checkpoint(f'{tmp_path.as_uri()[7:]}/a.pth'),
    ):
        with pytest.raises(UserError, match='is refused'):
            load()
    assert not made.exists()
    load_safely(trust=True)
    CheckpointLoader.load_checkpoint(path)
    assert made.exists()


@pytest.mark.parametrize('url', ['s3://bucket/a.pth', 'petrel:s3://a.pth', 'pavi://a'])
def test_other_places_need_trust(schemes, url):
    load_safely()
    with pytest.raises(UserError, match='download the file and give its path'):
        CheckpointLoader.load_checkpoint(url)


@pytest.fixture
def web(tmp_path, schemes, monkeypatch):
    """Address -> content; what was downloaded is listed under the key None."""
    contents = {None: []}
    load_safely()
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))

    def download(url, path, progress):
        contents[None].append(url)
        if url not in contents:
            raise urllib.error.URLError('Name or service not known')
        pathlib.Path(path).write_bytes(contents[url])

    monkeypatch.setattr(torch.hub, 'download_url_to_file', download)
    return contents


def saved(**weights):
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    return buffer.getvalue()


def test_from_the_web(web, made):
    web['https://somewhere/a.pth?x=1'] = saved(state_dict={}, evil=Call(os.mkdir, str(made)))
    with pytest.raises(UserError, match='is refused'):
        CheckpointLoader.load_checkpoint('https://somewhere/a.pth?x=1')
    assert not made.exists()
    # What is not there at all.
    with pytest.raises(UserError, match="cannot download 'https://somewhere/b.pth' .*Name or serv"):
        CheckpointLoader.load_checkpoint('https://somewhere/b.pth')


def test_a_download_is_kept_under_its_address(web):
    for number in (1, 2, 1, 2):
        url = f'https://place{number}/a.pth'
        web[url] = saved(a=torch.tensor([number]))
        assert CheckpointLoader.load_checkpoint(url)['a'] == number
    assert len(web[None]) == 2
    assert cached_path('https://b/a.pth?v=1') != cached_path('https://b/a.pth?v=2')


def test_a_download_that_was_cut_is_not_kept(web, tmp_path):
    url, content = 'https://somewhere/a.pth', saved(a=torch.ones(10))
    for part in (b'', content[:20], content[:-10], b'<html>sign in</html>'):
        web[url] = part
        with pytest.raises(UserError, match='is not an intact checkpoint .*: try again'):
            CheckpointLoader.load_checkpoint(url)
        assert not os.listdir(tmp_path / 'home' / 'hub' / 'checkpoints')
    web[url] = content
    assert CheckpointLoader.load_checkpoint(url)['a'].sum() == 10


def test_a_digest_in_the_name_is_checked(web, tmp_path):
    content = saved(a=torch.ones(1))
    digest = hashlib.sha256(content).hexdigest()[:8]
    url = f'https://somewhere/a-{digest}.pth'
    web[url] = saved(a=torch.zeros(1))
    with pytest.raises(UserError, match='has another sha256 than its name states'):
        CheckpointLoader.load_checkpoint(url)
    folder = tmp_path / 'home' / 'hub' / 'checkpoints'
    assert not os.listdir(folder)
    web[url] = content
    assert CheckpointLoader.load_checkpoint(url)['a'] == 1
    # torch's own place: what a cluster without internet was given there is found, unless it is
    # another file.
    assert os.listdir(folder) == [f'a-{digest}.pth']
    (folder / f'a-{digest}.pth').write_bytes(saved(a=torch.zeros(1)))
    assert CheckpointLoader.load_checkpoint(url)['a'] == 1


@pytest.mark.parametrize(
    'name, digest',
    [
        ('resnet50-0676ba61.pth', '0676ba61'),
        ('a.pth', None),
        ('a-1.pth', None),
        ('model_20200130-047c8118.pth', '047c8118'),
        ('model-20200130.pth', None),
        ('a-0676ba6.pth', None),
        ('a-' + 'f' * 64 + '.safetensors', 'f' * 64),
    ],
)
def test_digest(name, digest):
    assert digest_in(name) == digest


def test_weights_by_name(web):
    from mmengine.runner.checkpoint import (
        get_external_models,
        get_mmcls_models,
        get_torchvision_models,
    )

    for prefix, models, name in (
        ('torchvision', get_torchvision_models(), 'resnet50'),
        ('open-mmlab', get_external_models(), 'vgg16_caffe'),
        ('openmmlab', get_external_models(), 'resnest50'),
    ):
        web[None].clear()
        with pytest.raises(UserError, match='cannot download'):
            CheckpointLoader.load_checkpoint(f'{prefix}://{name}')
        assert web[None] == [models[name]]
        with pytest.raises(UserError, match=f"has no weights '{name}x'; did you mean '{name}"):
            CheckpointLoader.load_checkpoint(f'{prefix}://{name}x')
    url = get_mmcls_models()['vgg11']
    digest = digest_in(url)
    web[url] = saved(state_dict={'backbone.a': torch.ones(1), 'head.b': torch.ones(1)})
    if digest:
        with pytest.raises(UserError, match='another sha256'):
            CheckpointLoader.load_checkpoint('mmcls://vgg11')
    else:
        assert list(CheckpointLoader.load_checkpoint('mmcls://vgg11')['state_dict']) == ['a']


def test_the_loader_of_any_subclass_is_ours(tmp_path, made, schemes):

    class Other(CheckpointLoader):
        """A project's own."""

    load_safely()
    archive(tmp_path / 'a.pth', RAW['renamed module'](str(made)))
    for name in (str(tmp_path / 'a.pth'), f'{tmp_path}/./a.pth'):
        with pytest.raises(UserError):
            Other.load_checkpoint(name)
    assert not made.exists()


def test_weights_alone_are_not_resumed_from(tmp_path, schemes):
    load_safely()
    torch.save(dict(state_dict=toy_runner(tmp_path / 'a').model.state_dict()), tmp_path / 'a.pth')
    with pytest.raises(UserError, match='holds weights only .*load_from=.* without --resume'):
        toy_runner(tmp_path / 'b', load_from=str(tmp_path / 'a.pth'), resume=True).train()
