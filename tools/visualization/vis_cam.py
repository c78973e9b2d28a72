"""Where classifiers look: Grad-CAM of several models side by side on one photo."""

import logging

from mmhcnet.cli.errors import one_line_errors
from mmhcnet.cli.parser import add_models, add_picture, make_parser
from mmhcnet.inference.model import load_model, model_name
from mmhcnet.inference.pictures import read_picture
from mmhcnet.visualization.grad_cam import draw, explain


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument('image', help='photo')
    add_models(parser, layers=True)
    parser.add_argument('--label', type=int, help='class to explain (default: the highest score)')
    add_picture(parser, 'work_dirs/vis_cam/cam.png', 'picture to write')
    args = parser.parse_args()
    if any(len(model) not in (2, 3) for model in args.models):
        parser.error('--model takes CONFIG and CKPT, and a LAYER if wanted')
    logging.disable(logging.INFO)
    with one_line_errors():
        picture = read_picture(args.image, args.size)
        cams = []
        for config, checkpoint, *layer in args.models:
            _, model = load_model(config, checkpoint)
            cams.append(
                explain(model, picture, model_name(config, checkpoint), *layer, label=args.label)
            )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    print('\n'.join(draw(picture, cams, args.out)))
    print(f'picture: {args.out}')


if __name__ == '__main__':
    main()
