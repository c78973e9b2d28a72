"""The picture of the README, from the runs of the demo.

    python tools/visualization/overview.py work_dirs/demo --out docs/overview.png

Two digits that a classifier names, a scene for the detector and one for the segmentor, truth next
to prediction, and the channel of the segmentor that a step of heat conduction smooths most.
"""

import argparse
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw

from mmhcnet import config
from mmhcnet.inference.model import load_model
from mmhcnet.inference.pictures import model_input, read_picture
from mmhcnet.visualization import heat
from mmhcnet.visualization.demo import FAMILIES, TASKS
from mmhcnet.visualization.labels import FONT
from mmhcnet.visualization.predictions import TILE

GAP, TOP = 12, 34


def tile(field: np.ndarray, low: float, high: float) -> Image.Image:
    """A temperature field (H, W) in colours."""
    scaled = np.clip((field - low) / (high - low), 0, 1)
    rgb = (255 * matplotlib.colormaps['inferno'](scaled)[..., :3]).astype(np.uint8)
    return Image.fromarray(rgb).resize((TILE, TILE), Image.Resampling.NEAREST)


def temperatures(recipe: str, checkpoint: str, scene: Path, layer: int) -> list[Image.Image]:
    """The channel that a conduction layer smooths most, before and after it."""
    _, model = load_model(recipe, checkpoint)
    found = list(heat.record(model, model_input(model, read_picture(str(scene), TILE))).values())
    chosen = found[layer]
    rough = [
        (field.diff(dim=1) ** 2).mean(dim=(1, 2)) + (field.diff(dim=2) ** 2).mean(dim=(1, 2))
        for field in (chosen.before, chosen.after)
    ]
    # A channel that is smooth before has nothing to show.
    channel = int((rough[1] / rough[0].clamp(min=rough[0].mean())).argmin())
    before, after = (field[channel].numpy() for field in (chosen.before, chosen.after))
    low, high = np.percentile(before, (1, 99))
    return [tile(before, low, high), tile(after, low, high)]


def titled(title: str, pictures: list[Image.Image]) -> Image.Image:
    """Pictures of one row below a title."""
    width = sum(picture.width for picture in pictures) + GAP * (len(pictures) - 1)
    height = max(picture.height for picture in pictures)
    canvas = Image.new('RGB', (width, height + TOP), 'white')
    ImageDraw.Draw(canvas).text((0, TOP // 2), title, fill='black', font=FONT, anchor='lm')
    left = 0
    for picture in pictures:
        canvas.paste(picture, (left, TOP))
        left += picture.width + GAP
    return canvas


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('work_dir', type=Path, help='of tools/demo.py')
    parser.add_argument('--data', type=Path, default=Path('data/digits'), help='the digits')
    parser.add_argument('--family', choices=FAMILIES, default='hcnet')
    parser.add_argument('--scenes', type=int, nargs=2, default=(0, 1), help='of the first eight')
    parser.add_argument('--digits', type=int, nargs=2, default=(1, 2), help='of the first eight')
    parser.add_argument('--layer', type=int, default=0, help='conduction layer, from the stem on')
    parser.add_argument('--out', type=Path, default=Path('docs/overview.png'))
    args = parser.parse_args()

    runs = {task.name: args.work_dir / args.family / task.name for task in TASKS}
    drawn = {task.name: task.draw(runs[task.name] / task.out, args.data) for task in TASKS}
    segmentor = next(task for task in TASKS if task.name == 'segmentation')
    scenes = sorted((args.data / 'segmentation/images/validation').glob('*.png'))
    fields = temperatures(
        config(segmentor.config.format(args.family)),
        (runs['segmentation'] / 'last_checkpoint').read_text(),
        scenes[args.scenes[0]],
        args.layer,
    )
    name = FAMILIES[args.family]
    rows = [
        [
            titled(f'{name} + Mask R-CNN', [drawn['detection'][args.scenes[0]]]),
            titled(f'{name} + UperNet', [drawn['segmentation'][args.scenes[1]]]),
        ],
        [
            titled(f'{name} classifier', [drawn['classification'][i] for i in args.digits]),
            titled('before and after a step of heat conduction', fields),
        ],
    ]
    width = max(sum(p.width for p in row) + GAP * (len(row) - 1) for row in rows)
    height = sum(max(p.height for p in row) for row in rows) + GAP * (len(rows) - 1)
    canvas = Image.new('RGB', (width + 2 * GAP, height + 2 * GAP), 'white')
    top = GAP
    for row in rows:
        left = GAP
        for picture in row:
            canvas.paste(picture, (left, top))
            left += picture.width + GAP
        top += max(p.height for p in row) + GAP
    # A palette is enough for what is drawn here, in a third of the bytes.
    canvas.quantize(256, dither=Image.Dither.NONE).save(args.out, optimize=True)
    print(f'{args.out}: {args.out.stat().st_size / 1000:.0f} kB')


if __name__ == '__main__':
    main()
