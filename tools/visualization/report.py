"""One page about a photo: temperature maps, conduction rates and a diffusing channel of every HcNet
and vHeat, effective receptive fields and Grad-CAM of all models side by side."""
import argparse
import html
import logging
from pathlib import Path
from typing import List

import vis_cam
import vis_erf
import vis_heat

from mmhcnet.cli.errors import one_line_errors
from mmhcnet.inference.model import load_model, model_name
from mmhcnet.inference.pictures import read_picture

STYLE = '''
body { font: 16px/1.5 sans-serif; max-width: 1250px; margin: 2em auto; padding: 0 1em; color: #222 }
img { max-width: 100%; display: block; margin: .5em 0 }
table { border-collapse: collapse } td, th { padding: .15em .8em; border-bottom: 1px solid #ccc }
td:not(:first-child), th:not(:first-child) { text-align: right }
code { background: #f2f2f2 }'''


def rates(heats: dict) -> str:
    rows = ['<tr><th>layer</th><th>k, median (pixels²)</th><th>k, largest (pixels²)</th>'
            '<th>k·Σw, largest</th></tr>']
    for name, heat in heats.items():
        fourier = '' if heat.fourier is None else f'{heat.fourier.max():.3f}'
        rows.append(f'<tr><td><code>{html.escape(name)}</code></td><td>{heat.k.median():.3f}</td>'
                    f'<td>{heat.k.max():.3f}</td><td>{fourier}</td></tr>')
    return f'<table>{"".join(rows)}</table>'


def lines(texts: List[str]) -> str:
    return ''.join(f'<li>{html.escape(text)}</li>' for text in texts)


def write(picture, models: List[tuple], out: Path, size: int) -> Path:
    """Writes index.html and its pictures; returns the page.

    Args:
        picture (PIL.Image.Image): The photo, RGB, its shorter side ``size`` pixels.
        models (list[tuple]): Config and checkpoint of each model.
        out (Path): Folder; made if it is missing.
        size (int): Side of the square that the receptive fields are measured on.
    """
    out.mkdir(parents=True, exist_ok=True)
    picture.save(out / 'photo.png')
    sections, fields, cams, skipped = [], {}, [], []
    for i, (config, checkpoint) in enumerate(models):
        _, model = load_model(config, checkpoint)
        name = model_name(config, checkpoint)
        try:
            vis_heat.conduction_layers(model)
        except ValueError:
            pass  # A peer, which has no heat to show.
        else:
            heats = vis_heat.draw(model, picture, out / str(i))
            spectral = next(iter(heats.values())).left is not None
            about = ('Each channel is conducted in the frequency domain, with a rate per mode.'
                     if spectral else 'Each layer takes one step of the heat equation. Beyond '
                     'k·Σw = 1 a step is no longer a mean of neighbours and may oscillate.')
            sections.append(
                f'<h2>{html.escape(name)}: heat</h2><p>{about}</p>'
                f'<h3>Before and after conduction</h3><p>The channel that changes most in the last '
                f'layer of each stage.</p><img src="{i}/maps.png" alt="temperature maps">'
                f'<h3>Conduction rate</h3><img src="{i}/rates.png" alt="conduction rates">'
                f'<details><summary>as numbers</summary>{rates(heats)}</details>'
                f'<h3>One channel through the layers of stage 1</h3>'
                f'<img src="{i}/diffusion.gif" alt="a channel diffusing">')
        fields[name] = vis_erf.receptive_field(model, vis_erf.inputs(model, [picture], size, 0))
        try:
            cams.append(vis_cam.grad_cam(model, picture, name))
        except ValueError as error:
            skipped.append(f'left out: {error}')
    found = vis_erf.draw(fields, out / 'erf.png')
    sections.append(
        '<h2>Effective receptive field</h2><p>How much each pixel of the central square of the '
        'photo moves the centre of the last feature map.</p>'
        f'<img src="erf.png" alt="receptive fields"><ul>{lines(found)}</ul>')
    looked = vis_cam.draw(picture, cams, out / 'cam.png') if cams else []
    sections.append(
        '<h2>Where the classifiers look (Grad-CAM)</h2>'
        + ('<img src="cam.png" alt="Grad-CAM">' if cams else '')
        + f'<ul>{lines(looked + skipped)}</ul>')
    names = ', '.join(html.escape(name) for name in fields)
    page = out / 'index.html'
    page.write_text(
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>Heat in a photo</title>'
        f'<style>{STYLE}</style></head><body><h1>Heat in a photo</h1><p>Models: {names}.</p>'
        f'<img src="photo.png" alt="the photo">{"".join(sections)}</body></html>',
        encoding='utf-8')
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('image', help='photo')
    parser.add_argument('--model', nargs=2, action='append', required=True,
                        metavar=('CONFIG', 'CKPT'), dest='models',
                        help="config and checkpoint, or 'none' for untrained weights; repeatable")
    parser.add_argument('--out', type=Path, default=Path('work_dirs/report'),
                        help='folder for the page (%(default)s)')
    parser.add_argument('--size', type=int, default=224,
                        help='shorter side that the photo is resized to (%(default)s)')
    args = parser.parse_args()
    logging.disable(logging.INFO)
    with one_line_errors():
        page = write(read_picture(args.image, args.size), args.models, args.out, args.size)
    print(f'page: {page}')


if __name__ == '__main__':
    main()
