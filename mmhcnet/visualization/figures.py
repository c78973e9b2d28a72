"""matplotlib without its global state: no backend is chosen, no setting stays changed."""

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

STYLE = {'font.size': 11, 'savefig.bbox': 'tight', 'image.interpolation': 'nearest'}
# A decorator, and a context manager.
styled = matplotlib.rc_context(STYLE)


def new_figure(size: tuple[float, float]) -> Figure:
    """A figure of so many inches that lays itself out."""
    figure = Figure(figsize=size, layout='constrained')
    FigureCanvasAgg(figure)
    return figure


@styled
def draw_row(maps: dict[str, Any], out: Path, label: str, photo: Any = None, **style: Any) -> None:
    """Write maps side by side with one colour bar, over a photo if there is one.

    Args:
        maps (dict): Title -> map (H, W).
        out (Path): Picture to write.
        label (str): Of the colour bar.
        photo (PIL.Image.Image, optional): Drawn by itself first, and below each map.
        style: For ``Axes.imshow`` of the maps.
    """
    count = len(maps) + (photo is not None)
    figure = new_figure((4.6 * count, 4.8))
    axes = figure.subplots(1, count, squeeze=False)[0]
    for axis in axes:
        axis.set(xlabel='x (pixels)', ylabel='y (pixels)')
        if photo is not None:
            axis.imshow(photo)
    if photo is not None:
        axes[0].set_title('photo')
    for axis, (title, found) in zip(axes[count - len(maps) :], maps.items()):
        image = axis.imshow(found, **style)
        axis.set_title(title)
    figure.colorbar(image, ax=list(axes), label=label, shrink=0.75)
    figure.savefig(out, dpi=90)
