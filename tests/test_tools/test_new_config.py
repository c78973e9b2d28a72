"""Own data: the config that tools/misc/new_config.py writes, and those of docs/data.md and
docs/configs.md word by word."""

import json
import re
import sys

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.optim import OptimWrapper
from mmengine.registry import DATASETS
from PIL import Image

from mmhcnet.cli.config import load_config
from mmhcnet.cli.errors import import_task
from mmhcnet.datasets.check import DataSetCheck, SplitCheck, stop_at_errors
from mmhcnet.datasets.layouts import coco_layout, folder_layout, label_map_layout, palette
from mmhcnet.errors import UserError
from mmhcnet.inference.model import build_model, input_channels

from ..conftest import ROOT, load_script
from ..scenes import write_scenes

RECIPES = dict(
    cls=['classification/hcnet_digits.py', 'classification/vheat_s_in1k.py'],
    det=['detection/mask_rcnn_hcnet_digits.py', 'detection/mask_rcnn_vheat_t_3x.py'],
    seg=['segmentation/upernet_hcnet_digits.py', 'segmentation/upernet_hcnet_t_160k_ade20k.py'],
)
CLASSES = dict(
    cls=['blue', 'green', 'red'],
    det=['red', 'green', 'blue'],
    seg=['background', 'red', 'green', 'blue'],
)
EXAMPLE = re.compile(r'<!-- config: (?P<name>[\w ]+) -->\n```python\n(?P<text>.*?)```', re.DOTALL)
EXAMPLES = {
    f'{page}: {match["name"]}': match['text']
    for page in ('data', 'configs')
    for match in EXAMPLE.finditer((ROOT / 'docs' / f'{page}.md').read_text())
}


@pytest.fixture
def data(tmp_path):
    write_scenes(tmp_path / 'data')
    (tmp_path / 'data/seg/classes.txt').write_text('\n'.join(CLASSES['seg']))
    return tmp_path / 'data'


@pytest.fixture
def new_config(monkeypatch, capsys):
    script = load_script(ROOT / 'tools' / 'misc' / 'new_config.py')

    def run(*args):
        monkeypatch.setattr(sys, 'argv', ['new_config.py', *map(str, args)])
        script.main()
        return capsys.readouterr().out

    return run


def findings(cfg):
    """All that the whole check says of the splits of a config."""
    found = []
    for split in ('train', 'val', 'test'):
        check = SplitCheck(cfg, split)
        found += [*check.missing(), *check.between(), *check.whole_pipeline()]
        for data_set in check.data_sets:
            assert isinstance(data_set, DataSetCheck)
            found += data_set.thorough(None, iter)
    return [finding for finding in found if finding.level != 'WARNING']


@pytest.mark.parametrize(
    'task, recipe', [(task, recipe) for task in RECIPES for recipe in RECIPES[task]]
)
def test_own_data(task, recipe, data, tmp_path, new_config):
    out = tmp_path / 'new' / 'my.py'
    said = new_config(recipe, '--data', data / task, '--out', out)
    assert f'python tools/misc/prepare_data.py {out} --full' in said
    cfg = load_config(str(out), None, None)
    import_task(cfg.default_scope)
    assert findings(cfg) == []
    number = len(CLASSES[task])
    counts = re.findall(
        r"'num_classes': (\d+)",
        str({key: value for key, value in cfg.model.to_dict().items() if key != 'rpn_head'}),
    )
    assert counts and set(map(int, counts)) == {number}
    assert list(cfg.train_dataloader.dataset.metainfo.classes) == CLASSES[task]
    if task != 'cls':
        assert len(cfg.val_dataloader.dataset.metainfo.palette) == number
    lines = out.read_text().replace(str(data), 'DATA').splitlines()
    assert sum(line.startswith('# ') for line in lines) >= 4 and max(map(len, lines)) <= 100
    with pytest.raises(SystemExit, match='exists already'):
        new_config(recipe, '--data', data / task, '--out', out)


@pytest.mark.parametrize('recipe', RECIPES['det'])
def test_boxes_only(recipe, data, tmp_path, new_config):
    for path in (data / 'det').glob('*.json'):
        content = json.loads(path.read_text())
        for annotation in content['annotations']:
            del annotation['segmentation']
        path.write_text(json.dumps(content))
    new_config(recipe, '--data', data / 'det', '--out', tmp_path / 'my.py')
    cfg = load_config(str(tmp_path / 'my.py'), None, None)
    import_task(cfg.default_scope)
    assert findings(cfg) == []
    assert (cfg.model.type, cfg.val_evaluator.metric) == ('FasterRCNN', 'bbox')
    cfg.model.backbone = dict(
        type='mmhcnet.HcNet', arch=dict(embed_dims=[8, 8, 16, 16], depths=[1, 1, 1, 1])
    )
    cfg.model.neck.in_channels = [8, 8, 16, 16]
    model = build_model(cfg)
    assert not model.with_mask and model.roi_head.bbox_head.num_classes == 3
    batch = pseudo_collate([DATASETS.build(cfg.train_dataloader.dataset)[0]])
    losses = model.train_step(batch, OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.0)))
    assert {'loss_rpn_cls', 'loss_cls', 'loss_bbox'} < set(losses) and 'loss_mask' not in losses


@pytest.mark.slow
@pytest.mark.parametrize('task', RECIPES)
def test_trial_of_own_data(task, data, tmp_path, new_config, tool):
    new_config(RECIPES[task][0], '--data', data / task, '--out', tmp_path / 'my.py')
    done = tool('train.py', tmp_path / 'my.py', '--work-dir', tmp_path / 'run', '--trial', '2')
    assert 'read back' in done.stdout


@pytest.mark.parametrize('name', EXAMPLES)
def test_examples_word_by_word(name, data, tmp_path):
    page, _, kind = name.partition(': ')
    task = kind.split()[0]
    if kind.endswith(('grey', 'rgba')):
        for path in (data / 'cls').rglob('*.png'):
            Image.open(path).convert('L' if kind.endswith('grey') else 'RGBA').save(path)
    path = tmp_path / 'example.py'
    path.write_text(EXAMPLES[name].replace('DATA', str(data / task)))
    cfg = load_config(str(path), None, None)
    import_task(cfg.default_scope)
    if page == 'data':
        stop_at_errors(cfg, ['train', 'val', 'test'])
        assert findings(cfg) == []
    # All widths fit.
    model = build_model(cfg)
    if kind.endswith('size'):
        assert [f.shape[1] for f in model.backbone(torch.zeros(1, 3, 64, 64))][-1] == 384
    image = torch.zeros(2, input_channels(model), 64, 64)
    with torch.no_grad():
        model.extract_feat(image) if task != 'cls' else model(image, mode='tensor')


def test_the_docs_have_an_example_of_each():
    assert set(EXAMPLES) == {
        'data: cls',
        'data: det',
        'data: seg',
        'data: cls grey',
        'data: cls rgba',
        'configs: cls size',
        'configs: det size',
        'configs: seg size',
    }


def test_one_class(data, tmp_path, new_config):
    for split in ('train', 'val'):
        path = data / f'det/{split}.json'
        content = json.loads(path.read_text())
        content['categories'] = [dict(id=3, name='square')]
        for annotation in content['annotations']:
            annotation['category_id'] = 3
        path.write_text(json.dumps(content))
    new_config(
        'detection/mask_rcnn_hcnet_t_1x.py', '--data', data / 'det', '--out', tmp_path / 'my.py'
    )
    cfg = load_config(str(tmp_path / 'my.py'), None, None)
    assert list(cfg.train_dataloader.dataset.metainfo.classes) == ['square']
    assert cfg.model.roi_head.bbox_head.num_classes == 1
    assert findings(cfg) == []


def test_other_names_of_the_halves(data):
    (data / 'cls/val').rename(data / 'cls/valid')
    assert folder_layout(str(data / 'cls')).val.images == 'valid'
    # As annotation services export: each half in a folder of its own.
    for split, half in (('train', 'train'), ('val', 'valid')):
        (data / f'det/{split}').rename(data / f'det/{half}') if split != half else None
        (data / f'det/{split}.json').rename(data / f'det/{half}/_annotations.coco.json')
    layout = coco_layout(str(data / 'det'))
    assert layout.val == ('valid', 'valid/_annotations.coco.json', '', '')
    for kind in ('images', 'annotations'):
        (data / f'seg/{kind}/training').rename(data / f'seg/{kind}/train')
    assert label_map_layout(str(data / 'seg')).train.labels == 'annotations/train'


@pytest.mark.parametrize(
    'look, task, change, said',
    [
        (folder_layout, 'cls', lambda d: (d / 'val').rename(d / 'other'), 'no folder val with a'),
        (
            folder_layout,
            'cls',
            lambda d: (d / 'val/red').rename(d / 'val/rot'),
            "differ in ['red', 'r",
        ),
        (coco_layout, 'det', lambda d: (d / 'val.json').unlink(), 'has no JSON in COCO'),
        (
            coco_layout,
            'det',
            lambda d: (
                (d / 'val').rename(d / 'gone') and [path.unlink() for path in d.rglob('0.png')]
            ),
            "'0.png', which '",
        ),
        (
            label_map_layout,
            'seg',
            lambda d: (d / 'annotations/validation').rename(d / 'x'),
            'no folders images/val',
        ),
        (
            label_map_layout,
            'seg',
            lambda d: [
                Image.fromarray(np.uint8(255 * (np.asarray(Image.open(p)) > 0))).save(p)
                for p in (d / 'annotations').rglob('*.png')
            ],
            'write 1 instead of 255',
        ),
        (
            label_map_layout,
            'seg',
            lambda d: (d / 'classes.txt').write_text('one'),
            'hold the id 3, and 1 names',
        ),
    ],
)
def test_folders_that_are_not_understood(look, task, change, said, data):
    change(data / task)
    with pytest.raises(UserError) as error:
        look(str(data / task))
    assert said in str(error.value) and str(data / task) in str(error.value)


def test_colours_differ():
    assert len(set(palette(150))) == 150
    assert all(0 <= v <= 255 for colour in palette(150) for v in colour)


def test_a_base_of_ones_own(data, tmp_path, new_config):
    (tmp_path / 'base.py').write_text(
        "_base_ = __import__('mmhcnet').config('classification/hcnet_digits.py')\n"
        "train_dataloader = dict(batch_size=3)\n"
    )
    new_config(tmp_path / 'base.py', '--data', data / 'cls', '--out', tmp_path / 'my.py')
    assert Config.fromfile(tmp_path / 'my.py').train_dataloader.batch_size == 3
    with pytest.raises(SystemExit, match="mmhcnet has no config 'none.py'"):
        new_config('none.py', '--data', data / 'cls', '--out', tmp_path / 'other.py')
