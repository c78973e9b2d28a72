"""Draw what a model finds in an image, or in all images of a folder.

For classifiers, detectors and segmentors, through the inferencers of mmpretrain, mmdet and mmseg.
"""

import os
import tempfile
from argparse import Namespace
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import mmcv
import numpy as np
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import DATASETS, TRANSFORMS
from torch import nn

from mmhcnet.cli.compile import check_compile, compile_blocks, compiling
from mmhcnet.cli.config import load_config
from mmhcnet.cli.errors import one_line_errors
from mmhcnet.cli.image_sizes import varying_step
from mmhcnet.cli.parser import add_compile, add_config, make_parser
from mmhcnet.inference.model import build_model

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.ppm', '.tif', '.tiff', '.webp')
# Labels drawn on fewer pixels than this could not be read.
MIN_EDGE = 256

# Image file to picture, RGB, and what was found in a few words.
Draw = Callable[[str], tuple[np.ndarray, str]]


def parse_args() -> Namespace:
    parser = make_parser(__doc__)
    parser.add_argument('image', help='image file, or folder of images')
    add_config(parser)
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out-file', help='picture to write, for a single image')
    parser.add_argument(
        '--out-dir',
        default='work_dirs/image_demo',
        help='folder for the pictures, NAME.png each (default: %(default)s)',
    )
    parser.add_argument('--device', default=get_device(), help='default here: %(default)s')
    add_compile(parser)
    parser.add_argument(
        '--score-thr',
        type=float,
        default=0.3,
        help='detection: score from which a box is drawn (default: %(default)s)',
    )
    return parser.parse_args()


def find_images(path: str) -> list[str]:
    """The image, or those in the folder."""
    if not os.path.exists(path):
        raise FileNotFoundError(f"no image or folder '{path}'")
    files = [path]
    if os.path.isdir(path):
        files = sorted(str(p) for p in Path(path).iterdir() if p.suffix.lower() in SUFFIXES)
        if not files:
            raise FileNotFoundError(f"no image in '{path}': it takes {', '.join(SUFFIXES)}")
    return files


def class_names(cfg: Config, meta: dict | None) -> dict:
    """Classes and palette from the checkpoint, or else of the config's data, which may be absent.

    A converted checkpoint has none, and mmdet and mmseg would take those of COCO and Cityscapes.
    """
    if meta is not None:
        return meta
    dataset = DATASETS.build(dict(cfg.test_dataloader.dataset, lazy_init=True))
    return {key: dataset.metainfo[key] for key in ('classes', 'palette') if key in dataset.metainfo}


def compile_model(model: nn.Module, cfg: Config, mode: str | None) -> None:
    if mode is not None:
        compile_blocks(model, varying_step(cfg, 'test') is not None, graphs=mode == 'graphs')


def open_classifier(cfg: Config, args: Namespace, meta: dict | None) -> Draw:
    from mmpretrain import ImageClassificationInferencer

    inferencer = ImageClassificationInferencer(
        cfg, args.checkpoint, device=args.device, classes=class_names(cfg, meta).get('classes')
    )
    compile_model(inferencer.model, cfg, args.compile)
    load = TRANSFORMS.build(
        next(step for step in cfg.test_dataloader.dataset.pipeline if 'Load' in str(step['type']))
    )

    def draw(path: str) -> tuple[np.ndarray, str]:
        # Through the config's own step: the inferencer reads colours whatever the model takes.
        found = inferencer.forward(
            next(iter(inferencer.preprocess([load(dict(img_path=path))['img']])))
        )
        short = min(mmcv.imread(path).shape[:2])
        # It draws only what it may save.
        with tempfile.TemporaryDirectory() as folder:
            pictures = inferencer.visualize(
                [path], found, show_dir=folder, rescale_factor=max(1, MIN_EDGE / short)
            )
        (result,) = inferencer.postprocess(found, pictures)
        name = result.get('pred_class', result['pred_label'])
        return pictures[0], f"class {name} ({result['pred_score']:.2f})"

    return draw


def prepared(inferencer, cfg: Config, args: Namespace, meta: dict | None) -> list:
    """The class names of an inferencer of mmdet or mmseg, now quiet and compiled."""
    compile_model(inferencer.model, cfg, args.compile)
    inferencer.show_progress = False
    if meta is None:
        inferencer.model.dataset_meta = class_names(cfg, meta)
    return inferencer.model.dataset_meta['classes']


def open_detector(cfg: Config, args: Namespace, meta: dict | None) -> Draw:
    from mmdet.apis import DetInferencer

    inferencer = DetInferencer(cfg, args.checkpoint, device=args.device)
    names = prepared(inferencer, cfg, args, meta)
    inferencer.visualizer.dataset_meta = inferencer.model.dataset_meta

    def draw(path: str) -> tuple[np.ndarray, str]:
        result = inferencer(path, return_vis=True, pred_score_thr=args.score_thr)
        (found,) = result['predictions']
        kept = [
            names[label]
            for label, score in zip(found['labels'], found['scores'])
            if score >= args.score_thr
        ]
        counts = ', '.join(f'{n} {name}' for name, n in Counter(kept).most_common())
        return result['visualization'][0], (
            f'{len(kept)} objects with a score of {args.score_thr} or more'
            + (f': {counts}' if counts else '')
        )

    return draw


def open_segmentor(cfg: Config, args: Namespace, meta: dict | None) -> Draw:
    from mmseg.apis import MMSegInferencer

    inferencer = MMSegInferencer(cfg, args.checkpoint, device=args.device)
    names = prepared(inferencer, cfg, args, meta)

    def draw(path: str) -> tuple[np.ndarray, str]:
        result = inferencer(path, return_vis=True)
        # Of a single map after a sigmoid they are numbers with a point.
        labels, pixels = np.unique(result['predictions'].astype(int), return_counts=True)
        largest = sorted(zip(pixels / pixels.sum(), labels), reverse=True)[:5]
        return result['visualization'], ', '.join(
            f'{names[label]} {100 * share:.0f} %' for share, label in largest
        )

    return draw


OPEN = {'mmpretrain': open_classifier, 'mmdet': open_detector, 'mmseg': open_segmentor}


def prepare(args: Namespace) -> tuple[dict[str, str], Draw]:
    """The picture to write for every image, and what draws it."""
    images = find_images(args.image)
    if args.out_file and os.path.isdir(args.image):
        raise ValueError('--out-file is for a single image: use --out-dir for a folder')
    if args.out_file and Path(args.out_file).suffix.lower() not in SUFFIXES:
        raise ValueError(
            f"--out-file is a picture to write, with one of the suffixes "
            f"{', '.join(SUFFIXES)}, got '{args.out_file}'"
        )
    if not args.out_file and os.path.isfile(args.out_dir):
        raise ValueError(f"--out-dir is a folder, and '{args.out_dir}' is a file")
    pictures = {
        path: args.out_file or os.path.join(args.out_dir, f'{Path(path).stem}.png')
        for path in images
    }
    shared = [name for name, n in Counter(pictures.values()).items() if n > 1]
    if shared:
        raise ValueError(
            f"two images would be drawn to '{shared[0]}': give them names that differ "
            'in more than the suffix'
        )
    for path in images:
        if mmcv.imread(path) is None:
            raise ValueError(f"'{path}' is not an image that can be read")
    if torch.device(args.device).type == 'cuda' and not torch.cuda.is_available():
        raise ValueError(f'--device {args.device} needs a GPU: use --device cpu')
    cfg = load_config(args.config, args.cfg_options, work_dir=None)
    if cfg.get('default_scope') not in OPEN:
        raise ValueError(
            f'default_scope of the config must be one of {list(OPEN)}, '
            f"got {cfg.get('default_scope')!r}"
        )
    check_compile(args.compile, cfg, 'test', args.device)
    # The inferencers go on with random weights where a checkpoint does not fit.
    meta = build_model(cfg, args.checkpoint).dataset_meta
    return pictures, OPEN[cfg.default_scope](cfg, args, meta)


def main() -> None:
    args = parse_args()
    with one_line_errors():
        pictures, draw = prepare(args)
    with compiling() if args.compile else nullcontext() as compilations:
        for path, picture in pictures.items():
            drawn, found = draw(path)
            # mmcv writes blue first.
            mmcv.imwrite(np.ascontiguousarray(drawn[..., ::-1]), picture)
            print(f'{path}: {found} -> {picture}')
    if compilations is not None:
        print('--compile: {} compilations took {:.1f} s'.format(*compilations.so_far()))


if __name__ == '__main__':
    main()
