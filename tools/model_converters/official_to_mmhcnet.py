"""Turn a checkpoint of the HcNet authors' code into one of ours."""
import argparse
import os

import torch

from mmhcnet import convert_state_dict
from mmhcnet.engine.errors import one_line_errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('src', help='checkpoint as published')
    parser.add_argument('dst', help='file to write; must not exist')
    args = parser.parse_args()
    with one_line_errors():
        if os.path.exists(args.dst):
            raise FileExistsError(f"'{args.dst}' exists: remove it or choose another name")
        if not os.path.isfile(args.src):
            raise FileNotFoundError(f"no checkpoint file '{args.src}'")
        checkpoint = torch.load(args.src, map_location='cpu', weights_only=True)
        for key in ('model', 'state_dict'):
            checkpoint = checkpoint.get(key, checkpoint)
        converted = convert_state_dict(checkpoint)
    # Renamed when complete: nobody finds a half-written file.
    torch.save(dict(state_dict=converted), args.dst + '.tmp')
    os.replace(args.dst + '.tmp', args.dst)
    print(f'{len(converted)} weights -> {args.dst}')


if __name__ == '__main__':
    main()
