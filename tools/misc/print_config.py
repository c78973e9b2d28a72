"""Print a config with everything that it inherits, as tools/train.py would run it."""
import argparse

from mmengine.config import DictAction

from mmhcnet.cli.config import load_config
from mmhcnet.cli.errors import one_line_errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
                        help='override settings of the config')
    args = parser.parse_args()
    with one_line_errors():
        print(load_config(args.config, args.cfg_options, work_dir=None).pretty_text)


if __name__ == '__main__':
    main()
