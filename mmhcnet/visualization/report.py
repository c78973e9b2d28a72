"""One page about a photo: temperature maps, conduction rates and a diffusing channel of every HcNet
and vHeat, effective receptive fields and Grad-CAM of all models side by side."""

import html
from pathlib import Path

from mmhcnet.inference.model import load_model, model_name

from . import grad_cam, heat, receptive_field

STYLE = '''
body { font: 16px/1.5 sans-serif; max-width: 1250px; margin: 2em auto; padding: 0 1em; color: #222 }
img { max-width: 100%; display: block; margin: .5em 0 }
table { border-collapse: collapse } td, th { padding: .15em .8em; border-bottom: 1px solid #ccc }
td:not(:first-child), th:not(:first-child) { text-align: right }
code { background: #f2f2f2 }'''


def rates(heats: dict) -> str:
    rows = [
        '<tr><th>layer</th><th>k, median (pixels²)</th><th>k, largest (pixels²)</th>'
        '<th>k·Σw, largest</th></tr>'
    ]
    for name, found in heats.items():
        fourier = '' if found.fourier is None else f'{found.fourier.max():.3f}'
        rows.append(
            f'<tr><td><code>{html.escape(name)}</code></td><td>{found.k.median():.3f}</td>'
            f'<td>{found.k.max():.3f}</td><td>{fourier}</td></tr>'
        )
    return f'<table>{"".join(rows)}</table>'


def lines(texts: list[str]) -> str:
    return ''.join(f'<li>{html.escape(text)}</li>' for text in texts)


def write_report(picture, models: list[tuple], out: Path, size: int) -> Path:
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
            heat.conduction_layers(model)
        except ValueError:
            pass  # A peer, which has no heat to show.
        else:
            heats = heat.draw(model, picture, out / str(i))
            spectral = next(iter(heats.values())).left is not None
            about = (
                'Each channel is conducted in the frequency domain, with a rate per mode.'
                if spectral
                else 'Each layer takes one step of the heat equation. Beyond '
                'k·Σw = 1 a step is no longer a mean of neighbours and may oscillate.'
            )
            sections.append(
                f'<h2>{html.escape(name)}: heat</h2><p>{about}</p>'
                f'<h3>Before and after conduction</h3><p>The channel that changes most in the last '
                f'layer of each stage.</p><img src="{i}/maps.png" alt="temperature maps">'
                f'<h3>Conduction rate</h3><img src="{i}/rates.png" alt="conduction rates">'
                f'<details><summary>as numbers</summary>{rates(heats)}</details>'
                f'<h3>One channel through the layers of stage 1</h3>'
                f'<img src="{i}/diffusion.gif" alt="a channel diffusing">'
            )
        fields[name] = receptive_field.measure(
            model, receptive_field.inputs(model, [picture], size, 0)
        )
        try:
            cams.append(grad_cam.explain(model, picture, name))
        except ValueError as error:
            skipped.append(f'left out: {error}')
    found = receptive_field.draw(fields, out / 'erf.png')
    sections.append(
        '<h2>Effective receptive field</h2><p>How much each pixel of the central square of the '
        'photo moves the centre of the last feature map.</p>'
        f'<img src="erf.png" alt="receptive fields"><ul>{lines(found)}</ul>'
    )
    looked = grad_cam.draw(picture, cams, out / 'cam.png') if cams else []
    sections.append(
        '<h2>Where the classifiers look (Grad-CAM)</h2>'
        + ('<img src="cam.png" alt="Grad-CAM">' if cams else '')
        + f'<ul>{lines(looked + skipped)}</ul>'
    )
    names = ', '.join(html.escape(name) for name in fields)
    page = out / 'index.html'
    page.write_text(
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>Heat in a photo</title>'
        f'<style>{STYLE}</style></head><body><h1>Heat in a photo</h1><p>Models: {names}.</p>'
        f'<img src="photo.png" alt="the photo">{"".join(sections)}</body></html>',
        encoding='utf-8',
    )
    return page
