"""What each of the default hooks, and each look at the data, adds to training.

Training steps of a classifier: every hook is measured against the same steps without it, which take
turns with its own, one by one. "ms in its calls" is the time that the host spends in the hook,
which on a CPU is all of it; "step over without" is the median of the ratios of neighbouring steps
and holds what the device does besides. Then once per sample, per annotation file and per
checkpoint: the time with the check over that without it, in turns as well.

On a CPU times are those of the processor, which other programs on the machine change less than they
change the clock's; only writing a checkpoint is by the clock.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.device import get_device
from mmengine.fileio import get_file_backend
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import HOOKS, LOOPS
from mmengine.runner import BaseLoop, Runner
from torch import Tensor, nn

from mmhcnet import HcNet, VHeat
from mmhcnet.cli.config import fuse_optimizer
from mmhcnet.datasets.check import DataSetCheck
from mmhcnet.datasets.check.sources import build_full, sources_of
from mmhcnet.inference.timing import synchronize
from mmhcnet.training.image_files import read_through_backend
from mmhcnet.training.resumable_data import seed_process
from mmhcnet.training.sample_rules import boxes_left_out
from mmhcnet.training.tolerant_data import read_tolerantly

MODELS = dict(
    hcnet_t=(HcNet, 'tiny'),
    hcnet_s=(HcNet, 'small'),
    hcnet_b=(HcNet, 'base'),
    vheat_t=(VHeat, 'tiny'),
    vheat_s=(VHeat, 'small'),
    vheat_b=(VHeat, 'base'),
)
# What a hook does during an iteration; the last three FiniteHook has torch call.
CALLS = (
    'before_train_iter',
    'after_train_iter',
    'after_loading',
    '_see_losses',
    '_before_step',
    '_after_step',
)


class Classifier(BaseModel):
    """A backbone, as many batch norms as a decoder has, global average pooling, linear layer."""

    def __init__(self, model: str, batch_norms: int):
        super().__init__()
        cls, arch = MODELS[model]
        self.backbone = cls(arch, out_indices=(3,))
        channels = self.backbone.norm3.weight.numel()
        self.norms = nn.Sequential(*(nn.BatchNorm2d(channels) for _ in range(batch_norms)))
        self.head = nn.Linear(channels, 1000)

    def forward(self, inputs: Tensor, labels: Tensor, mode: str = 'tensor') -> Any:
        scores = self.head(self.norms(self.backbone(inputs)[-1]).mean((2, 3)))
        return dict(loss=nn.functional.cross_entropy(scores, labels)) if mode == 'loss' else scores


class Seeding(Hook):
    """What our loops do in each iteration so that a run can be resumed exactly."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        seed_process(0, 0, batch_idx)


class Listening(Hook):
    """What our loops ask of ``DataFaultHook`` in each iteration."""

    def __init__(self):
        self.hook = HOOKS.build(dict(type='mmhcnet.DataFaultHook'))

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.hook.after_loading(runner, faults=[])


def measured_hooks() -> dict[str, Hook]:
    return {
        'FiniteHook': HOOKS.build(dict(type='mmhcnet.FiniteHook')),
        'DataFaultHook': Listening(),
        'PreemptionHook': HOOKS.build(dict(type='mmhcnet.PreemptionHook')),
        'exact resumption': Seeding(),
    }


# Of the processor all threads' seconds, so compare shares, or run with OMP_NUM_THREADS=1.
now = time.perf_counter if torch.cuda.is_available() else time.process_time


class Clock:
    """Time spent in calls of a hook."""

    def __init__(self, hook: Hook):
        self.seconds = 0.0
        for name in CALLS:
            if hasattr(hook, name):
                setattr(hook, name, self._timed(getattr(hook, name)))

    def _timed(self, call: Callable) -> Callable:
        def timed(*args, **kwargs):
            start = now()
            try:
                return call(*args, **kwargs)
            finally:
                self.seconds += now() - start

        return timed


@LOOPS.register_module()
class TurnsLoop(BaseLoop):
    """Steps without and with each hook, in turns; ``rows`` holds what came of it."""

    max_epochs = epoch = iter = 0
    max_iters = 1

    def __init__(self, runner: Runner, dataloader: dict, rounds: int, size: int):
        super().__init__(runner, dataloader)
        self.rounds = rounds
        self.rows: list[list] = []
        batch = dataloader['batch_size']
        self.batch = dict(
            inputs=torch.randn(batch, 3, size, size), labels=torch.randint(1000, (batch,))
        )

    def step(self, hooks: list[Hook]) -> float:
        start = now()
        for hook in hooks:
            hook.before_train_iter(self.runner, batch_idx=self.iter, data_batch=self.batch)
        outputs = self.runner.model.train_step(self.batch, self.runner.optim_wrapper)
        for hook in hooks:
            hook.after_train_iter(
                self.runner, batch_idx=self.iter, data_batch=self.batch, outputs=outputs
            )
        synchronize(get_device())
        self.iter += 1
        return now() - start

    def run(self) -> None:
        self.runner.call_hook('before_train')
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        mmengines = self.runner.hooks
        for name, hook in measured_hooks().items():
            clock = Clock(hook)
            ratios, plain, own = [], [], []
            for turn in range(self.rounds + 1):
                without = self.step(mmengines)
                # It registers with model and optimizer, and leaves them again.
                hook.before_train(self.runner)
                self.step([hook, *mmengines])
                clock.seconds = 0.0
                with_hook = self.step([hook, *mmengines])
                spent = clock.seconds
                hook.after_train(self.runner)
                if turn:
                    plain.append(without)
                    ratios.append(with_hook / without)
                    own.append(spent)
            self.rows.append(
                [
                    name,
                    1e3 * statistics.median(own),
                    1e3 * statistics.median(plain),
                    statistics.median(ratios),
                ]
            )


def measure_hooks(args: argparse.Namespace, work_dir: str) -> list[list]:
    optim_wrapper = dict(optimizer=dict(type='AdamW', lr=1e-4))
    runner = Runner(
        Classifier(args.model, args.batch_norms),
        work_dir,
        train_cfg=dict(type='TurnsLoop', rounds=args.rounds, size=args.size),
        train_dataloader=dict(
            batch_size=args.batch,
            dataset=list(range(args.batch)),
            sampler=dict(type='DefaultSampler', shuffle=False),
        ),
        optim_wrapper=fused(optim_wrapper),
        default_hooks=dict(logger=None, checkpoint=None),
        experiment_name='hooks',
        log_level='WARNING',
    )
    runner.train()
    return runner.train_loop.rows


def fused(optim_wrapper: dict) -> dict:
    """As ``tools/train.py`` builds it."""
    cfg = Config(dict(optim_wrapper=optim_wrapper))
    fuse_optimizer(cfg)
    return cfg.optim_wrapper


def in_turns(
    rounds: int,
    without: Callable[[], Any],
    with_it: Callable[[], Any],
    clock: Callable[[], float] = now,
) -> tuple:
    """Median milliseconds of both and the median ratio, after a first turn that does not count."""
    times = []
    for _ in range(rounds + 1):
        turn = []
        for call in (without, with_it):
            start = clock()
            call()
            turn.append(1e3 * (clock() - start))
        times.append(turn)
    plain, checked = zip(*times[1:])
    return (
        statistics.median(plain),
        statistics.median(checked),
        statistics.median(b / a for a, b in times[1:]),
    )


class Photos(BaseDataset):
    def load_data_list(self) -> list[dict]:
        return [dict(img_path=str(path), gt_label=0) for path in sorted(self.data_root.iterdir())]


def measure_samples(rounds: int, folder: Path) -> tuple | None:
    """Loading and cropping photos of ImageNet's usual size, with the looks of DataFaultHook."""
    try:
        import mmcv.transforms  # noqa: F401 (registers the steps)
    except ImportError:
        return None
    import cv2

    folder.mkdir()
    rng = np.random.RandomState(0)
    for i in range(32):
        smooth = cv2.resize(rng.randint(0, 256, (24, 32, 3), dtype=np.uint8), (500, 375))
        cv2.imwrite(str(folder / f'{i}.jpg'), smooth)
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='Resize', scale=(256, 256)),
        dict(type='RandomFlip', prob=0.5),
    ]
    plain, checked = (
        Photos(data_root=folder, data_prefix={}, pipeline=list(pipeline)) for _ in range(2)
    )
    read_through_backend(checked)
    return in_turns(
        rounds,
        lambda: [plain[i] for i in range(32)],
        lambda: [read_tolerantly(checked, i) for i in range(32)],
    )


def write_coco(boxes: int, path: Path) -> None:
    """A COCO file of one class with seven boxes to an image, as COCO has on average."""
    images = [
        dict(id=i, file_name=f'{i}.jpg', width=640, height=480) for i in range(1 + boxes // 7)
    ]
    annotations = [
        dict(
            id=i,
            image_id=i % len(images),
            category_id=1,
            bbox=[9.5, 8.5, 99.5, 80.5],
            area=8009.0,
            iscrowd=0,
            segmentation=[[9.5 + j for j in range(24)]],
        )
        for i in range(boxes)
    ]
    categories = [dict(id=1, name='box')]
    path.write_text(json.dumps(dict(images=images, annotations=annotations, categories=categories)))


def measure_annotations(rounds: int, path: Path) -> tuple:
    """Reading a COCO file, and looking at its boxes for those that are left out."""

    def look():
        content = json.loads(path.read_bytes())
        return list(boxes_left_out(content))

    return in_turns(rounds, lambda: json.loads(path.read_bytes()), look)


def measure_check(rounds: int, path: Path) -> tuple | None:
    """mmdet's data set of a COCO file, and the check of ``tools/train.py`` before it."""
    try:
        import mmdet.datasets  # noqa: F401 (registers the data set)
    except ImportError:
        return None
    settings = dict(
        type='mmdet.CocoDataset',
        ann_file=str(path),
        data_prefix=dict(img=''),
        metainfo=dict(classes=('box',)),
    )
    cfg = Config(dict(default_scope='mmdet', train_dataloader=dict(dataset=settings)))

    def check():
        (source,) = sources_of(cfg, 'train')
        return list(DataSetCheck(source).quick())

    return in_turns(rounds, lambda: build_full(settings), lambda: (check(), build_full(settings)))


def measure_checkpoints(args: argparse.Namespace, folder: Path) -> tuple:
    """Writing a checkpoint's bytes as mmengine does, and flushed, read back and with its record."""
    weights = Classifier(args.model, 0).state_dict()
    content = bytes(3 * sum(value.numel() * value.element_size() for value in weights.values()))
    ours = get_file_backend(backend_args=dict(backend='mmhcnet.checkpoint'))
    return in_turns(
        max(2, args.rounds // 4),
        lambda: (folder / 'a.pth').write_bytes(content),
        lambda: ours.put(content, folder / 'b.pth'),
        time.perf_counter,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--model', choices=list(MODELS), default='hcnet_t')
    parser.add_argument('--batch', type=int, default=4)
    parser.add_argument('--size', type=int, default=224)
    parser.add_argument(
        '--batch-norms',
        type=int,
        default=20,
        help="batch norms after the backbone (default: 20; UperNet's heads have "
        'about as many, those of classification and detection none)',
    )
    parser.add_argument(
        '--boxes', type=int, default=100_000, help='of the COCO file (default: %(default)s)'
    )
    parser.add_argument('--rounds', type=int, default=20)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        few, coco = max(2, args.rounds // 4), folder / 'coco.json'
        boxes = f'{args.boxes:,}'.replace(',', ' ')
        write_coco(args.boxes, coco)
        with redirect_stdout(StringIO()):
            hooks = measure_hooks(args, str(folder / 'run'))
        once = {
            'sample (32 photos)': measure_samples(args.rounds, folder / 'photos'),
            f'COCO file ({boxes} boxes)': measure_annotations(few, coco),
            f'data set of the COCO file ({boxes} boxes), checked before': measure_check(few, coco),
            'checkpoint (weights and moments)': measure_checkpoints(args, folder),
        }
    print(
        f'{args.model}, batch {args.batch}, {args.size}x{args.size}, {args.batch_norms} batch '
        f'norms, {"GPU" if torch.cuda.is_available() else "CPU"}, torch {torch.__version__}, '
        f'{torch.get_num_threads()} threads\n'
    )
    print(
        '| in each iteration | ms in its calls | step without, ms | of it | step over without |\n'
        '| --- | --- | --- | --- | --- |'
    )
    for name, own, step, ratio in hooks:
        print(f'| {name} | {own:.3f} | {step:.0f} | {100 * own / step:.2f} % | {ratio:.3f} |')
    print('\n| for each | ms without | ms with | ratio |\n| --- | --- | --- | --- |')
    for name, row in once.items():
        print(
            f'| {name} | needs mmcv or mmdet | | |'
            if row is None
            else f'| {name} | {row[0]:.1f} | {row[1]:.1f} | {row[2]:.3f} |'
        )


if __name__ == '__main__':
    main()
