"""Arguments that several tools take."""

import argparse
from collections.abc import Callable
from pathlib import Path

from mmengine.config import DictAction


class _Options(DictAction):
    """``--cfg-options KEY=VALUE ...``"""

    def __call__(self, parser, namespace, values: list[str], option_string=None):
        for value in values:
            if '=' not in value or value.startswith('='):
                parser.error(f"{option_string} takes KEY=VALUE, got '{value}'")
            if value.partition('=')[2].lstrip().startswith(('dict(', '{')):
                parser.error(
                    f'{option_string} takes no dict: name each key in it, as in '
                    f"{value.partition('=')[0]}.KEY=VALUE"
                )
        super().__call__(parser, namespace, values, option_string)


def at_least(least: int) -> Callable[[str], int]:
    """The type of an argument: a whole number that is not smaller."""

    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f'must be at least {least}, got {text}')
        return int(text)

    # argparse names it where the text is no number.
    number.__name__ = 'int'
    return number


class _Shape(argparse.Action):
    """``--shape H W``, or one number for both: (H, W)."""

    def __call__(self, parser, namespace, values: list[int], option_string=None):
        if min(values) < 1:
            parser.error(f'{option_string} takes pixels, got {min(values)}')
        if len(values) > 2:
            parser.error(f'{option_string} takes H and W, or one number for both')
        setattr(namespace, self.dest, (values[0], values[-1]))


def make_parser(description: str) -> argparse.ArgumentParser:
    """A parser that shows the description as it is written."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_config(parser: argparse.ArgumentParser, help: str = 'config file') -> None:
    """``config``, and ``--cfg-options`` to override settings of it."""
    parser.add_argument('config', help=help)
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=_Options,
        metavar='KEY=VALUE',
        help='override settings of the config, e.g. '
        'train_dataloader.batch_size=4 model.backbone.arch=small',
    )


def add_shape(parser: argparse.ArgumentParser, help: str) -> None:
    """``--shape H W``; the parsed value is (H, W), or None."""
    parser.add_argument(
        '--shape', type=int, nargs='+', action=_Shape, metavar=('H', 'W'), help=help
    )


def add_compile(parser: argparse.ArgumentParser) -> None:
    """``--compile [graphs]``; the parsed value is None, 'blocks' or 'graphs'."""
    parser.add_argument(
        '--compile',
        nargs='?',
        const='blocks',
        choices=['blocks', 'graphs'],
        help='compile the blocks of the backbone with torch.compile; "graphs": and launch them as '
        'CUDA graphs, which takes a GPU and images of one size',
    )


def add_run(parser: argparse.ArgumentParser) -> None:
    """What training and testing take."""
    parser.add_argument(
        '--work-dir',
        help='folder for logs and checkpoints (default: work_dirs/<name of the config>)',
    )
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision (GPU)')
    add_compile(parser)
    parser.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help='load checkpoints that hold more than weights and may run programs',
    )
    parser.add_argument(
        '--no-data-check',
        action='store_true',
        help='do not look at the data before the run (tools/misc/prepare_data.py '
        'looks at all of it)',
    )
    parser.add_argument(
        '--traceback',
        action='store_true',
        help='on an error show the full traceback (MMHCNET_TRACEBACK=1 does it for every tool)',
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='job launcher',
    )
    # torch.distributed.launch passes it; torchrun sets the variable instead.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def add_models(parser: argparse.ArgumentParser, layers: bool = False) -> None:
    """``--model CONFIG CKPT``, repeatable; with ``layers`` each may name a layer."""
    what, values = "config and checkpoint, or 'none' for untrained weights", ('CONFIG', 'CKPT')
    if layers:
        what += ', and the name of a layer (default: the last norm or stage of the backbone)'
        values = ('CONFIG CKPT', 'LAYER')
    parser.add_argument(
        '--model',
        nargs='+' if layers else 2,
        action='append',
        required=True,
        metavar=values,
        dest='models',
        help=f'{what}; repeatable',
    )


def add_picture(parser: argparse.ArgumentParser, out: str, help: str) -> None:
    """``--out`` for what is drawn of a photo, and the ``--size`` of the photo."""
    parser.add_argument('--out', type=Path, default=Path(out), help=f'{help} (%(default)s)')
    parser.add_argument(
        '--size',
        type=int,
        default=224,
        help='shorter side that the photo is resized to (%(default)s)',
    )
