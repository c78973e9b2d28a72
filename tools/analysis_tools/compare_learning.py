"""Small HcNet, vHeat, ResNet, ConvNeXt and Swin, trained alike: accuracies, learning curves.

Every model has as many parameters as HcNet (within 5 %, by its widths) and the same data, random
crops, batches, epochs, AdamW with a cosine schedule, and initialisation; HcNet comes with every
setting of the paper's tables 5 (k) and 6 (filter). The learning rate is tuned once per
architecture, on a fifth of the first data set's training images that is held out, with one seed;
HcNet's settings share it. Then every model is trained on every data set with several seeds.

Data are folders in ImageNet's layout, with train and val or test in them. What is done is kept in
OUT/runs.csv: the command goes on from there. Written at the end: OUT.png and the tables OUT.md.
"""

import argparse
import csv
import functools
import json
import statistics
import time
from bisect import bisect_left
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from mmhcnet import HcNet, VHeat
from mmhcnet.inference.timing import Classifier

matplotlib.use('Agg')
from matplotlib import pyplot as plt  # noqa: E402  (after the choice of a backend without windows)

DEPTHS = [1, 1, 2, 1]
WIDTH = 33
SIDE = 32
BATCH = 64
RATES = (5e-4, 1e-3, 2e-3, 4e-3)
TOLERANCE = 0.05
FIELDS = ['purpose', 'data', 'model', 'seed', 'lr', 'epochs', 'parameters', 'seconds', 'accuracies']


def widths(width: int) -> list[int]:
    """Of the four stages. The stems of HcNet and vHeat halve the first."""
    return [width // 2 * 2, 2 * width, 3 * width, 4 * width]


def hcnet(**settings) -> Callable[[int], nn.Module]:
    return lambda width: HcNet(
        dict(embed_dims=widths(width), depths=DEPTHS), out_indices=(3,), **settings
    )


def vheat(width: int) -> nn.Module:
    arch = dict(embed_dims=widths(width), depths=DEPTHS, post_norm=False, layer_scale=None)
    return VHeat(arch, img_size=SIDE, out_indices=(3,))


def resnet(width: int) -> nn.Module:
    from mmpretrain.models import ResNet

    return ResNet(18, stem_channels=width, base_channels=width, out_indices=(3,))


def convnext(width: int) -> nn.Module:
    from mmpretrain.models import ConvNeXt

    # A layer scale of 1e-6 is for hundreds of epochs.
    return ConvNeXt(
        dict(depths=DEPTHS, channels=widths(width)),
        gap_before_final_norm=False,
        layer_scale_init_value=0.0,
    )


def swin(width: int) -> nn.Module:
    from mmpretrain.models import SwinTransformer

    return SwinTransformer(
        dict(embed_dims=width, depths=DEPTHS, num_heads=[1, 2, 4, 8]),
        img_size=SIDE,
        window_size=4,
        pad_small_map=True,
    )


class Model(NamedTuple):
    """How to build a model of a width; models of one architecture share the learning rate."""

    architecture: str
    build: Callable[[int], nn.Module]


MODELS = {
    'HcNet': Model('HcNet', hcnet()),
    'HcNet, k = 0.1': Model('HcNet', hcnet(k=0.1)),
    'HcNet, k = 1.0': Model('HcNet', hcnet(k=1.0)),
    'HcNet, k = 3.0': Model('HcNet', hcnet(k=3.0)),
    'HcNet, k learnable': Model('HcNet', hcnet(k='learnable')),
    'HcNet, no filter': Model('HcNet', hcnet(with_filter=False)),
    'vHeat': Model('vHeat', vheat),
    'ResNet': Model('ResNet', resnet),
    'ConvNeXt': Model('ConvNeXt', convnext),
    'Swin': Model('Swin', swin),
}


class Job(NamedTuple):
    """One training."""

    purpose: str  # tune, or compare
    data: str
    model: str
    seed: int
    lr: float
    epochs: int


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@functools.cache
def width_of(model: Model) -> int:
    """The width that comes nearest to HcNet's parameters."""
    target = parameters(MODELS['HcNet'].build(WIDTH))
    size = functools.cache(lambda width: parameters(model.build(width)))
    # A wider model has more parameters.
    width = 8 + bisect_left(range(8, 64), target, key=size)
    width = min(max(8, width - 1), width, key=lambda w: abs(size(w) - target))
    if abs(size(width) / target - 1) > TOLERANCE:
        raise ValueError(f'no width gives {model.architecture} the parameters of HcNet')
    return width


def initialise(model: nn.Module) -> None:
    """The same for all: deviations of 0.02, as most of them have, are for hundreds of channels."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity='relu')
            if module.bias is not None:
                nn.init.zeros_(module.bias)


# Data


def read_split(folder: Path) -> tuple[Tensor, Tensor]:
    """Images (N, 3, S, S) uint8 and labels (N,) of class folders."""
    images, labels = [], []
    for label, name in enumerate(sorted(p.name for p in folder.iterdir() if p.is_dir())):
        for path in sorted((folder / name).iterdir()):
            with Image.open(path) as image:
                images.append(np.asarray(image.convert('RGB').resize((SIDE, SIDE))))
            labels.append(label)
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), torch.tensor(labels)


def read_data(folder: str, most: int, held_out: bool) -> tuple[tuple, tuple]:
    """Training and test images; to tune with, a fifth of the training images is the test."""
    root = Path(folder)
    x, y = read_split(root / 'train')
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    if held_out:
        test, train = order[: len(y) // 5], order[len(y) // 5 :]
        return (x[train[:most]], y[train[:most]]), (x[test], y[test])
    test = next(root / name for name in ('val', 'test') if (root / name).is_dir())
    return (x[order[:most]], y[order[:most]]), read_split(test)


def crop(x: Tensor, rng: torch.Generator) -> Tensor:
    """Each image shifted by up to 4 pixels either way, the border filled with its mean colour 0."""
    padded = nn.functional.pad(x, (4, 4, 4, 4))
    shifts = torch.randint(0, 9, (len(x), 2), generator=rng).tolist()
    return torch.stack(
        [image[:, i : i + SIDE, j : j + SIDE] for image, (i, j) in zip(padded, shifts)]
    )


# Training


def train(job: Job, most: int, device: str, threads: int) -> dict[str, object]:
    """One row of the table."""
    torch.set_num_threads(threads)
    (x, y), (x_test, y_test) = read_data(job.data, most, held_out=job.purpose == 'tune')
    mean, std = (f(x.float(), dim=(0, 2, 3), keepdim=True) for f in (torch.mean, torch.std))
    x, x_test = ((z.float() - mean) / std for z in (x, x_test))
    torch.manual_seed(job.seed)
    rng = torch.Generator().manual_seed(job.seed)
    model = MODELS[job.model]
    classifier = Classifier(model.build(width_of(model)), int(y.max()) + 1)
    initialise(classifier)
    classifier.to(device)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=job.lr, weight_decay=0.05)
    size = min(BATCH, len(y))
    steps = job.epochs * (len(y) // size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, job.lr, steps, pct_start=0.1, cycle_momentum=False
    )
    accuracies, start = [], time.time()
    for _ in range(job.epochs):
        classifier.train()
        order = torch.randperm(len(y), generator=rng)
        for i in range(0, len(y) - size + 1, size):
            batch = order[i : i + size]
            scores = classifier(crop(x[batch], rng).to(device))
            loss = nn.functional.cross_entropy(scores, y[batch].to(device))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(classifier.parameters(), 5.0)
            optimizer.step()
            schedule.step()
        accuracies.append(accuracy(classifier, x_test, y_test, device))
    return dict(
        job._asdict(),
        parameters=parameters(classifier),
        seconds=round(time.time() - start, 1),
        accuracies=json.dumps(accuracies),
    )


@torch.no_grad()
def accuracy(classifier: nn.Module, x: Tensor, y: Tensor, device: str) -> float:
    """Top-1 in percent."""
    classifier.eval()
    right = sum(
        int((classifier(part.to(device)).argmax(1).cpu() == truth).sum())
        for part, truth in zip(x.split(200), y.split(200))
    )
    return round(100 * right / len(y), 2)


class Runs:
    """The finished trainings, kept in a file."""

    def __init__(self, path: Path):
        self.path = path
        self.rows: dict[Job, dict] = {}
        if path.exists():
            with open(path, newline='') as file:
                for row in csv.DictReader(file):
                    self.rows[self._job(row)] = row

    @staticmethod
    def _job(row: dict) -> Job:
        return Job(
            row['purpose'],
            row['data'],
            row['model'],
            int(row['seed']),
            float(row['lr']),
            int(row['epochs']),
        )

    def complete(self, jobs: list[Job], args: argparse.Namespace) -> None:
        """Train what is not there yet."""
        left = [job for job in jobs if job not in self.rows]
        if not left:
            return
        run = functools.partial(train, most=args.most, device=args.device, threads=args.threads)
        new = not self.path.exists()
        # Forked processes would inherit the threads of this one.
        with open(self.path, 'a', newline='') as file, get_context('spawn').Pool(args.jobs) as pool:
            writer = csv.DictWriter(file, FIELDS)
            if new:
                writer.writeheader()
            for row in tqdm(pool.imap_unordered(run, left), total=len(left), desc=jobs[0].purpose):
                writer.writerow(row)
                file.flush()
                self.rows[self._job(row)] = {k: str(v) for k, v in row.items()}

    def last(self, job: Job) -> float:
        return json.loads(self.rows[job]['accuracies'])[-1]


def best_rates(runs: Runs, args: argparse.Namespace) -> dict[str, float]:
    """The learning rate of each architecture."""
    names = {MODELS[name].architecture: name for name in reversed(args.models)}
    tried = {
        architecture: [
            Job('tune', args.data[0], name, 0, lr, args.tune_epochs) for lr in args.rates
        ]
        for architecture, name in names.items()
    }
    runs.complete([job for jobs in tried.values() for job in jobs], args)
    return {architecture: max(jobs, key=runs.last).lr for architecture, jobs in tried.items()}


# What comes out


def curves(runs: Runs, jobs: dict[tuple[str, str], list[Job]]) -> dict[tuple[str, str], np.ndarray]:
    """Accuracies (seeds, epochs) of each (data, model)."""
    return {
        key: np.array([json.loads(runs.rows[job]['accuracies']) for job in group])
        for key, group in jobs.items()
    }


def draw(found: dict[tuple[str, str], np.ndarray], data: list[str], path: Path) -> None:
    figure, axes = plt.subplots(
        1, len(data), figsize=(7 * len(data), 5), squeeze=False, layout='constrained'
    )
    for axis, name in zip(axes[0], data):
        for number, (key, values) in enumerate((k, v) for k, v in found.items() if k[0] == name):
            epochs, mean = np.arange(1, values.shape[1] + 1), values.mean(0)
            style = '-' if key[1].startswith('HcNet') else '--'
            (line,) = axis.plot(epochs, mean, style, color=f'C{number}', label=key[1])
            axis.fill_between(
                epochs,
                values.min(0),
                values.max(0),
                alpha=0.12,
                color=line.get_color(),
                linewidth=0,
            )
        axis.set(title=title_of(name), xlabel='epoch', ylabel='top-1 on the test images (%)')
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize=9)
    figure.savefig(path, dpi=100)


def title_of(folder: str) -> str:
    path = Path(folder)
    return path.parent.name if path.name == 'classification' else path.name


def table(
    runs: Runs, jobs: dict[tuple[str, str], list[Job]], data: list[str], models: list[str]
) -> str:
    """Markdown: mean and deviation over the seeds, of the last epoch."""
    lines = [
        f"| model | parameters | learning rate | {' | '.join(map(title_of, data))} | s an epoch |",
        '| --- ' * (4 + len(data)) + '|',
    ]
    for model in models:
        cells = []
        for name in data:
            last = [runs.last(job) for job in jobs[name, model]]
            cells.append(f'{statistics.mean(last):.1f} ± {statistics.pstdev(last):.1f}')
        row = runs.rows[jobs[data[0], model][0]]
        seconds = statistics.median(
            float(runs.rows[job]['seconds']) / job.epochs for job in jobs[data[0], model]
        )
        lines.append(
            f"| {model} | {int(row['parameters']):,} | {float(row['lr']):g} | "
            f"{' | '.join(cells)} | {seconds:.1f} |"
        )
    return '\n'.join(lines)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--data',
        nargs='+',
        default=['data/digits/classification'],
        metavar='FOLDER',
        help='data sets (default: the embedded digits)',
    )
    parser.add_argument(
        '--models',
        nargs='+',
        choices=MODELS,
        default=list(MODELS),
        metavar='NAME',
        help=f"of: {'; '.join(MODELS)} (default: all)",
    )
    parser.add_argument('--seeds', type=int, default=3, help='(default: %(default)s)')
    parser.add_argument('--epochs', type=int, default=10, help='(default: %(default)s)')
    parser.add_argument('--tune-epochs', type=int, default=5, help='(default: %(default)s)')
    parser.add_argument(
        '--rates',
        nargs='+',
        type=float,
        default=list(RATES),
        help='learning rates to choose from (default: %(default)s)',
    )
    parser.add_argument(
        '--most',
        type=int,
        default=3000,
        help='training images of each data set (default: %(default)s)',
    )
    parser.add_argument(
        '--jobs', type=int, default=2, help='trainings at a time (default: %(default)s)'
    )
    parser.add_argument('--threads', type=int, default=1, help='of each (default: %(default)s)')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/learning'))
    args = parser.parse_args()
    for folder in args.data:
        if not (Path(folder) / 'train').is_dir():
            parser.error(
                f"no folder '{folder}/train': give folders in ImageNet's layout; "
                'tools/dataset_converters/make_digits.py makes the digits'
            )
        if not any((Path(folder) / name).is_dir() for name in ('val', 'test')):
            parser.error(f"neither '{folder}/val' nor '{folder}/test' is there")
    return args


def main() -> None:
    args = parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    runs = Runs(args.out / 'runs.csv')
    rates = best_rates(runs, args)
    jobs = {
        (data, name): [
            Job('compare', data, name, seed, rates[MODELS[name].architecture], args.epochs)
            for seed in range(args.seeds)
        ]
        for data in args.data
        for name in args.models
    }
    runs.complete([job for group in jobs.values() for job in group], args)
    draw(curves(runs, jobs), args.data, args.out.with_suffix('.png'))
    text = table(runs, jobs, args.data, args.models)
    args.out.with_suffix('.md').write_text(text + '\n')
    print(f"\n{text}\n\nWritten: {args.out.with_suffix('.png')}, {args.out.with_suffix('.md')}")


if __name__ == '__main__':
    main()
