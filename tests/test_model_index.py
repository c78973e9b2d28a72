"""The metafiles, the configs and the tables of docs/models.md say the same."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

import mmhcnet
from mmhcnet.inference.complexity import count_complexity

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / 'configs'
INDEX = yaml.safe_load((ROOT / 'model-index.yml').read_text())
METAFILES = [yaml.safe_load((ROOT / path).read_text()) for path in INDEX['Import']]
ENTRIES = {model['Name']: model for file in METAFILES for model in file['Models']}
NUMBER = re.compile(r'\d+\.?\d*')


def rows():
    """(columns by name, cells) of each row of the page's tables that names a config."""
    head = []
    for line in (ROOT / 'docs/models.md').read_text().splitlines():
        cells = [cell.strip() for cell in line.strip('|').split(' | ')]
        if not line.startswith('|'):
            head = []
        elif not head:
            head = cells
        elif '.py`' in line:
            yield dict(zip(head, cells))


def figures(row):
    """What a row says of its models: parameters, MACs and accuracies, as written."""
    if 'whole model' in row:
        parameters, macs = NUMBER.findall(row['whole model'])
    elif 'parameters / MACs' in row:
        parameters, macs = NUMBER.findall(row['parameters / MACs'])
    else:
        (parameters,), (macs,) = NUMBER.findall(row['parameters']), NUMBER.findall(row['MACs'])
    return parameters, macs


def millions(meta):
    """The parameters of an entry, as a table writes them."""
    return f'{meta["Parameters"] / 1e6:.2f}'


def milliards(meta):
    """The multiply-accumulates of an entry, as a table writes them."""
    return f'{meta["MACs"] / 1e9:.2f}'


def accuracies(row, name):
    """The numbers that the authors report for one of a row's models, as written."""
    column = [cell for title, cell in row.items() if 'not reproduced' in title]
    if not column or column == ['not quoted']:
        return []
    plain, _, long = column[0].partition(', 3x ')
    numbers = NUMBER.findall(long if name.endswith('_3x') else plain)
    # A classifier's cell begins with the parameters that the authors state.
    return numbers[-1:] if 'in1k' in name else numbers


def test_every_recipe_is_in_the_index():
    recipes = {
        path.relative_to(ROOT).as_posix()
        for path in CONFIGS.rglob('*.py')
        if not {'_base_', 'ablations'} & set(path.parts) and 'digits' not in path.stem
    }
    assert {entry['Config'] for entry in ENTRIES.values()} == recipes
    assert all(Path(entry['Config']).stem == name for name, entry in ENTRIES.items())
    assert {path.relative_to(ROOT).as_posix() for path in CONFIGS.rglob('*.yml')} == set(
        INDEX['Import']
    )


@pytest.mark.parametrize('name', ENTRIES)
def test_entry_says_what_the_config_says(name):
    entry = ENTRIES[name]
    cfg = Config.fromfile(ROOT / entry['Config'])
    meta = entry['Metadata']
    length = cfg.train_cfg
    assert meta.get('Epochs') == length.get('max_epochs')
    assert meta.get('Iterations') == length.get('max_iters')
    assert meta['Batch Size'] == cfg.auto_scale_lr.base_batch_size
    assert (
        meta['Training Data']
        == dict(mmpretrain='ImageNet-1K', mmdet='COCO 2017', mmseg='ADE20K')[cfg.default_scope]
    )
    backbone = cfg.model.backbone
    expected = 'vHeat' if backbone.type in ('mmhcnet.VHeat', 'ResNet') else 'HcNet'
    assert entry['In Collection'] == expected


def test_page_says_what_the_index_says():
    seen = set()
    for row in rows():
        names = re.findall(r'`\w+/(\w+)\.py`', ' '.join(row.values()))
        for name in names:
            meta = ENTRIES[name]['Metadata']
            assert figures(row) == (millions(meta), milliards(meta)), name
            reported = [f'{value:.1f}' for key, value in meta.items() if 'reported' in key]
            assert accuracies(row, name) == reported, name
            seen.add(name)
    assert seen == set(ENTRIES)


def test_nothing_passes_for_a_result_or_weights_of_ours():
    for name, entry in ENTRIES.items():
        assert not {'Results', 'Weights'} & set(entry), name
        for key in entry['Metadata']:
            assert not re.search('AP|mIoU|top|accuracy', key) or key.startswith(
                'Authors-reported'
            ), (name, key)


@pytest.mark.parametrize('name', ENTRIES)
def test_parameters(name):
    cfg = Config.fromfile(ROOT / ENTRIES[name]['Config'])
    init_default_scope(cfg.default_scope)
    with torch.device('meta'):
        count = sum(p.numel() for p in MODELS.build(cfg.model).parameters())
    assert f'{count / 1e6:.2f}' == millions(ENTRIES[name]['Metadata'])


@pytest.mark.parametrize('name', ['hcnet_t_in1k', 'vheat_t_in1k'])
def test_macs(name):
    cfg = Config.fromfile(ROOT / ENTRIES[name]['Config'])
    _, model = count_complexity(cfg, (224, 224))
    assert f'{model.macs / 1e9:.2f}' == milliards(ENTRIES[name]['Metadata'])


def test_the_format_is_the_one_of_the_model_index():
    """mim and mmpretrain read the files with the package that defines their format."""
    load = pytest.importorskip('modelindex.load_model_index').load
    index = load(str(ROOT / 'model-index.yml'))
    index.build_models_with_collections()
    assert {model.name for model in index.models} == set(ENTRIES)
    assert {model.full_model.paper['URL'] for model in index.models} == {
        'https://arxiv.org/abs/2408.05901',
        'https://arxiv.org/abs/2405.16555',
    }
    assert index.check(silent=True) == []


def test_mmpretrain_finds_the_classifiers_by_name():
    from mmpretrain import get_model, list_models

    mmhcnet.register_models()
    mmhcnet.register_models()
    names = {name for name in ENTRIES if 'in1k' in name}
    assert set(list_models('hcnet')) | set(list_models('vheat')) == names
    model = get_model('hcnet_t_in1k', backbone=dict(drop_path_rate=0.0))
    assert type(model.backbone) is mmhcnet.HcNet and not model.training
    assert model.head.num_classes == 1000
    # The models of mmpretrain itself are still there.
    assert 'resnet50_8xb32_in1k' in list_models('resnet50')
