"""One page about a photo: temperature maps, conduction rates and a diffusing channel of every HcNet
and vHeat, effective receptive fields and Grad-CAM of all models side by side."""

import logging

from mmhcnet.cli.errors import one_line_errors
from mmhcnet.cli.parser import add_models, add_picture, make_parser
from mmhcnet.inference.pictures import read_picture
from mmhcnet.visualization.report import write_report


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument('image', help='photo')
    add_models(parser)
    add_picture(parser, 'work_dirs/report', 'folder for the page')
    args = parser.parse_args()
    logging.disable(logging.INFO)
    with one_line_errors():
        page = write_report(read_picture(args.image, args.size), args.models, args.out, args.size)
    print(f'page: {page}')


if __name__ == '__main__':
    main()
