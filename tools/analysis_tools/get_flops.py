"""Parameters and multiply-accumulates of the backbone and of the whole model of a config."""

from mmhcnet.cli.config import load_config, stock_config
from mmhcnet.cli.errors import one_line_errors
from mmhcnet.cli.parser import add_config, add_shape, make_parser
from mmhcnet.inference.complexity import MASKS, PROPOSALS, SHAPES, count_complexity


def main() -> None:
    parser = make_parser(__doc__)
    add_config(
        parser,
        help="config file, or 'package::path' for one that comes with mmpretrain, mmdet or mmseg",
    )
    add_shape(
        parser,
        help='image size (default: 224 224 for classification, 800 1280 for '
        'detection, 512 2048 for segmentation)',
    )
    parser.add_argument(
        '--folded',
        action='store_true',
        help='count the form for one image size that vHeat can be folded to',
    )
    args = parser.parse_args()
    with one_line_errors():
        cfg = load_config(stock_config(args.config), args.cfg_options, work_dir=None)
        shape = args.shape or SHAPES[cfg.default_scope]
        backbone, model = count_complexity(cfg, shape, args.folded)
    print(f'{args.config}, one image of {shape[0]}x{shape[1]}, convolutions and matrix products:')
    for name, count in (('backbone', backbone), ('whole model', model)):
        print(f'{name:12} {count.params / 1e6:8.2f} M parameters {count.macs / 1e9:9.2f} G MACs')
    if cfg.default_scope == 'mmdet':
        print(f'(box head on {PROPOSALS} proposals, mask head on {MASKS})')


if __name__ == '__main__':
    main()
