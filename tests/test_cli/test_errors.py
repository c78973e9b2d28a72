import pytest

from mmhcnet import HcNet
from mmhcnet.cli import errors
from mmhcnet.cli.errors import explain, import_task, one_line_errors
from mmhcnet.errors import UserError, require_packages


def test_unknown_argument_names_the_nearest_and_all():
    with pytest.raises(TypeError) as caught:
        HcNet(drop_path=0.1)
    text = explain(caught.value)
    assert text.startswith("HcNet has no argument 'drop_path'; did you mean 'drop_path_rate'?")
    assert text.endswith('with_cp, init_cfg')


def test_unknown_argument_without_a_near_one():
    with pytest.raises(TypeError) as caught:
        HcNet(zzz=1)
    assert explain(caught.value).startswith("HcNet has no argument 'zzz'. It takes: arch, ")


@pytest.mark.parametrize('error, text', [
    (KeyError('no such key'), 'no such key'), (KeyError(), 'KeyError'),
    (ValueError('bad'), 'bad'), (ValueError(), 'ValueError')])
def test_other_errors_keep_their_message(error, text):
    assert explain(error) == text


def test_one_line():
    with pytest.raises(SystemExit, match='^Error: bad$'):
        with one_line_errors():
            raise ValueError('bad')


def test_several_lines_become_one():
    assert explain(RuntimeError('a\n\tb\n')) == 'a b'


@pytest.mark.parametrize('error, text', [
    (KeyError('img'), "key 'img' is missing"),
    (TypeError("DataLoader.__init__() got an unexpected keyword argument 'batchsize'"),
     "DataLoader has no argument 'batchsize'; did you mean 'batch_size'? It takes: dataset, "),
    (KeyError('AdamWW is not in the mmengine::optimizer registry. Please check'),
     "there is no optimizer of type 'AdamWW' in mmengine; did you mean 'AdamW'?")])
def test_the_nearest_name(error, text):
    assert explain(error).startswith(text)


def test_the_traceback_is_kept(tmp_path):
    with pytest.raises(SystemExit, match=r'^Error: division by zero \(the traceback is in .*\)$'):
        with one_line_errors(lambda: str(tmp_path)):
            1 / 0
    assert 'ZeroDivisionError' in (tmp_path / 'error.log').read_text()


def test_after_the_first_iteration_only_what_the_user_can_put_right():
    with pytest.raises(ZeroDivisionError):
        with one_line_errors(begun=lambda: True):
            1 / 0
    with pytest.raises(SystemExit, match='^Error: free some space$'):
        with one_line_errors(begun=lambda: True):
            raise UserError('free some space')


def test_missing_packages():
    require_packages('torch', 'json')
    with pytest.raises(SystemExit, match='^Error: this needs nopack and nopack2: '
                                         'pip install nopack nopack2$'):
        with one_line_errors():
            require_packages('nopack', 'torch', 'nopack2')


@pytest.mark.parametrize('scope', ['mmpretrain', 'mmdet', 'mmseg'])
def test_a_package_that_is_too_new_is_named_with_the_version_that_fits(monkeypatch, scope):
    def import_module(name):
        raise TypeError('NoneType takes no arguments')

    monkeypatch.setattr(errors, 'import_module', import_module)
    monkeypatch.setattr(errors, 'installed_versions', lambda: {'transformers': '5.24.0'})
    with pytest.raises(SystemExit) as caught:
        import_task(scope)
    assert f'import {scope}.models fails: NoneType takes no arguments' in caught.value.code
    assert 'transformers 5.24.0' in caught.value.code
    assert 'pip install "transformers<5"' in caught.value.code
