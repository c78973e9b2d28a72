import pytest

from mmhcnet.checkpoints.locate import resume_of_attempt
from mmhcnet.errors import UserError


@pytest.mark.parametrize('count, found, resume, expected', [
    (0, False, None, None), (0, True, 'auto', 'auto'), (0, True, 'a.pth', 'a.pth'),
    (1, False, None, None), (1, True, None, 'auto'), (1, True, 'a.pth', 'auto'),
    (1, False, 'a.pth', 'a.pth')])
def test_what_an_attempt_resumes_from(tmp_path, monkeypatch, count, found, resume, expected):
    monkeypatch.setenv('TORCHELASTIC_RESTART_COUNT', str(count))
    monkeypatch.setenv('TORCHELASTIC_MAX_RESTARTS', '3')
    if found:
        (tmp_path / 'epoch_1.pth').touch()
    assert resume_of_attempt(str(tmp_path), resume) == expected


def test_a_run_that_may_be_restarted_does_not_mix_with_an_earlier_one(tmp_path, monkeypatch):
    (tmp_path / 'epoch_1.pth').touch()
    assert resume_of_attempt(str(tmp_path), None) is None
    monkeypatch.setenv('TORCHELASTIC_MAX_RESTARTS', '3')
    with pytest.raises(UserError, match='with MAX_RESTARTS add --resume .*another --work-dir'):
        resume_of_attempt(str(tmp_path), None)
