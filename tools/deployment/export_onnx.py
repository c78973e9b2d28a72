"""Export a model to ONNX and compare it with torch in onnxruntime.

A classifier (class logits) and a segmentor (logits of every pixel) are exported in full, of a
detector backbone and neck: its boxes and masks are made after the pyramid of maps. Batch, height
and width are dynamic; with a vHeat, which is folded for one image size, only the batch is. The
graph takes normalised images; the mean, deviation and channel order are printed.
"""

import argparse
import os
import warnings

import torch
from mmengine.config import Config

from mmhcnet.cli.config import load_config
from mmhcnet.cli.errors import one_line_errors
from mmhcnet.cli.parser import add_config, add_shape, make_parser
from mmhcnet.errors import require_packages
from mmhcnet.inference.export import (
    TOLERANCE,
    check_onnx,
    check_shapes,
    export_onnx,
    exportable,
    has_fixed_size,
)

SHAPES = {'mmpretrain': (224, 224), 'mmdet': (256, 320), 'mmseg': (512, 512)}
# Those that torch's exporter knows; older ones of torch end at 17.
OPSETS = (9, 20)
WHAT = {
    'mmpretrain': 'classifier',
    'mmseg': 'segmentor, logits of every pixel',
    'mmdet': "the detector's backbone and neck",
}


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    add_config(parser)
    parser.add_argument('checkpoint', nargs='?', help='weights (default: random ones)')
    parser.add_argument('--out', required=True, help='ONNX file to write')
    add_shape(
        parser,
        help='image size: the size of a vHeat, and for others the one that is '
        'traced (default: 224 224 for classification, 256 320 for detection, '
        '512 512 for segmentation)',
    )
    parser.add_argument(
        '--opset',
        type=int,
        default=17,
        choices=range(OPSETS[0], OPSETS[1] + 1),
        metavar='N',
        help="version of ONNX's operator set, from "
        f'{OPSETS[0]} to {OPSETS[1]} (default: %(default)s)',
    )
    args = parser.parse_args()
    if os.path.isdir(args.out):
        parser.error(f"--out is a file to write, and '{args.out}' is a folder")
    return args


def normalisation(cfg: Config) -> str:
    settings = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    swapped = settings.get('to_rgb') or settings.get('bgr_to_rgb')
    channels = cfg.model.backbone.get('in_channels', 3)
    order = (
        ('RGB' if swapped else 'BGR')
        if channels == 3
        else ('grey' if channels == 1 else f'{channels}-channel')
    )
    return f"{order} image, minus {settings.get('mean')}, divided by {settings.get('std')}"


def main() -> None:
    args = parse_args()
    torch.manual_seed(0)
    with one_line_errors():
        require_packages('onnx', 'onnxruntime')
        cfg = load_config(args.config, args.cfg_options, work_dir=None)
        shape = args.shape or SHAPES.get(cfg.get('default_scope'))
        module = exportable(cfg, args.checkpoint, shape)
    fixed = has_fixed_size(module)
    # Renamed when it is checked: a file that is there is one that agrees with torch.
    unchecked = args.out + '.tmp'
    try:
        with one_line_errors(), warnings.catch_warnings():
            # A trace warns about every Python number that it takes from a shape; the check at
            # other shapes shows whether one of them mattered.
            warnings.simplefilter('ignore')
            os.makedirs(os.path.dirname(os.path.abspath(args.out)), exist_ok=True)
            export_onnx(module, unchecked, shape, args.opset, module.outputs)
        print(
            f'{WHAT[cfg.default_scope]}, opset {args.opset}, dynamic: '
            f"{'batch' if fixed else 'batch, height, width'}"
        )
        print(f'input: {normalisation(cfg)}')
        differ = False
        for checked in check_onnx(module, unchecked, check_shapes(shape, fixed)):
            differ |= not checked.ok
            print(
                f"{'x'.join(map(str, checked.shape)):>16}: max difference "
                f'{checked.difference:.1e}, largest value {checked.largest:.1e}'
            )
        if differ:
            raise SystemExit(
                f'Error: onnxruntime and torch differ by more than {TOLERANCE} (of '
                f'the largest value, where that is above 1): {args.out} is not '
                'written'
            )
        os.replace(unchecked, args.out)
    finally:
        if os.path.exists(unchecked):
            os.remove(unchecked)
    print(f'{args.out}: {os.path.getsize(args.out) / 2**20:.1f} MiB')


if __name__ == '__main__':
    main()
