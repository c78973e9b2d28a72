import pytest

from mmhcnet import HcNet
from mmhcnet.engine.errors import explain, one_line_errors, require_packages


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


def test_other_exceptions_pass():
    with pytest.raises(ZeroDivisionError):
        with one_line_errors():
            1 / 0


def test_missing_packages():
    require_packages('torch', 'json')
    with pytest.raises(SystemExit, match='^Error: this needs nopack and nopack2: '
                                         'pip install nopack nopack2$'):
        with one_line_errors():
            require_packages('nopack', 'torch', 'nopack2')
