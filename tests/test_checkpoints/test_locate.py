import pytest
from mmengine.config import ConfigDict

from mmhcnet.checkpoints.hook import CheckpointHook
from mmhcnet.checkpoints.locate import NAMES, newest_intact, place_of, resume_of_attempt
from mmhcnet.errors import UserError

from ..toy import toy_runner


def config(work_dir, **hook):
    return ConfigDict(work_dir=str(work_dir), default_hooks=dict(checkpoint=hook or None))


@pytest.mark.parametrize(
    'count, found, resume, expected',
    [
        (0, False, None, None),
        (0, True, 'auto', 'auto'),
        (0, True, 'a.pth', 'a.pth'),
        (1, False, None, None),
        (1, True, None, 'auto'),
        (1, True, 'a.pth', 'auto'),
        (1, False, 'a.pth', 'a.pth'),
    ],
)
def test_what_an_attempt_resumes_from(tmp_path, monkeypatch, count, found, resume, expected):
    monkeypatch.setenv('TORCHELASTIC_RESTART_COUNT', str(count))
    monkeypatch.setenv('TORCHELASTIC_MAX_RESTARTS', '3')
    if found:
        (tmp_path / 'epoch_1.pth').touch()
    assert resume_of_attempt(config(tmp_path), resume) == expected


def test_a_run_that_may_be_restarted_does_not_mix_with_an_earlier_one(tmp_path, monkeypatch):
    (tmp_path / 'epoch_1.pth').touch()
    assert resume_of_attempt(config(tmp_path), None) is None
    monkeypatch.setenv('TORCHELASTIC_MAX_RESTARTS', '3')
    with pytest.raises(UserError, match='with MAX_RESTARTS add --resume .*another --work-dir'):
        resume_of_attempt(config(tmp_path), None)


@pytest.mark.parametrize(
    'hook',
    [
        {},
        dict(filename_tmpl='mine_{}.pth'),
        dict(out_dir='OUT'),
        dict(out_dir='OUT', filename_tmpl='mine_{}.pth'),
    ],
)
def test_a_restart_finds_what_the_hook_has_written(tmp_path, monkeypatch, hook):
    hook = {key: value.replace('OUT', str(tmp_path / 'out')) for key, value in hook.items()}
    work_dir = tmp_path / 'run'
    toy_runner(work_dir, checkpoint=hook, train_cfg=dict(max_epochs=1)).train()
    path, skipped = newest_intact(*place_of(str(work_dir), **hook))
    assert path is not None and not skipped
    monkeypatch.setenv('TORCHELASTIC_RESTART_COUNT', '1')
    assert resume_of_attempt(config(work_dir, **hook), None) == 'auto'
    again = toy_runner(work_dir, checkpoint=hook, train_cfg=dict(max_epochs=2), resume=True)
    again.train()
    assert again._load_from == str(path)


@pytest.mark.parametrize('kind', ['mmhcnet.CheckpointHook', CheckpointHook])
@pytest.mark.parametrize('default', [None, {}])
def test_a_hook_besides_the_default_ones(tmp_path, monkeypatch, kind, default):
    hook = dict(out_dir=str(tmp_path / 'out'), filename_tmpl='mine_{}.pth')
    folder = tmp_path / 'out' / 'run'
    folder.mkdir(parents=True)
    (folder / 'mine_3.pth').touch()
    cfg = ConfigDict(
        work_dir=str(tmp_path / 'run'),
        default_hooks=dict(checkpoint=default),
        custom_hooks=[dict(type='EMAHook'), dict(type=kind, **hook)],
    )
    monkeypatch.setenv('TORCHELASTIC_RESTART_COUNT', '1')
    assert resume_of_attempt(cfg, None) == 'auto'
    monkeypatch.setenv('TORCHELASTIC_RESTART_COUNT', '0')
    monkeypatch.setenv('TORCHELASTIC_MAX_RESTARTS', '3')
    with pytest.raises(UserError, match=f"'{folder}' holds checkpoints of an earlier run"):
        resume_of_attempt(cfg, None)


def test_no_configured_hook(tmp_path):
    assert place_of(str(tmp_path)) == (str(tmp_path), NAMES)
    assert resume_of_attempt(ConfigDict(work_dir=str(tmp_path)), None) is None
