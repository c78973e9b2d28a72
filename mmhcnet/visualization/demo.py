"""What ``make demo`` shows of its runs on the digits: six pictures, and a page with all results."""

import csv
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from mmhcnet.datasets.digits import CLASSES
from mmhcnet.inference.model import load_model
from mmhcnet.inference.pictures import read_picture

from . import curves, heat, page, predictions

FAMILIES = dict(hcnet='HcNet', vheat='vHeat')
SCENES = 8
# A detection is drawn from this score on.
SCORE = 0.5


class Task(NamedTuple):
    """What to run and to show.

    ``config`` has a gap for the family; ``metrics``: key in the log -> name; ``out``: what
    ``tools/test.py --out`` writes; ``draw``: pictures from that and the folder of the digits.
    """

    name: str
    config: str
    metrics: dict[str, str]
    out: str
    draw: Callable[[Path, Path], list[Image.Image]]
    about: str


class Result(NamedTuple):
    """Of one run: metrics by name, and seconds."""

    metrics: dict[str, float]
    training: float
    testing: float


def classified(out: Path, data: Path) -> list[Image.Image]:
    """Digits from the whole set, then the first wrong ones."""
    results = pickle.loads(out.read_bytes())
    wrong = [r for r in results if int(r['pred_label']) != int(r['gt_label'])][:4]
    chosen = results[:: max(1, len(results) // 8)][: 12 - len(wrong)]
    return [
        predictions.classified(
            Image.open(result['img_path']),
            int(result['gt_label']),
            int(result['pred_label']),
            float(result['pred_score'].max()),
            list(CLASSES),
        )
        for result in chosen + wrong
    ]


def detected(out: Path, data: Path) -> list[Image.Image]:
    from pycocotools import mask as coco_mask

    truth = json.loads((data / 'detection/annotations/instances_val2017.json').read_text())
    pictures = []
    for result in pickle.loads(out.read_bytes())[:SCENES]:
        objects = []
        for entry in truth['annotations']:
            if entry['image_id'] == result['img_id']:
                x, y, width, height = entry['bbox']
                rle = coco_mask.frPyObjects(entry['segmentation'], *result['ori_shape'])
                objects.append(
                    predictions.Instance(
                        # The category of digit d is d + 1.
                        entry['category_id'] - 1,
                        (x, y, x + width, y + height),
                        coco_mask.decode(rle).astype(bool),
                    )
                )
        found = result['pred_instances']
        pictures.append(
            predictions.detected(
                Image.open(result['img_path']),
                objects,
                [
                    predictions.Instance(
                        int(label),
                        tuple(map(float, box)),
                        coco_mask.decode(mask).astype(bool),
                        float(score),
                    )
                    for label, box, mask, score in zip(
                        found['labels'], found['bboxes'], found['masks'], found['scores']
                    )
                    if score > SCORE
                ],
                list(CLASSES),
            )
        )
    return pictures


def segmented(out: Path, data: Path) -> list[Image.Image]:
    return [
        predictions.segmented(
            Image.open(data / 'segmentation/images/validation' / path.name),
            np.asarray(Image.open(data / 'segmentation/annotations/validation' / path.name)),
            np.asarray(Image.open(path)),
            ['background', *CLASSES],
        )
        for path in sorted(out.glob('*.png'))[:SCENES]
    ]


TASKS = (
    Task(
        'classification',
        'classification/{}_digits.py',
        {'accuracy/top1': 'top-1 (%)'},
        'predictions.pkl',
        classified,
        'Digits from all over the validation set; the last ones are the first that it gets wrong.',
    ),
    Task(
        'detection',
        'detection/mask_rcnn_{}_digits.py',
        {'coco/bbox_mAP': 'box mAP', 'coco/bbox_mAP_50': 'box AP50', 'coco/segm_mAP': 'mask mAP'},
        'predictions.pkl',
        detected,
        'Left the truth, right what is found with a score above 0.5. Wrong (a cross) is another '
        'class, a box that overlaps the truth by less than half, or a digit found twice.',
    ),
    Task(
        'segmentation',
        'segmentation/upernet_{}_digits.py',
        {'mIoU': 'mIoU (%)'},
        'label_maps',
        segmented,
        'Left the truth, right the prediction, with a tick where most pixels of a piece are of its '
        'class, and a cross at a digit of which most pixels were missed. Specks have no label.',
    ),
)


def table(results: dict[str, dict[str, Result]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: metrics and seconds of training of each family.

    Args:
        results (dict): Family -> task -> its result.
    """
    rows = []
    for task in TASKS:
        for metric in task.metrics.values():
            values = (runs[task.name].metrics[metric] for runs in results.values())
            digits = 1 if '%' in metric else 3
            rows.append([task.name, metric, *(f'{value:.{digits}f}' for value in values)])
        seconds = (runs[task.name].training for runs in results.values())
        rows.append([task.name, 'training', *(f'{value:.0f} s' for value in seconds)])
    return ['task', 'metric', *(FAMILIES[family] for family in results)], rows


def write_results(out: Path, results: dict[str, dict[str, Result]], seconds: float) -> None:
    """Writes the table as a CSV file for ``tools/analysis_tools/results_page.py``."""
    header, rows = table(results)
    environment = (
        f'{os.cpu_count()} CPU cores ({torch.backends.cpu.get_cpu_capability()}), one run, '
        f'{seconds:.0f} s in total'
    )
    with open(out, 'w', newline='', encoding='utf-8') as file:
        writer = csv.writer(file, lineterminator='\n')
        writer.writerow([*header, 'environment', 'command'])
        writer.writerows([*row, environment, 'make demo'] for row in rows)


def write_demo_page(
    work_dir: Path,
    data: Path,
    configs: Path,
    results: dict[str, dict[str, Result]],
    seconds: float,
) -> Path:
    """Writes ``index.html``, one file with everything inside; returns its path.

    The files next to it are for other uses: ``digits.csv``, the table; ``FAMILY_TASK.png``, the
    predictions of a run; ``loss_TASK.png``; and in ``FAMILY/heat`` temperature maps, conduction
    rates and an animation.

    Args:
        work_dir (Path): Of the demo: ``FAMILY/TASK`` are the work directories of its runs.
        data (Path): The digits.
        configs (Path): Folder of the configs.
        results (dict): Family -> task -> its result.
        seconds (float): That the whole demo has taken.
    """
    write_results(work_dir / 'digits.csv', results, seconds)
    return page.write_page(
        work_dir / 'index.html',
        'HcNet and vHeat on handwritten digits',
        page.paragraph(
            'Two small networks built on the heat equation, each trained from scratch as a '
            'classifier and from there as a detector (Mask R-CNN) and a segmentor (UperNet). '
            'All figures and pictures are of the validation split, whose digits no training saw.'
        ),
        [
            page.Section('Results', page.table(*table(results))),
            *(_predictions(task, work_dir, data, list(results)) for task in TASKS),
            _curves(work_dir, list(results)),
            _heat(work_dir, data, configs, list(results)),
            _times(results, seconds),
        ],
    )


def _predictions(task: Task, work_dir: Path, data: Path, families: list[str]) -> page.Section:
    kind = 'small' if task.name == 'classification' else 'grid'
    body = page.paragraph(task.about)
    for family in families:
        pictures = task.draw(work_dir / family / task.name / task.out, data)
        columns = 4 if task.name == 'classification' else 2
        predictions.sheet(pictures, columns).save(work_dir / f'{family}_{task.name}.png')
        figures = [
            page.figure(picture, f'{FAMILIES[family]} {task.name}, picture {i}')
            for i, picture in enumerate(pictures, 1)
        ]
        body += f'<h3>{FAMILIES[family]}</h3>\n{page.grid(figures, kind)}'
    return page.Section(task.name.capitalize(), body)


def _curves(work_dir: Path, families: list[str]) -> page.Section:
    figures = []
    for task in TASKS:
        found = {FAMILIES[f]: curves.read_curve(work_dir / f / task.name) for f in families}
        out = work_dir / f'loss_{task.name}.png'
        curves.draw_curves(found, out, task.name, 'training loss')
        figures.append(page.figure(out, f'training loss of {task.name}'))
    return page.Section('Learning curves', page.grid(figures))


def _heat(work_dir: Path, data: Path, configs: Path, families: list[str]) -> page.Section:
    task = TASKS[-1]
    photo = sorted((data / 'segmentation/images/validation').glob('*.png'))[0]
    picture = read_picture(str(photo), 128)
    body = page.paragraph(
        'The last conduction layer of each stage of the segmentor, on the first scene: the channel '
        'that conduction changes most, before and after it.'
    )
    for family in families:
        folder = work_dir / family / 'heat'
        _, model = load_model(
            str(configs / task.config.format(family)),
            (work_dir / family / task.name / 'last_checkpoint').read_text(),
        )
        heat.draw(model, picture, folder)
        body += f'<h3>{FAMILIES[family]}</h3>\n' + page.figure(
            folder / 'maps.png', f'temperature maps of {FAMILIES[family]}'
        )
    return page.Section('Temperature maps', body)


def _times(results: dict[str, dict[str, Result]], seconds: float) -> page.Section:
    rows = [
        [f'{FAMILIES[family]} {name}', f'{result.training:.0f}', f'{result.testing:.0f}']
        for family, runs in results.items()
        for name, result in runs.items()
    ]
    return page.Section(
        'Times',
        page.table(['run', 'training (s)', 'testing (s)'], rows)
        + page.paragraph(
            f'{seconds:.0f} s in total, with the making of the data; runs that do not wait for '
            'each other ran side by side, one on each core.'
        ),
    )
