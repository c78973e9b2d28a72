"""The heat in HcNet or vHeat on a photo: maps before and after conduction, the rate k of every
layer and channel, and an animation of one channel on its way through the layers of a stage."""

from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmhcnet.inference.model import named_layer
from mmhcnet.inference.pictures import model_input
from mmhcnet.models.layers import HeatConduction, SpectralConduction
from mmhcnet.ops import spectral_decay

from .figures import new_figure, styled


class Heat(NamedTuple):
    """What a conduction layer does with a picture.

    ``before`` and ``after``: (C, H, W). ``k``: (C,) in pixels², for vHeat the mean over the modes.
    ``fourier``: k·Σw (C,), HcNet only. ``left``: the share of every mode that is left, the mean
    over the channels, (H, W), vHeat only.
    """

    before: Tensor
    after: Tensor
    k: Tensor
    fourier: Tensor | None
    left: Tensor | None


def conduction_layers(model: nn.Module) -> dict[str, HeatConduction | SpectralConduction]:
    """By name, in the order in which they run.

    Raises:
        ValueError: There are none.
    """
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (HeatConduction, SpectralConduction))
    }
    if not found:
        raise ValueError(
            f'{type(model.backbone).__name__} has no heat conduction layer: choose a '
            'config with HcNet, VHeat or one of the plug-ins'
        )
    return found


@torch.no_grad()
def record(model: nn.Module, image: Tensor) -> dict[str, Heat]:
    """Runs the backbone and notes what every conduction layer does; image (1, 3, H, W)."""
    layers = conduction_layers(model)
    seen, hooks = defaultdict(dict), []
    for name, layer in layers.items():
        # A block may run the parts of a layer one by one; so the hooks are on what certainly is
        # called: HcNet's block itself, and the linear layers and the norm in vHeat's.
        if isinstance(layer, HeatConduction):
            block = model.get_submodule(name.rpartition('.')[0])
            hooks.append(
                block.register_forward_pre_hook(
                    lambda _, args, name=name: seen[name].update(z=args[0])
                )
            )
        else:
            hooks.append(
                layer.fc_in.register_forward_hook(
                    lambda _, args, out, name=name: seen[name].update(mixed=out)
                )
            )
            hooks.append(
                layer.norm.register_forward_pre_hook(
                    lambda _, args, name=name: seen[name].update(after=args[0])
                )
            )
            if layer.to_k is not None:
                hooks.append(
                    layer.to_k.register_forward_hook(
                        lambda _, args, out, name=name: seen[name].update(k=F.relu(out))
                    )
                )
    model.backbone(image)
    for hook in hooks:
        hook.remove()
    return {
        name: (_hcnet if isinstance(layer, HeatConduction) else _vheat)(layer, **seen[name])
        for name, layer in layers.items()
    }


def _hcnet(layer: HeatConduction, z: Tensor) -> Heat:
    k = layer.rate(z)[0, :, 0, 0].expand(z.shape[1])
    return Heat(z[0], layer(z)[0], k, k if layer.w is None else k * layer.w.sum(dim=1), None)


def _vheat(
    layer: SpectralConduction, mixed: Tensor, after: Tensor, k: Tensor | None = None
) -> Heat:
    height, width, channels = after.shape[1:]
    if k is None:
        k = F.softplus(layer.k) if isinstance(layer.k, Tensor) else torch.tensor([layer.k])
    left = spectral_decay(k, height, width).mean(dim=2)
    return Heat(
        mixed[0, ..., :channels].permute(2, 0, 1),
        after[0].permute(2, 0, 1),
        k.expand(height, width, channels).mean(dim=(0, 1)),
        None,
        left,
    )


def stages(heats: dict[str, Heat]) -> list[list[str]]:
    """Names of the layers, those on maps of the same size together."""
    groups = defaultdict(list)
    for name, heat in heats.items():
        groups[heat.before.shape].append(name)
    return list(groups.values())


def liveliest(heats: list[Heat]) -> int:
    """The channel that conduction changes most, in units of what varies in it."""
    moved = [
        (h.after - h.before).flatten(1).norm(dim=1) / h.before.flatten(1).std(dim=1).clamp(min=1e-6)
        for h in heats
    ]
    return int(torch.stack(moved).sum(dim=0).argmax())


@styled
def draw_maps(heats: dict[str, Heat], names: list[str], out: Path) -> None:
    # Narrow, so that the text can be read on a phone.
    figure = new_figure((6.5, 3.1 * len(names)))
    rows = figure.subfigures(len(names), 1, squeeze=False)[:, 0]
    for row, name in zip(rows, names):
        heat, channel = heats[name], liveliest([heats[name]])
        before, after = heat.before[channel], heat.after[channel]
        change = after - before
        low, high = torch.stack([before, after]).aminmax()
        same = dict(cmap='inferno', vmin=low, vmax=high)
        limit = change.abs().max().clamp(min=1e-12).item()
        row.suptitle(f'{name}\nchannel {channel}, k = {heat.k[channel]:.3g} pixels²')
        axes = row.subplots(1, 3, sharey=True)
        for axis, field, title, style in zip(
            axes,
            (before, after, change),
            ('before', 'after', 'after - before'),
            (same, same, dict(cmap='coolwarm', vmin=-limit, vmax=limit)),
        ):
            image = axis.imshow(field, **style)
            axis.set(title=title, xlabel='x (pixels)')
            bar = row.colorbar(image, ax=axis, location='bottom', label='temperature')
            bar.ax.xaxis.get_major_locator().set_params(nbins=3)
        axes[0].set(ylabel='y (pixels)')
    figure.savefig(out, dpi=130)


@styled
def draw_rates(heats: dict[str, Heat], out: Path) -> None:
    layers = list(heats.values())
    rates = torch.full((len(layers), max(len(h.k) for h in layers)), float('nan'))
    for row, heat in zip(rates, layers):
        row[: len(heat.k)] = heat.k
    fourier = [h.fourier for h in layers if h.fourier is not None]
    left = [h.left for h in layers if h.left is not None]
    figure = new_figure((6.5, 8))
    top, bottom = figure.subplots(2, 1)
    image = top.imshow(
        rates,
        aspect='auto',
        cmap='viridis',
        interpolation='none',
        extent=(0, rates.shape[1], len(layers) + 0.5, 0.5),
    )
    top.set(
        xlabel='channel',
        ylabel='conduction layer',
        title='conduction rate k of every layer and channel'
        + ',\nmean over the modes' * bool(left),
    )
    figure.colorbar(image, ax=top, label='k (pixels²)')
    numbers = range(1, len(layers) + 1)
    if fourier:
        bottom.fill_between(
            numbers,
            [layer.min() for layer in fourier],
            [layer.max() for layer in fourier],
            alpha=0.3,
            label='all channels',
        )
        bottom.plot(numbers, [layer.median() for layer in fourier], marker='o', label='median')
        bottom.axhline(1, color='tab:red', ls='--', label='limit of stability')
        bottom.set(xlabel='conduction layer', ylabel='k·Σw (dimensionless)')
        bottom.legend()
        bottom.grid(alpha=0.3)
        bottom.xaxis.get_major_locator().set_params(integer=True)
    else:
        bins = torch.zeros(len(layers), 16)
        for row, decay in zip(bins, left):
            y, x = (torch.arange(n) / n for n in decay.shape)
            radius = ((y[:, None] ** 2 + x**2).sqrt() / 2**0.5 * 16).long().clamp(max=15)
            row[:] = torch.stack([decay[radius == b].mean() for b in range(16)])
        image = bottom.imshow(
            bins,
            aspect='auto',
            cmap='magma',
            vmin=0,
            vmax=1,
            interpolation='none',
            extent=(0, 1, len(layers) + 0.5, 0.5),
        )
        bottom.set(
            xlabel='frequency of the mode (1: alternates from pixel to pixel)',
            ylabel='conduction layer',
            title='share of a mode that is left, mean over channels\n(white: no such mode)',
        )
        figure.colorbar(image, ax=bottom, label='share left (dimensionless)')
        bottom.yaxis.get_major_locator().set_params(integer=True)
    top.yaxis.get_major_locator().set_params(integer=True)
    figure.savefig(out, dpi=130)


@styled
def draw_diffusion(heats: dict[str, Heat], names: list[str], channel: int, out: Path) -> None:
    """One channel before and after each layer of a stage, as an animation."""
    from PIL import Image

    fields = [
        (f'{name}, channel {channel}\n{when} conduction', field[channel])
        for name in names
        for when, field in (('before', heats[name].before), ('after', heats[name].after))
    ]
    values = torch.stack([field for _, field in fields]).flatten()
    low, high = values.quantile(0.01).item(), values.quantile(0.99).item()
    figure = new_figure((6, 5))
    axis = figure.subplots()
    image = axis.imshow(fields[0][1], cmap='inferno', vmin=low, vmax=max(high, low + 1e-6))
    axis.set(xlabel='x (pixels of the map)', ylabel='y (pixels of the map)')
    figure.colorbar(image, ax=axis, label='temperature (arb. units)', shrink=0.7)
    frames = []
    for title, field in fields:
        axis.set_title(title)
        image.set_data(field)
        figure.canvas.draw()
        frame = Image.fromarray(np.asarray(figure.canvas.buffer_rgba()))
        frames.append(frame.convert('RGB').quantize())
    frames[0].save(out, save_all=True, append_images=frames[1:], duration=700, loop=0)


def draw(
    model: nn.Module,
    picture,
    out: Path,
    layers: list[str] | None = None,
    stage: int = 1,
    channel: int | None = None,
) -> dict[str, Heat]:
    """Writes maps.png, rates.png and diffusion.gif into the folder ``out``.

    Args:
        model (nn.Module): With conduction layers in its backbone.
        picture (PIL.Image.Image): The photo, RGB.
        out (Path): Folder; made if it is missing.
        layers (list[str], optional): Conduction layers for the maps; the last of every stage.
        stage (int): Whose layers the animation goes through; the first is 1.
        channel (int, optional): For the animation; the one that conduction changes most there.

    Raises:
        ValueError: No such layer, stage or channel; the message says which there are.
    """
    known = list(conduction_layers(model))
    for name in layers or ():
        if named_layer(model, name, known) is None or name not in known:
            raise ValueError(
                f"'{name}' is not a conduction layer; choose one of: {', '.join(known)}"
            )
    heats = record(model, model_input(model, picture))
    groups = stages(heats)
    if not 1 <= stage <= len(groups):
        raise ValueError(f'--stage must be from 1 to {len(groups)}, got {stage}')
    chosen = [heats[name] for name in groups[stage - 1]]
    if channel is not None and not 0 <= channel < len(chosen[0].k):
        raise ValueError(
            f'--channel must be from 0 to {len(chosen[0].k) - 1} in stage {stage}, got {channel}'
        )
    out.mkdir(parents=True, exist_ok=True)
    draw_maps(heats, layers or [names[-1] for names in groups], out / 'maps.png')
    draw_rates(heats, out / 'rates.png')
    draw_diffusion(
        heats,
        groups[stage - 1],
        liveliest(chosen) if channel is None else channel,
        out / 'diffusion.gif',
    )
    return heats
