"""Make the demo data set of handwritten digits; nothing is downloaded."""

import argparse
import sys

from mmhcnet.datasets.digits import write_digits


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', default='data/digits', help='folder to make (%(default)s)')
    args = parser.parse_args()
    try:
        write_digits(args.out)
    except (FileExistsError, ImportError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit('\ninterrupted; no data set was written')


if __name__ == '__main__':
    main()
