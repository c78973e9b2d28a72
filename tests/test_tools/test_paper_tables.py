"""docs/paper_tables.md: what it says is what is measured, and the counter agrees with the peers."""

import re

import pytest

from mmhcnet.cli.config import load_config
from mmhcnet.inference.complexity import count_complexity

from ..conftest import load_script
from .conftest import ROOT

PAGE = ROOT / 'docs' / 'paper_tables.md'
PEERS = [
    (task, name)
    for task in ('CLASSIFIERS', 'DETECTORS', 'SEGMENTORS')
    for name in ('Swin-T', 'ConvNeXt-T')
]


@pytest.fixture(scope='module')
def tables():
    return load_script(ROOT / 'tools' / 'analysis_tools' / 'paper_tables.py')


def row_named(tables, task, name):
    return next(row for row in getattr(tables, task) if row.name == name)


def row_of(name, arguments):
    """Parameters and MACs that the page gives for a model."""
    lines = [
        line
        for line in PAGE.read_text(encoding='utf-8').splitlines()
        if line.startswith(f'| {name} |') and line.endswith(f'| `{arguments}` |')
    ]
    assert len(lines) == 1, lines
    cells = [cell.strip() for cell in lines[0].split('|')]
    return cells[2], cells[5]


def test_the_peers_prove_the_counter(tables):
    rows = [row_named(tables, task, name) for task, name in PEERS]
    (measured,) = tables.measure(rows)
    for row, _, model in measured:
        assert model.params / 1e6 == pytest.approx(row.params, rel=0.015)
        assert model.macs / 1e9 == pytest.approx(row.macs, rel=0.015)
        assert row_of(row.name, row.arguments) == (
            f'{model.params / 1e6:.2f} M',
            f'{model.macs / 1e9:.2f} G',
        )


def test_hcnet_t_of_the_published_code(tables):
    rows = [row_named(tables, 'CLASSIFIERS', 'HcNet-T, isotropic stencil')]
    ((row, _, model),) = tables.measure(rows)[0]
    assert (f'{model.params / 1e6:.1f}', f'{model.macs / 1e9:.2f}') == ('28.4', '4.15')
    assert row_of(row.name, row.arguments) == ('28.42 M', '4.15 G')


def test_arguments_are_those_of_get_flops(tool, tables):
    row = row_named(tables, 'VHEAT_CLASSIFIERS', 'vHeat-T, folded')
    done = tool('analysis_tools/get_flops.py', *row.arguments.split())
    params, macs = row_of(row.name, row.arguments)
    assert re.search(rf'whole model +{params} parameters +{macs} MACs', done.stdout)


@pytest.mark.slow
def test_the_page_is_what_the_tool_writes(tool, tmp_path):
    tool('analysis_tools/paper_tables.py', '--out', tmp_path / 'page.md')
    assert (tmp_path / 'page.md').read_text(encoding='utf-8') == PAGE.read_text(encoding='utf-8')


def test_only_vheat_can_be_folded():
    cfg = load_config(str(ROOT / 'configs/classification/hcnet_digits.py'), None, None)
    with pytest.raises(ValueError, match='HcNet has no form to fold to; VHeat has'):
        count_complexity(cfg, (64, 64), folded=True)
