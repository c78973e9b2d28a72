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
    """Write maps in rows of two with one colour bar, over a photo if there is one.

    Two, so that the text can be read where the picture is as wide as a phone.

    Args:
        maps (dict): Title -> map (H, W).
        out (Path): Picture to write.
        label (str): Of the colour bar.
        photo (PIL.Image.Image, optional): Drawn by itself first, and below each map.
        style: For ``Axes.imshow`` of the maps.
    """
    count = len(maps) + (photo is not None)
    columns = min(count, 2)
    rows = -(-count // columns)
    figure = new_figure((3.4 * columns, 3.6 * rows + 0.8))
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[count:]:
        axis.remove()
    axes = list(axes[:count])
    for axis in axes:
        axis.set(xlabel='x (pixels)', ylabel='y (pixels)')
        if photo is not None:
            axis.imshow(photo)
    if photo is not None:
        axes[0].set_title('photo')
    for axis, (title, found) in zip(axes[count - len(maps) :], maps.items()):
        image = axis.imshow(found, **style)
        axis.set_title(title)
    figure.colorbar(image, ax=axes, label=label, location='bottom', shrink=0.75)
    figure.savefig(out, dpi=130)
