import os
import re

import pytest
from mmengine import registry

from mmhcnet import HcNet
from mmhcnet.cli import errors
from mmhcnet.cli.config import load_config
from mmhcnet.cli.errors import FirstStep, explain, import_task, one_line_errors
from mmhcnet.errors import UserError, require_packages


def test_unknown_argument_names_the_nearest_and_all():
    with pytest.raises(TypeError) as caught:
        HcNet(drop_path=0.1)
    text = explain(caught.value)
    assert text.startswith("HcNet has no argument 'drop_path'; did you mean 'drop_path_rate'?")
    assert text.endswith('with_cp, recompute, mask_token, init_cfg')


def test_unknown_argument_without_a_near_one():
    with pytest.raises(TypeError) as caught:
        HcNet(zzz=1)
    assert explain(caught.value).startswith("HcNet has no argument 'zzz'. It takes: arch, ")


@pytest.mark.parametrize(
    'error, text',
    [
        (KeyError('no such key'), 'no such key'),
        (KeyError(), 'KeyError'),
        (ValueError('bad'), 'bad'),
        (ValueError(), 'ValueError'),
    ],
)
def test_other_errors_keep_their_message(error, text):
    assert explain(error) == text


def test_one_line():
    with pytest.raises(SystemExit, match='^Error: bad$'):
        with one_line_errors():
            raise ValueError('bad')


def test_several_lines_become_one():
    assert explain(RuntimeError('a\n\tb\n')) == 'a b'


@pytest.mark.parametrize(
    'error, text',
    [
        (KeyError('img'), "key 'img' is missing"),
        (
            TypeError("DataLoader.__init__() got an unexpected keyword argument 'batchsize'"),
            "DataLoader has no argument 'batchsize'; did you mean 'batch_size'? It takes: "
            "dataset, ",
        ),
        (
            KeyError('AdamWW is not in the mmengine::optimizer registry. Please check'),
            "there is no optimizer of type 'AdamWW' in mmengine; did you mean 'AdamW'?",
        ),
    ],
)
def test_the_nearest_name(error, text):
    assert explain(error).startswith(text)


def test_the_traceback_is_kept(tmp_path):
    with pytest.raises(SystemExit, match=r'^Error: division by zero \(the traceback is in .*\)$'):
        with one_line_errors(lambda: str(tmp_path)):
            1 / 0
    assert 'ZeroDivisionError' in (tmp_path / 'error.log').read_text()


def test_after_the_first_iteration_only_what_the_user_can_fix():
    with pytest.raises(ZeroDivisionError):
        with one_line_errors(begun=lambda: True):
            1 / 0
    with pytest.raises(SystemExit, match='^Error: free some space$'):
        with one_line_errors(begun=lambda: True):
            raise UserError('free some space')


def test_the_first_validation_counts_as_a_first_step():
    step = FirstStep()
    assert not step.done
    step.after_train_iter(None, 0)
    assert step.done
    step.before_val(None)
    assert not step.done, 'the metric may fail on what the user wrote'
    step.after_val(None)
    step.before_val(None)
    assert step.done, 'a second validation has no such excuse'


def test_a_test_has_begun_at_its_end():
    step = FirstStep()
    step.after_test_iter(None, 0)
    assert not step.done
    step.after_test(None)
    assert step.done


def test_missing_packages():
    require_packages('torch', 'json')
    with pytest.raises(
        SystemExit, match='^Error: this needs nopack and nopack2: pip install nopack nopack2$'
    ):
        with one_line_errors():
            require_packages('nopack', 'torch', 'nopack2')


@pytest.mark.parametrize('scope', ['mmpretrain', 'mmdet', 'mmseg'])
def test_a_package_that_is_too_new_is_named_with_the_version_that_fits(monkeypatch, scope):
    def import_module(name):
        raise TypeError('NoneType takes no arguments')

    monkeypatch.setattr(errors, 'import_module', import_module)
    monkeypatch.setattr(errors, 'installed_versions', lambda: {'transformers': '5.24.0'})
    with pytest.raises(SystemExit) as caught:
        with one_line_errors():
            import_task(scope)
    assert f'import {scope}.models fails: NoneType takes no arguments' in caught.value.code
    assert 'transformers 5.24.0' in caught.value.code
    assert 'pip install "transformers<5"' in caught.value.code


def ended(tmp_path, error, config=None, folder='run', **settings):
    """The line that a run ends with."""
    with pytest.raises(SystemExit) as caught:
        with one_line_errors(
            log_dir=lambda: str(tmp_path / folder), config=lambda: config, **settings
        ):
            error()
    return caught.value.code


def fail(text='bad', cls=ValueError):
    def error():
        raise cls(text)

    return error


@pytest.mark.parametrize('cls', [ValueError, UserError])
def test_the_traceback_of_a_run_lands_in_a_file(tmp_path, cls, monkeypatch):
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path))
    # There is no folder of the run yet: the line says where.
    line = ended(tmp_path, fail(cls=cls))
    path = re.fullmatch(r'Error: bad \(the traceback is in (.*)\)', line)[1]
    assert path.startswith(str(tmp_path)) and not (tmp_path / 'run').exists()
    assert f'{cls.__name__}: bad' in open(path).read()
    (tmp_path / 'run').mkdir()
    line = ended(tmp_path, fail(cls=cls))
    assert line == f'Error: bad (the traceback is in {tmp_path}/run/error.log)'
    assert f'{cls.__name__}: bad' in (tmp_path / 'run/error.log').read_text()
    # After the first iteration too, where the whole is shown besides.
    (tmp_path / 'run/error.log').unlink()
    with pytest.raises(ZeroDivisionError):
        with one_line_errors(log_dir=lambda: str(tmp_path / 'run'), begun=lambda: True):
            1 / 0
    assert 'ZeroDivisionError' in (tmp_path / 'run/error.log').read_text()


def test_of_several_ranks_one_writes(tmp_path, monkeypatch):
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path))
    monkeypatch.setenv('WORLD_SIZE', '2')
    monkeypatch.setenv('RANK', '1')
    assert ended(tmp_path, fail('nowhere')) == 'Error: nowhere'
    assert not list(tmp_path.iterdir())
    (tmp_path / 'run').mkdir()
    path = tmp_path / 'run/error.log'
    path.write_text('of an earlier run')
    os.utime(path, (0, 0))
    # The first one to fail, whichever it is.
    where = f' (the traceback is in {path})'
    assert ended(tmp_path, fail('first')) == f'Error: first{where}'
    monkeypatch.setenv('RANK', '0')
    assert ended(tmp_path, fail('second')) == f'Error: second{where}'
    assert 'first' in path.read_text() and 'second' not in path.read_text()


def test_a_disk_that_takes_no_file(tmp_path, monkeypatch):
    (tmp_path / 'run').mkdir()

    def full(*args, **kwargs):
        raise OSError('No space left on device')

    monkeypatch.setattr(errors, 'write_file', full)
    monkeypatch.setattr('tempfile.NamedTemporaryFile', full)
    assert ended(tmp_path, fail()) == 'Error: bad'


def test_the_whole_traceback(tmp_path, monkeypatch):
    for settings in (dict(whole=lambda: True), {}):
        with pytest.raises(ValueError, match='bad'):
            with one_line_errors(log_dir=lambda: str(tmp_path), **settings):
                raise ValueError('bad')
        assert 'ValueError: bad' in (tmp_path / 'error.log').read_text()
        monkeypatch.setenv('MMHCNET_TRACEBACK', '1')
    monkeypatch.setenv('MMHCNET_TRACEBACK', '0')
    assert ended(tmp_path, fail(), folder='').startswith('Error: bad')


def config_of(tmp_path, text, name='own.py'):
    (tmp_path / name).write_text(text)
    return str(tmp_path / name)


@pytest.mark.parametrize(
    'text, line',
    [
        ('a = 1\nmodel = dict(\n    b=c)\n', 3),
        ('a = 1\nmodel = dict(\n    b=1\nc = 2\n', 2),
        ("a = 1\n_base_ = ['./base.py']\n", None),
        ("a = 1\n_base_ = './no_base.py'\n", 2),
    ],
)
def test_the_line_of_a_config_that_cannot_be_read(tmp_path, text, line):
    path = config_of(tmp_path, text)
    config_of(tmp_path, 'x = 1\ny = dict(\n    z=1 / 0)\n', 'base.py')
    at = f'{path}:{line}' if line else f'{tmp_path}/base.py:3'
    assert ended(tmp_path, lambda: load_config(path, None, None), path).startswith(
        f"Error: {at}: cannot read the config '{path}': "
    )


@registry.MODELS.register_module()
class ToyPart:
    def __init__(self, width=1, inner=None):
        if width not in (1, 2):
            raise ValueError(f'width must be 1 or 2, got {width}')
        self.inner = registry.MODELS.build(inner) if inner else None


@pytest.mark.parametrize(
    'text, line, message',
    [
        ("model = dict(\n    type='ToyPart',\n    widthh=2)", 3, "did you mean 'width'?"),
        ("model = dict(\n    type='ToyPart',\n    width=3)", 3, 'width must be 1 or 2, got 3'),
        (
            "model = dict(\n    type='ToyPart', width=2, inner=dict(\n        type='ToyPart',\n"
            "        width=3))",
            4,
            'width must be 1 or 2',
        ),
        ("wide = 3\nmodel = dict(type='ToyPart',\n    width=wide)", 3, 'width must be 1 or 2'),
        ("model = {\n    'type': 'ToyPart',\n    'width': 3}", 3, 'width must be 1 or 2'),
        ("model = dict(\n    type='ToyPar')", 2, "did you mean 'ToyPart'?"),
    ],
)
@pytest.mark.parametrize('inherited', [False, True])
def test_the_line_of_a_setting(tmp_path, text, line, message, inherited):
    path = own = config_of(tmp_path, text)
    if inherited:
        own = config_of(tmp_path, "# Nothing else.\n_base_ = 'own.py'\nwidth = 7", 'child.py')
    cfg = load_config(own, None, None)
    shown = ended(tmp_path, lambda: registry.MODELS.build(cfg.model), own)
    assert shown.startswith(f'Error: {path}:{line}: ') and message in shown


def test_what_an_option_sets_is_not_looked_for_in_the_file(tmp_path):
    path = config_of(tmp_path, "model = dict(\n    type='ToyPart',\n    width=2)")
    cfg = load_config(path, {'model.width': 3}, None)
    assert ended(tmp_path, lambda: registry.MODELS.build(cfg.model), path).startswith(
        'Error: width must be 1 or 2'
    )


def test_the_line_of_a_word_that_the_message_quotes(tmp_path):
    path = config_of(tmp_path, "data = dict(\n    data_root='nowhere')")
    assert ended(tmp_path, fail("the data path 'nowhere' does not exist"), path).startswith(
        f'Error: {path}:2: the data path'
    )
    assert ended(tmp_path, fail("the data path 'elsewhere' does not exist"), path).startswith(
        'Error: the data path'
    )


@pytest.mark.parametrize('name, text', [('own.json', '{"a": 1}'), ('own.yaml', 'a: 1')])
def test_configs_that_are_no_python(tmp_path, name, text):
    assert ended(tmp_path, fail(), config_of(tmp_path, text, name)).startswith('Error: bad')
