"""Learning curves from what a training has logged."""

import json
from pathlib import Path

from .figures import new_figure, styled


def read_curve(work_dir: Path, key: str = 'loss') -> tuple[list[int], list[float]]:
    """Steps and logged values of the newest training in a work directory.

    Args:
        work_dir (Path): Of ``tools/train.py``.
        key (str): Name of the logged value.

    Raises:
        FileNotFoundError: No training has logged anything there.
    """
    logs = list(work_dir.glob('*/vis_data/scalars.json'))
    if not logs:
        raise FileNotFoundError(
            f"no */vis_data/scalars.json in '{work_dir}': name the --work-dir of a training"
        )
    newest = max(logs, key=lambda path: path.stat().st_mtime)
    lines = [json.loads(line) for line in newest.read_text().splitlines()]
    found = [(line['step'], line[key]) for line in lines if key in line]
    return [step for step, _ in found], [value for _, value in found]


@styled
def draw_curves(
    curves: dict[str, tuple[list[int], list[float]]], out: Path, title: str, ylabel: str
) -> None:
    """Writes curves by name, for example ``{'HcNet': (steps, losses)}``, into one picture."""
    figure = new_figure((5, 3.4))
    axes = figure.subplots()
    for (name, (steps, values)), style in zip(curves.items(), ('o-', 's--', '^:', 'd-.')):
        axes.plot(steps, values, style, label=name, markersize=4)
    axes.set(title=title, xlabel='iteration', ylabel=ylabel, ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(out, dpi=130)
