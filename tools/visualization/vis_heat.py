"""See the heat in HcNet or vHeat on a photo: maps before and after conduction, the rate k of every
layer and channel, and an animation of one channel on its way through the layers of a stage."""

import logging

from mmhcnet.cli.errors import one_line_errors
from mmhcnet.cli.parser import add_picture, make_parser
from mmhcnet.inference.model import load_model
from mmhcnet.inference.pictures import read_picture
from mmhcnet.visualization.heat import draw


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument('image', help='photo')
    parser.add_argument('config', help='config file of a classifier, detector or segmentor')
    parser.add_argument('checkpoint', help="its checkpoint, or 'none' for untrained weights")
    add_picture(parser, 'work_dirs/vis_heat', 'folder for the pictures')
    parser.add_argument(
        '--layers',
        nargs='+',
        metavar='NAME',
        help='conduction layers for the maps (default: the last of every stage)',
    )
    parser.add_argument(
        '--stage', type=int, default=1, help='animate the layers of this stage (%(default)s)'
    )
    parser.add_argument(
        '--channel', type=int, help='animate this channel (default: the one that changes most)'
    )
    args = parser.parse_args()
    logging.disable(logging.INFO)
    with one_line_errors():
        picture = read_picture(args.image, args.size)
        _, model = load_model(args.config, args.checkpoint)
        heats = draw(model, picture, args.out, args.layers, args.stage, args.channel)
    print(f'{"layer":40} {"k: median":>10} {"largest":>8} {"k·Σw: largest":>14}')
    for name, heat in heats.items():
        fourier = '' if heat.fourier is None else f'{heat.fourier.max():14.3f}'
        print(f'{name:40} {heat.k.median():10.3f} {heat.k.max():8.3f} {fourier}')
    print(f'pictures in {args.out}: maps.png, rates.png, diffusion.gif')


if __name__ == '__main__':
    main()
