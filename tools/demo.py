"""Train and test HcNet and vHeat in all three tasks on the embedded digits: a table, pictures."""

import argparse
import colorsys
import json
import os
import pickle
import re
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

TOOLS = Path(__file__).resolve().parent
CONFIGS = TOOLS.parent / 'configs'
TILE, GAP = 256, 6
# One colour per digit.
COLOURS = [tuple(round(255 * c) for c in colorsys.hsv_to_rgb(d / 10, 0.75, 1)) for d in range(10)]
FONT = ImageFont.load_default(20)


FAMILIES = dict(hcnet='HcNet', vheat='vHeat')


class Task(NamedTuple):
    """What to run and to show: config of a family, metrics (key in the log, name), pictures."""

    name: str
    config: str
    metrics: dict[str, str]
    out: str
    tiles: Callable[[Path], list[Image.Image]]


def load_tile(path: str) -> Image.Image:
    return Image.open(path).convert('RGB').resize((TILE, TILE), Image.Resampling.BICUBIC)


def label(tile: Image.Image, xy, text: str, colour) -> None:
    draw = ImageDraw.Draw(tile)
    left, top, right, bottom = draw.textbbox(xy, text, font=FONT)
    # Inside the picture, also for a box at its border.
    dx, dy = min(0, TILE - right - 4), min(0, TILE - bottom - 4)
    draw.rectangle((left + dx - 3, top + dy - 3, right + dx + 3, bottom + dy + 3), fill='black')
    draw.text((xy[0] + dx, xy[1] + dy), text, fill=colour, font=FONT)


def classified(out: Path) -> list[Image.Image]:
    tiles = []
    results = pickle.loads(out.read_bytes())
    for result in results[:: len(results) // 12][:12]:
        tile = load_tile(result['img_path'])
        digit = int(result['pred_label'])
        right = digit == int(result['gt_label'])
        label(
            tile,
            (8, 6),
            f'{digit}  {100 * float(result["pred_score"][digit]):.0f} %',
            'white' if right else 'red',
        )
        tiles.append(tile)
    return tiles


def detected(out: Path) -> list[Image.Image]:
    from pycocotools import mask as coco_mask

    tiles = []
    for result in pickle.loads(out.read_bytes())[:8]:
        found = result['pred_instances']
        tile = load_tile(result['img_path'])
        scale = TILE / result['ori_shape'][1]
        kept = [i for i in range(len(found['scores'])) if found['scores'][i] > 0.5]
        for i in kept:
            mask = Image.fromarray(coco_mask.decode(found['masks'][i]) * 110)
            tile.paste(COLOURS[int(found['labels'][i])], mask=mask.resize(tile.size))
        for i in kept:
            box = [scale * float(v) for v in found['bboxes'][i]]
            digit = int(found['labels'][i])
            ImageDraw.Draw(tile).rectangle(box, outline=COLOURS[digit], width=2)
            label(
                tile,
                (max(box[0], 3), max(box[1] - 22, 3)),
                f'{digit} {float(found["scores"][i]):.2f}',
                COLOURS[digit],
            )
        tiles.append(tile)
    return tiles


def segmented(out: Path) -> list[Image.Image]:
    tiles = []
    palette = np.array([(0, 0, 0), *COLOURS], dtype=np.uint8)
    for path in sorted(out.glob('*.png'))[:8]:
        tile = load_tile(Path('data/digits/segmentation/images/validation') / path.name)
        labels = np.asarray(Image.open(path))
        paint = Image.fromarray(palette[labels]).resize(tile.size, Image.Resampling.NEAREST)
        mask = Image.fromarray((labels > 0).astype(np.uint8) * 190)
        tile.paste(paint, mask=mask.resize(tile.size, Image.Resampling.NEAREST))
        for digit in range(10):
            rows, columns = np.nonzero(labels == digit + 1)
            # Specks get no number.
            if len(rows) > 40:
                scale = TILE / labels.shape[0]
                label(tile, (scale * columns.min(), scale * rows.min()), str(digit), COLOURS[digit])
        tiles.append(tile)
    return tiles


CLASSIFICATION = Task(
    'classification',
    'classification/{}_digits.py',
    {'accuracy/top1': 'top-1 (%)'},
    'predictions.pkl',
    classified,
)
DETECTION = Task(
    'detection',
    'detection/mask_rcnn_{}_digits.py',
    {'coco/bbox_mAP': 'box mAP', 'coco/bbox_mAP_50': 'box AP50', 'coco/segm_mAP': 'mask mAP'},
    'predictions.pkl',
    detected,
)
SEGMENTATION = Task(
    'segmentation',
    'segmentation/upernet_{}_digits.py',
    {'mIoU': 'mIoU (%)'},
    'label_maps',
    segmented,
)


def run(name: str, log: Path, threads: int, *command) -> None:
    """Run one of the tools; its progress is shown, everything goes to the log file."""
    print(f'{name}: {" ".join(map(str, command))}', flush=True)
    # Spinning threads and a data loader on the same few cores hold each other up.
    env = {'OMP_WAIT_POLICY': 'PASSIVE', **os.environ, 'OMP_NUM_THREADS': str(threads)}
    with (
        open(log, 'w') as file,
        subprocess.Popen(
            [sys.executable, *map(str, command)],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process,
    ):
        for line in process.stdout:
            file.write(line)
            progress = re.search(r'(Epoch|Iter)\((train|val|test)\).*', line)
            if progress:
                print(f'{name}: {progress[0][:130]}', flush=True)
    if process.returncode:
        sys.exit(f'{name} failed; the end of {log}:\n\n{log.read_text()[-2000:]}')


def train_and_test(family: str, task: Task, work_dir: Path, threads: int) -> dict[str, str]:
    """Train, test, draw; returns what goes into the table."""
    folder = work_dir / family / task.name
    folder.mkdir(parents=True, exist_ok=True)
    config, out = CONFIGS / task.config.format(family), folder / task.out
    name, options = f'{FAMILIES[family]} {task.name}', []
    if task is not CLASSIFICATION:
        # From the classifier, as they would start from ImageNet.
        options = ['--pretrained', checkpoint(work_dir / family / CLASSIFICATION.name)]
    start = time.time()
    run(
        name,
        folder / 'train.txt',
        threads,
        TOOLS / 'train.py',
        config,
        '--work-dir',
        folder,
        '--no-validate',
        *options,
    )
    seconds = time.time() - start
    run(
        name,
        folder / 'test.txt',
        threads,
        TOOLS / 'test.py',
        config,
        checkpoint(folder),
        '--work-dir',
        folder / 'test',
        '--out',
        out,
    )
    newest = max((folder / 'test').glob('*/*.json'), key=lambda p: p.stat().st_mtime)
    metrics = json.loads(newest.read_text())
    sheet(task.tiles(out)).save(work_dir / f'{family}_{task.name}.png')
    return {
        **{metric: f'{metrics[key]:.3g}' for key, metric in task.metrics.items()},
        'training': f'{seconds:.0f} s',
    }


def checkpoint(folder: Path) -> str:
    return (folder / 'last_checkpoint').read_text()


def sheet(tiles: list[Image.Image]) -> Image.Image:
    rows = -(-len(tiles) // 4)
    canvas = Image.new('RGB', (4 * (TILE + GAP) + GAP, rows * (TILE + GAP) + GAP), 'white')
    for i, tile in enumerate(tiles):
        canvas.paste(tile, (GAP + i % 4 * (TILE + GAP), GAP + i // 4 * (TILE + GAP)))
    return canvas


def side_by_side(
    tasks: list[Task], families: list[str], work_dir: Path
) -> dict[tuple, dict[str, str]]:
    """Some tasks with each family; as many runs at a time as there are cores, up to all of them.

    Models as small as these gain little from a second core.
    """
    jobs = list(product(tasks, families))
    cores = os.cpu_count()
    at_a_time = min(cores, len(jobs))
    with ThreadPoolExecutor(at_a_time) as pool:
        futures = {
            (task.name, family): pool.submit(
                train_and_test, family, task, work_dir, cores // at_a_time
            )
            for task, family in jobs
        }
        return {key: future.result() for key, future in futures.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--work-dir',
        type=Path,
        default=Path('work_dirs/demo'),
        help='folder for checkpoints, logs and pictures (default: %(default)s)',
    )
    parser.add_argument(
        '--families', nargs='+', choices=FAMILIES, default=list(FAMILIES), help='(default: all)'
    )
    args = parser.parse_args()
    start = time.time()
    subprocess.run([sys.executable, TOOLS / 'dataset_converters' / 'make_digits.py'], check=True)
    # The classifiers first: the others start from them.
    results = {
        **side_by_side([CLASSIFICATION], args.families, args.work_dir),
        **side_by_side([DETECTION, SEGMENTATION], args.families, args.work_dir),
    }

    rows = [('task', 'metric', *(FAMILIES[family] for family in args.families))]
    for task in (CLASSIFICATION, DETECTION, SEGMENTATION):
        for metric in (*task.metrics.values(), 'training'):
            rows.append(
                (
                    task.name,
                    metric,
                    *(results[task.name, family][metric] for family in args.families),
                )
            )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    print()
    for row in [rows[0], tuple('-' * w for w in widths), *rows[1:]]:
        print('  '.join(cell.ljust(width) for cell, width in zip(row, widths)))
    print(
        f'\nOn the embedded digits, val split: {time.time() - start:.0f} s in total; predictions '
        f'drawn: {args.work_dir}/{{{",".join(args.families)}}}_*.png'
    )


if __name__ == '__main__':
    main()
