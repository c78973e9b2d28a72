"""One page about a photo: temperature maps, conduction rates and a diffusing channel of every HcNet
and vHeat, effective receptive fields and Grad-CAM of all models side by side."""

from pathlib import Path

from mmhcnet.inference.model import load_model, model_name

from . import grad_cam, heat, page, receptive_field


def rates(heats: dict) -> str:
    return page.table(
        ['layer', 'k, median (pixels²)', 'k, largest (pixels²)', 'k·Σw, largest'],
        [
            [
                name,
                f'{found.k.median():.3f}',
                f'{found.k.max():.3f}',
                '' if found.fourier is None else f'{found.fourier.max():.3f}',
            ]
            for name, found in heats.items()
        ],
    )


def write_report(picture, models: list[tuple], out: Path, size: int) -> Path:
    """Writes index.html, one file with everything inside, and its pictures; returns the page.

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
            folder = out / str(i)
            sections.append(
                page.Section(
                    f'{name}: heat',
                    page.paragraph(about)
                    + '<h3>Before and after conduction</h3>\n'
                    + page.paragraph(
                        'The channel that changes most in the last layer of each stage; '
                        'temperature in arbitrary units, places in pixels of the map.'
                    )
                    + page.figure(folder / 'maps.png', f'temperature maps of {name}')
                    + '<h3>Conduction rate</h3>\n'
                    + page.figure(folder / 'rates.png', f'conduction rates of {name}')
                    + f'<details><summary>as numbers</summary>{rates(heats)}</details>\n'
                    + '<h3>One channel through the layers of stage 1</h3>\n'
                    + page.figure(folder / 'diffusion.gif', f'a channel of {name} diffusing'),
                )
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
        page.Section(
            'Effective receptive field',
            page.paragraph(
                'How much each pixel of the central square of the photo moves the centre of the '
                'last feature map.'
            )
            + page.figure(out / 'erf.png', 'receptive fields')
            + page.bullets(found),
        )
    )
    looked = grad_cam.draw(picture, cams, out / 'cam.png') if cams else []
    sections.append(
        page.Section(
            'Where the classifiers look (Grad-CAM)',
            (page.figure(out / 'cam.png', 'Grad-CAM') if cams else '')
            + page.bullets(looked + skipped),
        )
    )
    return page.write_page(
        out / 'index.html',
        'Heat in a photo',
        page.paragraph(f'Models: {", ".join(fields)}.')
        + page.figure(out / 'photo.png', 'the photo'),
        sections,
    )
