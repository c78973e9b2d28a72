"""The commands that measure, at sizes that take seconds: that they run, and what they write."""

import argparse
import csv
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from mmhcnet import HcNet
from mmhcnet.errors import UserError
from mmhcnet.inference.operations import count_operations

from ..conftest import load_script
from .conftest import ROOT

BENCHMARK, LEARNING = (
    ROOT / 'tools' / 'analysis_tools' / f'{name}.py' for name in ('benchmark', 'compare_learning')
)


@pytest.mark.slow
def test_benchmark(monkeypatch, capsys, tmp_path):
    benchmark = load_script(BENCHMARK)
    # Fresh processes for it are in another test.
    monkeypatch.setattr(
        benchmark, 'measured_apart', lambda case, args: benchmark.memory_of(case, args.device)
    )
    command = [
        'benchmark.py',
        'hcnet_t_ref',
        'hcnet_t',
        '--sizes',
        32,
        64,
        '--batch',
        1,
        '--rounds',
        2,
        '--seconds',
        0.01,
        '--threads',
        torch.get_num_threads(),
        '--memory',
        '--csv',
        tmp_path / 'rows.csv',
        '--plot',
        tmp_path / 'resolution.png',
    ]
    monkeypatch.setattr(sys, 'argv', list(map(str, command)))
    benchmark.main()
    said = capsys.readouterr().out
    with open(tmp_path / 'rows.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert [(row['model'], row['size']) for row in rows] == [
        ('hcnet_t_ref', '32'),
        ('hcnet_t', '32'),
        ('hcnet_t_ref', '64'),
        ('hcnet_t', '64'),
    ]
    for row, first in zip(rows, [rows[0], rows[0], rows[2], rows[2]]):
        ratio = float(first['ms_per_image']) / float(row['ms_per_image'])
        assert float(row['ratio_to_first']) == pytest.approx(ratio, rel=0.01)
        assert float(row['peak_memory_mb']) > 100
        assert f"| {row['ms_per_image']} |" in said
    assert Image.open(tmp_path / 'resolution.png').size[0] > 1000


def test_benchmark_names_and_leaves_out_what_fails(monkeypatch, capsys):
    benchmark = load_script(BENCHMARK)

    def make_step(case, device):
        if case.model == 'large':
            raise MemoryError('for its weights')

        def step():
            if case.compile != 'off' and case.model != 'good':
                raise RuntimeError('no compiler\nand a long log')

        return step

    monkeypatch.setattr(benchmark, 'make_step', make_step)
    cases = [
        benchmark.Case(model, 'channels_last', compile, 'inference', 'fp32', 1, 32)
        for model in ('good', 'bad', 'large')
        for compile in ('off', 'whole')
    ]
    args = argparse.Namespace(device='cpu', clock='wall', seconds=0.001, rounds=2)
    rows = benchmark.measure(cases, args)
    assert [(row['model'], row['compile']) for row in rows] == [
        ('good', 'off'),
        ('good', 'whole'),
        ('bad', 'off'),
    ]
    assert capsys.readouterr().out.splitlines() == [
        'bad, fp32, channels_last, compile whole, 32: left out, RuntimeError: no compiler and a '
        'long log',
        'large, fp32, channels_last, compile off, 32: left out, MemoryError: for its weights',
        'large, fp32, channels_last, compile whole, 32: left out, MemoryError: for its weights',
    ]
    with pytest.raises(SystemExit, match='every row failed'):
        benchmark.measure(cases[3:], args)


def test_benchmark_goes_on_without_swin_in_bfloat16(capsys):
    benchmark = load_script(BENCHMARK)
    cases = [
        benchmark.Case(model, 'channels_last', 'off', 'inference', 'bf16', 1, 32)
        for model in ('swin_t', 'hcnet_t')
    ]
    args = argparse.Namespace(device='cpu', clock='processor', seconds=0.001, rounds=1)
    assert [row['model'] for row in benchmark.measure(cases, args)] == ['hcnet_t']
    assert 'swin_t, bf16, channels_last, compile off, 32: left out' in capsys.readouterr().out


def test_processor_time_is_that_of_a_cpu(monkeypatch, capsys):
    benchmark = load_script(BENCHMARK)
    monkeypatch.setattr(sys, 'argv', ['benchmark.py', '--clock', 'processor', '--device', 'cuda'])
    with pytest.raises(SystemExit):
        benchmark.parse_args()
    assert '--clock processor is for --device cpu' in capsys.readouterr().err


def test_only_our_models_have_blocks_to_compile():
    benchmark = load_script(BENCHMARK)
    case = benchmark.Case('resnet50', 'channels_last', 'blocks', 'inference', 'fp32', 1, 32)
    with pytest.raises(UserError, match='this model has none'):
        benchmark.make_step(case, 'cpu')


def test_benchmark_counts():
    benchmark = load_script(BENCHMARK)
    args = argparse.Namespace(models=['resnet50', 'hcnet_t'], sizes=[64], batch=2)
    rows = [line.split(' | ') for line in benchmark.counts(args).splitlines()[2:]]
    assert [row[:2] for row in rows] == [
        [f'| {model}', mode] for model in args.models for mode in ('inference', 'training')
    ]
    counts = [int(row[2]) for row in rows]
    expected = count_operations(HcNet(out_indices=(3,)).eval(), (2, 3, 64, 64), training=False)
    assert counts[2] == sum(expected.values()) and counts[3] > 2 * counts[2]
    # A ResNet-50: 53 convolutions, 53 norms, 49 ReLUs, a pooling, 16 additions.
    assert counts[0] == 53 + 53 + 49 + 1 + 16


@pytest.mark.slow
def test_peak_memory_is_not_that_of_the_parent():
    benchmark = load_script(BENCHMARK)
    args = argparse.Namespace(device='cpu', threads=1)
    sizes = [
        benchmark.Case('hcnet_t', 'channels_last', 'off', 'inference', 'fp32', 1, size)
        for size in (64, 640)
    ]
    ballast = np.ones(2 * 2**30 // 8)
    small, large = (benchmark.measured_apart(case, args) for case in sizes)
    assert ballast.all() and small < 1500
    assert large > small + 50


@pytest.mark.slow
def test_benchmark_of_an_unknown_model(tool):
    done = tool('analysis_tools/benchmark.py', 'hcnet_x', fails=True)
    assert "unknown model 'hcnet_x'" in done.stderr and 'Traceback' not in done.stderr


@pytest.mark.slow
def test_compare_learning(tool, digits, tmp_path):
    command = [
        'analysis_tools/compare_learning.py',
        '--data',
        digits / 'classification',
        '--models',
        'HcNet',
        'ResNet',
        '--seeds',
        2,
        '--epochs',
        2,
        '--tune-epochs',
        1,
        '--rates',
        1e-3,
        2e-3,
        '--most',
        64,
        '--jobs',
        1,
        '--out',
        tmp_path / 'learning',
    ]
    done = tool(*command)
    table = (tmp_path / 'learning.md').read_text()
    assert table in done.stdout
    assert [line.split(' | ')[0] for line in table.splitlines()[2:]] == ['| HcNet', '| ResNet']
    assert Image.open(tmp_path / 'learning.png').size[1] > 400
    with open(tmp_path / 'learning/runs.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    # Two rates of two architectures, then two seeds of both.
    assert [row['purpose'] for row in rows].count('tune') == 4 and len(rows) == 8
    # It goes on from what is there, and the same command says the same.
    assert tool(*command).stdout.splitlines()[-6:-2] == done.stdout.splitlines()[-6:-2]
    assert len((tmp_path / 'learning/runs.csv').read_text().splitlines()) == 9


@pytest.mark.slow
def test_compare_learning_without_data(tool, tmp_path):
    done = tool('analysis_tools/compare_learning.py', '--data', tmp_path, fails=True)
    assert f"no folder '{tmp_path}/train'" in done.stderr and 'make_digits.py' in done.stderr


def test_models_have_equal_parameters():
    tool = load_script(LEARNING)
    target = tool.parameters(tool.MODELS['HcNet'].build(tool.WIDTH))
    for model in tool.MODELS.values():
        size = tool.parameters(model.build(tool.width_of(model)))
        assert abs(size / target - 1) <= tool.TOLERANCE
    assert isinstance(tool.MODELS['HcNet, k = 3.0'].build(34), HcNet)


def test_a_fifth_is_held_out_to_tune_with(digits):
    tool = load_script(LEARNING)
    folder = str(digits / 'classification')
    (x, y), (x_tune, y_tune) = tool.read_data(folder, most=1000, held_out=True)
    assert (len(y), len(y_tune)) == (52, 12) and x.shape == (52, 3, tool.SIDE, tool.SIDE)
    images = {image.numpy().tobytes() for image in x}
    assert not images & {image.numpy().tobytes() for image in x_tune}
    (x, y), (_, y_test) = tool.read_data(folder, most=40, held_out=False)
    assert (len(y), len(y_test)) == (40, 20)


@pytest.mark.slow
def test_benchmark_of_hooks(tool):
    said = tool(
        'analysis_tools/benchmark_hooks.py',
        '--batch',
        2,
        '--size',
        32,
        '--rounds',
        1,
        '--batch-norms',
        2,
        '--boxes',
        1000,
    ).stdout
    for name in ('FiniteHook', 'DataFaultHook', 'PreemptionHook', 'exact resumption'):
        row = next(line for line in said.splitlines() if line.startswith(f'| {name} |'))
        own, step, share, ratio = row.strip('| ').split(' | ')[1:]
        assert 0 < float(own) < float(step) and float(ratio) > 0
        # They are rounded to 0.001 ms, 1 ms and 0.01 %.
        low = 100 * (float(own) - 0.0005) / (float(step) + 0.5) - 0.005
        high = 100 * (float(own) + 0.0005) / (float(step) - 0.5) + 0.005
        assert low <= float(share.rstrip(' %')) <= high
    for name in (
        'sample (32 photos)',
        'COCO file (1 000 boxes)',
        'data set of the COCO file',
        'checkpoint',
    ):
        row = next(line for line in said.splitlines() if line.startswith(f'| {name}'))
        assert float(row.strip('| ').split(' | ')[-1]) > 0
