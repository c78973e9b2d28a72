"""Quantise a classifier to int8 for CPUs, and compare it with float32 and bfloat16.

The images of a folder, or a sample of them, go through the config's test pipeline and give the
ranges. Accuracy is measured on the config's test data, before and after; if more of it is lost than
--max-loss, no file is written. The times are of random images on this machine: the rows take turns,
and a row's figure is its least, with the spread of the rounds. The model takes images of the one
size that the test pipeline gives; the batch is free.
"""

import argparse
import copy
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from mmhcnet.cli.config import check_data, load_config
from mmhcnet.cli.errors import one_line_errors
from mmhcnet.cli.parser import add_config, at_least, make_parser
from mmhcnet.errors import UserError, require_packages
from mmhcnet.inference.quantize import (
    BACKENDS,
    ExportedClassifier,
    Run,
    accuracy,
    files_of,
    labelled_images,
    prepare,
    quantize,
)
from mmhcnet.inference.timing import timed

CLOCKS = dict(wall=time.perf_counter, processor=time.process_time)


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    add_config(parser, help='config of a classifier')
    parser.add_argument('checkpoint', help='its weights')
    parser.add_argument('images', help='folder of calibration images, which need no labels')
    parser.add_argument(
        '--backend',
        choices=BACKENDS,
        default='openvino',
        help='what runs the model (default: %(default)s)',
    )
    parser.add_argument('--out', required=True, help='file to write: .xml (OpenVINO) or .onnx')
    parser.add_argument(
        '--num-images',
        type=at_least(1),
        default=300,
        metavar='N',
        help='calibration images to take, at most (default: %(default)s)',
    )
    parser.add_argument(
        '--eval-images',
        type=at_least(0),
        default=1000,
        metavar='N',
        help='test images to measure the accuracy on, at most; 0: measure none '
        '(default: %(default)s)',
    )
    parser.add_argument(
        '--max-loss',
        type=float,
        default=1.0,
        metavar='POINTS',
        help='percentage points of accuracy that may be lost (default: %(default)s)',
    )
    parser.add_argument(
        '--batch', type=at_least(1), default=1, help='images per call (default: %(default)s)'
    )
    parser.add_argument(
        '--rounds',
        type=at_least(1),
        default=10,
        help='of the measurement of time (default: %(default)s)',
    )
    parser.add_argument(
        '--clock',
        choices=CLOCKS,
        default='wall',
        help='processor: the time of all threads together, which other programs on the same cores '
        'disturb less (default: %(default)s)',
    )
    parser.add_argument(
        '--threads',
        type=at_least(1),
        default=torch.get_num_threads(),
        help='of every row (default here: %(default)s)',
    )
    args = parser.parse_args()
    suffix = BACKENDS[args.backend].suffix
    if not args.out.endswith(suffix):
        parser.error(f"--out of {args.backend} ends in {suffix}, got '{args.out}'")
    return args


def in_torch(module: nn.Module, dtype: torch.dtype) -> Run:
    module = copy.deepcopy(module).to(dtype)

    @torch.inference_mode()
    def run(images: np.ndarray) -> np.ndarray:
        return module(torch.from_numpy(images).to(dtype)).float().numpy()

    return run


def milliseconds(
    rows: dict[str, Run], shape: tuple[int, ...], rounds: int, clock: Callable[[], float]
) -> dict[str, tuple[float, float]]:
    """{row: (least time per image, spread in percent)}"""
    images = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    times = {name: [] for name in rows}
    for run in rows.values():
        run(images)
        # A first call may compile.
        run(images)
    for _ in range(rounds):
        for name, run in rows.items():
            times[name].append(1000 * timed(partial(run, images), 1, 'cpu', clock) / shape[0])
    return {
        name: (min(found), 100 * (max(found) - min(found)) / min(found))
        for name, found in times.items()
    }


def main() -> None:
    args = parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    out, int8 = Path(args.out), f'{args.backend} int8'
    with one_line_errors(), warnings.catch_warnings():
        # The exporter warns about every Python number that it takes from a shape; it is fixed here.
        warnings.simplefilter('ignore')
        require_packages(*BACKENDS[args.backend].packages)
        cfg = load_config(args.config, args.cfg_options, work_dir=None)
        if args.eval_images:
            check_data(cfg, ['test'])
        out.parent.mkdir(parents=True, exist_ok=True)
        # Beside the result, so that it is moved there at one instant.
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f'.{out.name}.') as folder:
            model = prepare(cfg, args.checkpoint, args.images, args.num_images, folder)
            quantized = os.path.join(folder, out.name)
            quantize(args.backend, model.source, quantized, model.images)
            print(
                f'calibrated with {len(model.images)} images of '
                f'{"x".join(map(str, model.images[0].shape[2:]))}'
            )
            rows = {
                'torch float32': in_torch(model.module, torch.float32),
                'torch bfloat16': in_torch(model.module, torch.bfloat16),
                **{
                    f'{args.backend} {precision}': ExportedClassifier(
                        model.source, args.backend, precision, args.threads
                    )
                    for precision in BACKENDS[args.backend].precisions()
                },
                int8: ExportedClassifier(quantized, threads=args.threads),
            }
            found = {}
            if args.eval_images:
                batches = labelled_images(
                    cfg, model.module.model.data_preprocessor, args.eval_images, batch_size=50
                )
                found = {name: accuracy(run, batches) for name, run in rows.items()}
            shape = args.batch, *model.images[0].shape[1:]
            times = milliseconds(rows, shape, args.rounds, CLOCKS[args.clock])
            size = {
                'float32': os.path.getsize(model.source),
                'bfloat16': os.path.getsize(model.source) / 2,
                'int8': sum(map(os.path.getsize, files_of(quantized))),
            }
            first = times['torch float32'][0]
            print('| | accuracy (%) | MiB | ms per image | spread (%) | time |')
            print('| --- | --- | --- | --- | --- | --- |')
            for name, (least, spread) in times.items():
                right = f'{found[name]:.2f}' if found else 'not measured'
                mib = size[name.split()[1]] / 2**20
                print(
                    f'| {name} | {right} | {mib:.1f} | {least:.2f} | {spread:.0f} '
                    f'| {least / first:.2f} |'
                )
            if found:
                lost = found['torch float32'] - found[int8]
                if lost > args.max_loss:
                    raise UserError(
                        f'{lost:.2f} points of accuracy are lost, and --max-loss is '
                        f'{args.max_loss:g}: {args.out} is not written; give more or other '
                        'calibration images'
                    )
            for file in files_of(quantized):
                os.replace(file, out.parent / os.path.basename(file))
    print(f'{args.out}: images of {"x".join(map(str, rows[int8].size))}')


if __name__ == '__main__':
    main()
