"""Turn a checkpoint of the HcNet or vHeat authors' code into one of ours.

Classifiers, and detectors and segmentors with a vHeat backbone: their heads' weights are kept.
"""

import argparse
import os

import torch

from mmhcnet import convert_state_dict
from mmhcnet.checkpoints.official import read_official
from mmhcnet.cli.errors import one_line_errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('src', help='checkpoint as published')
    parser.add_argument('dst', help='file to write; must not exist')
    parser.add_argument(
        '--ema', action='store_true', help='take the moving average of the weights (model_ema)'
    )
    args = parser.parse_args()
    with one_line_errors():
        if os.path.exists(args.dst):
            raise FileExistsError(f"'{args.dst}' exists: remove it or choose another name")
        if not os.path.isfile(args.src):
            raise FileNotFoundError(f"no checkpoint file '{args.src}'")
        converted = convert_state_dict(read_official(args.src), ema=args.ema)
    # Renamed when complete: no reader finds a half-written file.
    torch.save(dict(state_dict=converted), args.dst + '.tmp')
    os.replace(args.dst + '.tmp', args.dst)
    print(f'{len(converted)} weights -> {args.dst}')


if __name__ == '__main__':
    main()
