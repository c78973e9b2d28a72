"""Train and test HcNet and vHeat in all three tasks on the embedded digits, and show it on a page.

In the work directory, for FAMILY hcnet and vheat, and TASK classification, detection and
segmentation:

    index.html                 the page: results, pictures, learning curves, heat, times; one file
    digits.csv                 the table, as docs/results/ has it
    FAMILY_TASK.png            predictions next to the truth
    loss_TASK.png              learning curves
    FAMILY/heat/maps.png       temperature maps; rates.png and diffusion.gif next to it
    FAMILY/TASK/               work directory of the training, with train.txt and test.txt
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

from mmhcnet.visualization.demo import FAMILIES, TASKS, Result, Task, table, write_demo_page

TOOLS = Path(__file__).resolve().parent
CONFIGS = TOOLS.parent / 'configs'
DATA = Path('data/digits')
CLASSIFICATION, DETECTION, SEGMENTATION = TASKS


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


def train_and_test(family: str, task: Task, work_dir: Path, threads: int) -> Result:
    """Train and test one network in one task."""
    folder = work_dir / family / task.name
    folder.mkdir(parents=True, exist_ok=True)
    config = CONFIGS / task.config.format(family)
    name, options = f'{FAMILIES[family]} {task.name}', []
    if task is not CLASSIFICATION:
        # From the classifier, as they would start from ImageNet.
        options = ['--pretrained', checkpoint(work_dir / family / CLASSIFICATION.name)]
    times = [time.time()]
    train = [TOOLS / 'train.py', config, '--work-dir', folder, '--no-validate', *options]
    # A few points more for the learning curves.
    run(
        name,
        folder / 'train.txt',
        threads,
        *train,
        '--cfg-options',
        'default_hooks.logger.interval=20',
    )
    times.append(time.time())
    test = [TOOLS / 'test.py', config, checkpoint(folder), '--work-dir', folder / 'test']
    run(name, folder / 'test.txt', threads, *test, '--out', folder / task.out)
    times.append(time.time())
    newest = max((folder / 'test').glob('*/*.json'), key=lambda p: p.stat().st_mtime)
    measured = json.loads(newest.read_text())
    return Result(
        {metric: measured[key] for key, metric in task.metrics.items()},
        times[1] - times[0],
        times[2] - times[1],
    )


def checkpoint(folder: Path) -> str:
    return (folder / 'last_checkpoint').read_text()


def side_by_side(
    tasks: list[Task], families: list[str], work_dir: Path
) -> dict[tuple[str, str], Result]:
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
    maker = TOOLS / 'dataset_converters' / 'make_digits.py'
    subprocess.run([sys.executable, maker, '--out', DATA], check=True)
    # The classifiers first: the others start from them.
    found = {
        **side_by_side([CLASSIFICATION], args.families, args.work_dir),
        **side_by_side([DETECTION, SEGMENTATION], args.families, args.work_dir),
    }
    results = {
        family: {task.name: found[task.name, family] for task in TASKS} for family in args.families
    }
    page = write_demo_page(args.work_dir, DATA, CONFIGS, results, time.time() - start)
    header, rows = table(results)
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    print()
    for row in (header, ['-' * width for width in widths], *rows):
        print('  '.join(cell.ljust(width) for cell, width in zip(row, widths)))
    print(f'\nOn the embedded digits, val split: {time.time() - start:.0f} s in total')
    print(f'page with pictures, to open in a browser: {page.resolve()}')


if __name__ == '__main__':
    main()
