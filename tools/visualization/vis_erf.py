"""Effective receptive field of backbones: how much each pixel of an image moves the centre of the
last feature map, and the share of pixels that move it by more than a threshold."""

import logging

from mmhcnet.cli.errors import one_line_errors
from mmhcnet.cli.parser import add_models, add_picture, make_parser
from mmhcnet.inference.model import load_model, model_name
from mmhcnet.inference.pictures import read_picture
from mmhcnet.visualization.receptive_field import draw, inputs, measure


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument('images', nargs='*', help='photos (default: images of normal noise)')
    add_models(parser)
    add_picture(parser, 'work_dirs/vis_erf/erf.png', 'picture to write')
    parser.add_argument(
        '--noise', type=int, default=8, help='images of noise where no photo is given (%(default)s)'
    )
    args = parser.parse_args()
    logging.disable(logging.INFO)
    with one_line_errors():
        pictures = [read_picture(path, args.size) for path in args.images]
        fields = {}
        for config, checkpoint in args.models:
            _, model = load_model(config, checkpoint)
            fields[model_name(config, checkpoint)] = measure(
                model, inputs(model, pictures, args.size, args.noise)
            )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    print('\n'.join(draw(fields, args.out)))
    print(f'picture: {args.out}')


if __name__ == '__main__':
    main()
