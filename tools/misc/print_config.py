"""Print a config with everything that it inherits, as tools/train.py would run it."""

from mmhcnet.cli.config import load_config
from mmhcnet.cli.errors import one_line_errors
from mmhcnet.cli.parser import add_config, make_parser


def main() -> None:
    parser = make_parser(__doc__)
    add_config(parser)
    args = parser.parse_args()
    with one_line_errors():
        print(load_config(args.config, args.cfg_options, work_dir=None).pretty_text)


if __name__ == '__main__':
    main()
