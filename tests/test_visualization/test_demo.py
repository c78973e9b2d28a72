"""The page of `make demo`, of a work directory with made-up predictions."""

import csv
import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mmhcnet
from mmhcnet.datasets.digits import write_digits
from mmhcnet.inference.model import load_model
from mmhcnet.visualization.demo import TASKS, Result, table, write_demo_page, write_results

from ..conftest import ROOT, load_script
from ..pages import read_page

CONFIGS = Path(mmhcnet.config('segmentation/upernet_hcnet_digits.py')).parents[1]


def classes(data, folder):
    """Every digit right, but the last two taken for a 0."""
    results = []
    for path in sorted((data / 'classification/val').glob('*/*.png')):
        digit = int(path.parent.name)
        found = 0 if digit > 7 else digit
        results.append(
            dict(
                img_path=str(path),
                gt_label=torch.tensor([digit]),
                pred_label=torch.tensor([found]),
                pred_score=torch.eye(10)[found],
            )
        )
    (folder / 'predictions.pkl').write_bytes(pickle.dumps(results))


def instances(data, folder):
    """Just the truth, with a score of 0.9, and once more with one that is not drawn."""
    coco_mask = pytest.importorskip('pycocotools.mask')
    truth = json.loads((data / 'detection/annotations/instances_val2017.json').read_text())
    results = []
    for image in truth['images']:
        own = [entry for entry in truth['annotations'] if entry['image_id'] == image['id']] * 2
        found = dict(
            labels=torch.tensor([entry['category_id'] - 1 for entry in own]),
            bboxes=torch.tensor(
                [[x, y, x + w, y + h] for x, y, w, h in (entry['bbox'] for entry in own)]
            ),
            scores=torch.tensor([0.9] * (len(own) // 2) + [0.2] * (len(own) // 2)),
            masks=[coco_mask.frPyObjects(entry['segmentation'], 128, 128) for entry in own],
        )
        results.append(
            dict(
                img_id=image['id'],
                img_path=str(data / 'detection/val2017' / image['file_name']),
                ori_shape=(128, 128),
                pred_instances=found,
            )
        )
    (folder / 'predictions.pkl').write_bytes(pickle.dumps(results))


def label_maps(data, folder):
    (folder / 'label_maps').mkdir()
    for path in (data / 'segmentation/annotations/validation').glob('*.png'):
        (folder / 'label_maps' / path.name).write_bytes(path.read_bytes())


@pytest.fixture
def data(tmp_path):
    write_digits(tmp_path / 'digits', images=(10, 20), scenes=(1, 2))
    return tmp_path / 'digits'


@pytest.fixture
def work_dir(data, tmp_path):
    for task, write in zip(TASKS, (classes, instances, label_maps)):
        folder = tmp_path / 'demo' / 'hcnet' / task.name
        log = folder / '20260101' / 'vis_data' / 'scalars.json'
        log.parent.mkdir(parents=True)
        log.write_text(''.join(json.dumps(dict(step=i, loss=1 / i)) + '\n' for i in (20, 40)))
        write(data, folder)
    _, model = load_model(str(CONFIGS / TASKS[-1].config.format('hcnet')), 'none')
    torch.save(dict(state_dict=model.state_dict()), folder / 'iter.pth')
    (folder / 'last_checkpoint').write_text(str(folder / 'iter.pth'))
    return tmp_path / 'demo'


def results(families):
    return {
        family: {
            task.name: Result(dict.fromkeys(task.metrics.values(), 0.1234), 61.4, 7.6)
            for task in TASKS
        }
        for family in families
    }


def test_table():
    header, rows = table(results(['hcnet', 'vheat']))
    assert header == ['task', 'metric', 'HcNet', 'vHeat']
    assert ['segmentation', 'mIoU (%)', '0.1', '0.1'] in rows
    assert ['detection', 'box mAP', '0.123', '0.123'] in rows
    assert ['detection', 'training', '61 s', '61 s'] in rows
    # Six metrics and three times.
    assert len(rows) == sum(len(task.metrics) + 1 for task in TASKS) == 8


def test_csv(tmp_path):
    found = results(['hcnet', 'vheat'])
    write_results(tmp_path / 'digits.csv', found, 300.4)
    header, rows = table(found)
    with open(tmp_path / 'digits.csv', newline='') as file:
        lines = list(csv.DictReader(file))
    assert [[line[name] for name in header] for line in lines] == rows
    assert {line['command'] for line in lines} == {'make demo'}
    assert all('one run, 300 s in total' in line['environment'] for line in lines)


def test_page(work_dir, data):
    out = write_demo_page(work_dir, data, CONFIGS, results(['hcnet']), 300.4)
    assert out == work_dir / 'index.html' and (work_dir / 'digits.csv').is_file()
    page = read_page(out)
    assert {
        'training loss of classification',
        'training loss of detection',
        'training loss of segmentation',
        'temperature maps of HcNet',
        'HcNet detection, picture 2',
        'HcNet segmentation, picture 2',
        'HcNet classification, picture 12',
    } <= set(page.pictures)
    for text in ('box mAP', '0.123', '61 s', '300 s in total', 'HcNet segmentation'):
        assert text in page.text
    assert 'vHeat' not in page.text.partition('Results')[2].replace('HcNet and vHeat', '')
    for task in TASKS:
        with Image.open(work_dir / f'hcnet_{task.name}.png') as sheet:
            assert np.asarray(sheet).std() > 10
    # The last two of the digits that are shown are the first that are wrong.
    right, wrong = (page.pictures[f'HcNet classification, picture {i}'] for i in (1, 12))
    strips = [np.asarray(tile.crop((0, 256, *tile.size))).astype(int) for tile in (right, wrong)]
    green, red = (strip[..., 1] - strip[..., 0] for strip in strips)
    assert green.max() > 60 and red.min() < -60


def test_overview(work_dir, data, tmp_path, monkeypatch):
    """The picture of the README: every part of it is there."""
    script = load_script(ROOT / 'tools/visualization/overview.py')
    out = tmp_path / 'overview.png'
    monkeypatch.setattr(
        sys, 'argv', ['overview.py', str(work_dir), '--data', str(data), '--out', str(out)]
    )
    script.main()
    with Image.open(out) as picture:
        assert picture.width > 1000
        pixels = np.asarray(picture.convert('L')).astype(float)
    middle = [width // 8 for width in (pixels.shape[1], 3 * pixels.shape[1])]
    for row in np.array_split(pixels, 2):
        for x in (*middle, *(pixels.shape[1] - m for m in middle)):
            assert row[80:-80, x - 60 : x + 60].std() > 2
