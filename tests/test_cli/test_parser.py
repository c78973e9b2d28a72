import pytest

from mmhcnet.cli.parser import add_config, add_models, add_shape, make_parser


@pytest.fixture
def parser():
    parser = make_parser('What it does.\n\n  As it is written.')
    add_config(parser)
    add_shape(parser, 'image size')
    return parser


def test_options_keep_their_types(parser):
    args = parser.parse_args(['a.py', '--cfg-options', 'a.b=1', 'c=[2,3]', 'd=x=y'])
    assert args.cfg_options == {'a.b': 1, 'c': [2, 3], 'd': 'x=y'}


@pytest.mark.parametrize('option', ['a.b', '=1'])
def test_options_without_key_or_value(parser, option, capsys):
    with pytest.raises(SystemExit):
        parser.parse_args(['a.py', '--cfg-options', 'a=1', option])
    assert f"--cfg-options takes KEY=VALUE, got '{option}'" in capsys.readouterr().err


@pytest.mark.parametrize(
    'words, shape', [([], None), (['--shape', '64'], (64, 64)), (['--shape', '64', '96'], (64, 96))]
)
def test_shape(parser, words, shape):
    assert parser.parse_args(['a.py', *words]).shape == shape


def test_shape_of_three(parser, capsys):
    with pytest.raises(SystemExit):
        parser.parse_args(['a.py', '--shape', '1', '2', '3'])
    assert '--shape takes H and W, or one number for both' in capsys.readouterr().err


def test_models_are_repeatable():
    parser = make_parser('')
    add_models(parser)
    args = parser.parse_args(['--model', 'a.py', 'none', '--model', 'b.py', 'b.pth'])
    assert args.models == [['a.py', 'none'], ['b.py', 'b.pth']]


def test_the_description_is_shown_as_it_is(parser):
    assert '\n\n  As it is written.\n' in parser.format_help()
