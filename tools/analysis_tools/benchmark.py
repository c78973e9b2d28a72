"""Throughput and memory of backbones with a classification head, side by side in one process.

Every combination of model, precision, layout and compilation is a row. After a warm-up, which
includes compilation, the rows take turns, round after round; a row's figure is the median of its
rounds, so that whatever else the machine does meets all of them alike. The last column is the
throughput over the first row's of that image size. A row that fails, for whatever reason, is named
and left out.
Peak memory is that of torch's allocator on a GPU, and on a CPU the resident set of a fresh process
per row, libraries included.

--compile: blocks and graphs are --compile and --compile graphs of train.py, for HcNet and VHeat;
whole and whole_graphs are torch.compile of any model, in its default mode and in reduce-overhead.
--count measures no time: it counts the operators that a step issues on a GPU, which takes none.

Models: hcnet_{t,s,b} and vheat_{t,s,b} as they are; with _ref in their plain form, layer by layer;
vheat_*_deploy folded for the image size; from mmpretrain swin_{t,s,b}, convnext_{t,s,b}, resnet50.
"""

import argparse
import csv
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from itertools import product
from typing import NamedTuple

import torch
from torch import nn
from tqdm import tqdm

from mmhcnet import HcNet, VHeat
from mmhcnet.cli.compile import compile_blocks, compiling
from mmhcnet.cli.errors import explain
from mmhcnet.cli.memory import peak_memory
from mmhcnet.inference.operations import count_operations
from mmhcnet.inference.timing import Classifier, timed
from mmhcnet.models.fusion import plain_form

SIZES = dict(t='tiny', s='small', b='base')
LAYOUTS = dict(channels_first=torch.contiguous_format, channels_last=torch.channels_last)
CLOCKS = dict(wall=time.perf_counter, processor=time.process_time)
COMPILE = ('off', 'blocks', 'graphs', 'whole', 'whole_graphs')
DTYPES = dict(fp32=torch.float32, bf16=torch.bfloat16, fp16=torch.float16)
FIELDS = [
    'model',
    'layout',
    'compile',
    'mode',
    'precision',
    'batch',
    'size',
    'ms_per_image',
    'images_per_s',
    'spread_percent',
    'peak_memory_mb',
    'ratio_to_first',
]


class Case(NamedTuple):
    """What one row measures."""

    model: str
    layout: str
    compile: str
    mode: str
    precision: str
    batch: int
    size: int


def build_backbone(name: str, size: int) -> nn.Module:
    """A backbone that returns its last stage only."""
    family, *rest = name.split('_')
    arch = SIZES.get(rest[0] if rest else '')
    if family in ('hcnet', 'vheat') and arch:
        cls = HcNet if family == 'hcnet' else VHeat
        backbone = cls(arch, out_indices=(3,))
        if rest[1:] == ['ref']:
            return plain_form(backbone)
        if family == 'vheat' and rest[1:] == ['deploy']:
            backbone.switch_to_deploy(size)
            return backbone
        if not rest[1:]:
            return backbone
    import mmpretrain.models as peers

    if family == 'swin' and arch and not rest[1:]:
        return peers.SwinTransformer(arch, img_size=224, pad_small_map=True)
    if family == 'convnext' and arch and not rest[1:]:
        return peers.ConvNeXt(arch, gap_before_final_norm=False)
    if name == 'resnet50':
        return peers.ResNet(50)
    sys.exit(
        f"Error: unknown model '{name}': choose hcnet, vheat, swin or convnext with _t, _s or "
        '_b, hcnet_*_ref, vheat_*_ref, vheat_*_deploy, or resnet50'
    )


def compiled(model: nn.Module, how: str) -> nn.Module:
    """The model as one of COMPILE says."""
    if how in ('blocks', 'graphs'):
        compile_blocks(model, graphs=how == 'graphs')
    elif how != 'off':
        return torch.compile(model, mode='default' if how == 'whole' else 'reduce-overhead')
    return model


def make_step(case: Case, device: str) -> Callable[[], None]:
    """One call: inference of a batch, or a training step (forward, backward, AdamW)."""
    torch.manual_seed(0)
    dtype, layout = DTYPES[case.precision], LAYOUTS[case.layout]
    model = Classifier(build_backbone(case.model, case.size)).to(device, memory_format=layout)
    x = torch.randn(case.batch, 3, case.size, case.size, device=device)
    x = x.contiguous(memory_format=layout)
    if case.mode == 'inference':
        # Weights and images in the precision asked for.
        model, x = model.eval().to(dtype), x.to(dtype)
        run = compiled(model, case.compile)

        def step():
            with torch.inference_mode():
                run(x)

        return step

    model.train()
    target = torch.randint(1000, (case.batch,), device=device)
    optimizer = torch.optim.AdamW(model.parameters(), fused=device != 'cpu')
    run = compiled(model, case.compile)

    def step():
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            loss = nn.functional.cross_entropy(run(x), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def memory_of(case: Case, device: str) -> float:
    """Peak memory in MB of a few calls, in this process."""
    step = make_step(case, device)
    if device != 'cpu':
        step()
        torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        step()
    if device != 'cpu':
        return torch.cuda.max_memory_allocated() / 2**20
    return peak_memory() / 2**20


def measured_apart(case: Case, args: argparse.Namespace) -> float:
    """:func:`memory_of` in a fresh process."""
    done = subprocess.run(
        [
            sys.executable,
            __file__,
            '--device',
            args.device,
            '--threads',
            str(args.threads),
            '--worker',
            json.dumps(case._asdict()),
        ],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-2000:].splitlines()[-1])
    return float(done.stdout.split()[-1])


def left_out(case: Case, error: Exception) -> None:
    tqdm.write(
        f'{case.model}, {case.precision}, {case.layout}, compile {case.compile}, '
        f'{case.size}: left out, {type(error).__name__}: {explain(error)[:200]}'
    )


def measure(cases: list[Case], args: argparse.Namespace) -> list[dict]:
    """Times of all cases of one image size, interleaved; one dict per case that does not fail."""
    warm, steps, repeats = [], [], []
    for case in tqdm(cases, desc=f'warm-up at {cases[0].size}', leave=False):
        try:
            step = make_step(case, args.device)
            for _ in range(3):
                step()
            once = timed(step, 1, args.device, CLOCKS[args.clock])
        except Exception as error:  # whatever the model or the compiler raises
            left_out(case, error)
            continue
        warm.append(case)
        steps.append(step)
        repeats.append(max(1, min(100, round(args.seconds / once))))
    if not warm:
        sys.exit('Error: every row failed, for the reasons above')
    times = [[] for _ in warm]
    for _ in tqdm(range(args.rounds), desc=f'rounds at {cases[0].size}', leave=False):
        for row, step, count in zip(times, steps, repeats):
            row.append(timed(step, count, args.device, CLOCKS[args.clock]))
    first = statistics.median(times[0]) / warm[0].batch
    rows = []
    for case, row in zip(warm, times):
        median = statistics.median(row)
        per_image = median / case.batch
        rows.append(
            dict(
                case._asdict(),
                ms_per_image=round(1000 * per_image, 3),
                images_per_s=round(1 / per_image, 2),
                spread_percent=round(100 * (max(row) - min(row)) / median, 1),
                ratio_to_first=round(first / per_image, 3),
                peak_memory_mb='',
            )
        )
    return rows


def environment(args: argparse.Namespace) -> str:
    name = (
        torch.cuda.get_device_name()
        if args.device != 'cpu'
        else f'CPU ({torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads)'
    )
    tf32 = '' if args.device == 'cpu' else f', TF32 {"on" if args.tf32 else "off"}'
    clock = ', processor time' if args.clock == 'processor' else ''
    return f'torch {torch.__version__}, {name}{tf32}{clock}'


def draw(rows: list[dict], path: str, title: str) -> None:
    """Throughput and memory against resolution, one line per model and mode."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    lines = {}
    for row in rows:
        key = row['model'], row['precision'], row['layout'], row['compile']
        lines.setdefault(key, []).append(row)
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.5))
    for panel, key, unit in (
        (panels[0], 'images_per_s', 'images per second'),
        (panels[1], 'peak_memory_mb', 'peak memory (MB)'),
    ):
        for (model, precision, layout, compile), points in lines.items():
            points = [p for p in points if p[key] != '']
            panel.plot(
                [p['size'] for p in points],
                [p[key] for p in points],
                marker='o',
                label=f'{model}, {precision}, {layout.replace("_", " ")}'
                f'{"" if compile == "off" else f", compile {compile}"}',
            )
        panel.set(
            xlabel='height and width of the image (pixels)', ylabel=unit, yscale='log', xscale='log'
        )
        sizes = sorted({row['size'] for row in rows})
        panel.set_xticks(sizes, [str(s) for s in sizes])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    if all(row['peak_memory_mb'] == '' for row in rows):
        panels[1].text(
            0.5, 0.5, 'measured with --memory', transform=panels[1].transAxes, ha='center'
        )
    panels[0].legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def table(rows: list[dict]) -> str:
    """The rows as a Markdown table."""
    lines = ['| ' + ' | '.join(FIELDS) + ' |', '|' + ' --- |' * len(FIELDS)]
    lines += ['| ' + ' | '.join(str(row[field]) for field in FIELDS) + ' |' for row in rows]
    return '\n'.join(lines)


def counts(args: argparse.Namespace) -> str:
    """Operators of inference and of training, per model, as a Markdown table."""
    lines = ['| model | mode | operators | the most frequent |', '| --- | --- | --- | --- |']
    for model, size, mode in product(args.models, args.sizes, ('inference', 'training')):
        training = mode == 'training'
        backbone = build_backbone(model, size)
        backbone.train(training)
        found = count_operations(backbone, (args.batch, 3, size, size), training)
        often = ', '.join(f'{name} {number}' for name, number in found.most_common(5))
        lines.append(f'| {model} | {mode} | {sum(found.values())} | {often} |')
    return '\n'.join(lines)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('models', nargs='*', default=['hcnet_t', 'hcnet_t_ref'])
    parser.add_argument('--mode', choices=['inference', 'training'], default='inference')
    parser.add_argument('--batch', type=int, default=4)
    parser.add_argument(
        '--sizes',
        type=int,
        nargs='+',
        default=[224],
        help='heights and widths of the images (default: 224)',
    )
    parser.add_argument(
        '--precision',
        nargs='+',
        choices=DTYPES,
        default=['fp32'],
        help='inference: of weights and images; training: of autocast',
    )
    parser.add_argument(
        '--layouts',
        nargs='+',
        choices=LAYOUTS,
        default=['channels_first'],
        help='of images and weights',
    )
    parser.add_argument('--compile', nargs='+', choices=COMPILE, default=['off'])
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--threads', type=int, default=os.cpu_count())
    parser.add_argument(
        '--clock',
        choices=CLOCKS,
        default='wall',
        help='processor: time that the threads of this process compute, summed, '
        'for a CPU that others use too; best with --threads 1',
    )
    parser.add_argument('--tf32', action='store_true', help='TF32 products on a GPU')
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--seconds', type=float, default=1.0, help='per row and round')
    parser.add_argument('--memory', action='store_true', help='measure the peak memory as well')
    parser.add_argument(
        '--count',
        action='store_true',
        help='count the operators of a step instead of measuring its time',
    )
    parser.add_argument(
        '--csv', help='file for the rows; in docs/results/ results_page.py reads it'
    )
    parser.add_argument('--plot', help='picture of throughput and memory against resolution')
    parser.add_argument('--worker', type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.clock == 'processor' and args.device != 'cpu':
        parser.error('--clock processor is for --device cpu: on a GPU it would time the host')
    return args


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    if args.tf32:
        torch.set_float32_matmul_precision('high')
        torch.backends.cudnn.allow_tf32 = True
    if args.worker:
        print(memory_of(Case(**args.worker), args.device))
        return
    if args.count:
        print(counts(args))
        return
    rows = []
    for size in args.sizes:
        cases = [
            Case(model, layout, compile, args.mode, precision, args.batch, size)
            for model, precision, layout, compile in product(
                args.models, args.precision, args.layouts, args.compile
            )
        ]
        with nullcontext() if args.compile == ['off'] else compiling():
            measured = measure(cases, args)
        if args.memory:
            for row in tqdm(measured, desc='memory', leave=False):
                case = Case(**{field: row[field] for field in Case._fields})
                try:
                    row['peak_memory_mb'] = round(measured_apart(case, args))
                except RuntimeError as error:
                    left_out(case, error)
        rows += measured
    print(f'{environment(args)}; medians of {args.rounds} interleaved rounds\n\n{table(rows)}')
    for model in args.models:
        own = [row for row in rows if row['model'] == model and row['size'] == args.sizes[0]]
        if not own:
            continue
        best = min(own, key=lambda row: row['ms_per_image'])
        print(
            f'\n{model} at its best, {args.sizes[0]}: {best["ms_per_image"]} ms an image, '
            f'{best["precision"]}, {best["layout"]}, compile {best["compile"]}',
            end='',
        )
    print()
    if args.csv:
        with open(args.csv, 'w', newline='') as file:
            # With what it takes to understand them elsewhere, and to get them again.
            about = dict(environment=environment(args), command=shlex.join(['python', *sys.argv]))
            writer = csv.DictWriter(file, [*FIELDS, *about])
            writer.writeheader()
            writer.writerows({**row, **about} for row in rows)
    if args.plot:
        draw(rows, args.plot, environment(args))


if __name__ == '__main__':
    main()
