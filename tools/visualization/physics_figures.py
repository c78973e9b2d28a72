"""Draw the pictures of docs/physics.md and print the figures that it quotes."""

import argparse
import math
from pathlib import Path

import matplotlib
import torch
from torch import Tensor

from mmhcnet.ops import heat_spectral, heat_step, spectral_decay

matplotlib.use('Agg')
from matplotlib import pyplot as plt  # noqa: E402  (after the choice of a backend without windows)

plt.rcParams.update(
    {
        'font.size': 11,
        'axes.grid': True,
        'grid.alpha': 0.3,
        'figure.dpi': 100,
        'savefig.bbox': 'tight',
        'legend.fontsize': 10,
    }
)

# Amplitude of each mode cos(mπy) cos(nπx) of the initial temperature.
MODES = {(0, 0): 1.0, (1, 0): 0.7, (1, 2): -0.5, (3, 1): 0.2}
STENCILS: dict[str, tuple[float, ...] | None] = {
    'w = ¼, ¼, ¼, ¼': (0.25, 0.25, 0.25, 0.25),
    'w = 0.4, 0.4, 0.1, 0.1': (0.4, 0.4, 0.1, 0.1),
    'isotropic (published code)': None,
}


def weights(w: tuple[float, ...] | None) -> Tensor | None:
    return None if w is None else torch.tensor([w], dtype=torch.float64)


def diffusivity(w: tuple[float, ...] | None) -> tuple[float, float]:
    """Along H and W, for k = 1: of the isotropic stencil 6 of 8 neighbours lie off each axis."""
    return (3 / 8, 3 / 8) if w is None else ((w[0] + w[1]) / 2, (w[2] + w[3]) / 2)


def fourier_solution(n: int, w: tuple[float, ...] | None, time: float) -> Tensor:
    """The Fourier series of the insulated unit square at the centres of n x n cells."""
    (a, b), x = diffusivity(w), (torch.arange(n).double() + 0.5) / n
    return sum(
        amplitude
        * math.exp(-(math.pi**2) * (a * p**2 + b * q**2) * time)
        * torch.cos(p * math.pi * x)[:, None]
        * torch.cos(q * math.pi * x)[None, :]
        for (p, q), amplitude in MODES.items()
    )[None, None]


def run(z: Tensor, w: tuple[float, ...] | None, k: float, steps: int) -> list[Tensor]:
    """Fields (1, 1, H, W) after 0, 1, ... steps."""
    fields = [z]
    for _ in range(steps):
        fields.append(heat_step(fields[-1], weights(w), k))
    return fields


def slope(x: list[float], y: list[float]) -> float:
    """Of the straight line through log y over log x."""
    x, y = (torch.tensor(values, dtype=torch.float64).log() for values in (x, y))
    return (((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()).item()


def fourier(out: Path) -> list[str]:
    """Fields next to the series, and the error over the size of the grid."""
    k, end = 0.9, 0.05
    n = 32
    steps = round(end * n**2 / k)
    w = STENCILS['w = ¼, ¼, ¼, ¼']
    start, exact = fourier_solution(n, w, 0.0), fourier_solution(n, w, steps * k / n**2)
    z = run(start, w, k, steps)[-1]
    figure, axes = plt.subplots(1, 4, figsize=(14, 3.3), layout='constrained')
    same = dict(cmap='inferno', vmin=start.min(), vmax=start.max())
    for axis, field, title, style in zip(
        axes,
        (start, z, exact, z - exact),
        ('start', f'HcNet, {steps} steps', 'Fourier series', 'HcNet - Fourier series'),
        (same, same, same, dict(cmap='coolwarm')),
    ):
        image = axis.imshow(field[0, 0], extent=(0, 1, 1, 0), **style)
        axis.set(title=title, xlabel='x / side', ylabel='y / side')
        axis.grid(False)
        figure.colorbar(image, ax=axis, label='temperature (arb. units)', shrink=0.75)
    figure.savefig(out / 'fourier_fields.png')
    plt.close(figure)

    figure, axis = plt.subplots(figsize=(6.5, 4.5))
    sizes, said = (12, 16, 24, 32, 48, 64), []
    for (name, w), marker in zip(STENCILS.items(), 'osd'):
        errors = []
        for n in sizes:
            steps = round(end * n**2 / k)
            z = run(fourier_solution(n, w, 0.0), w, k, steps)[-1]
            errors.append((z - fourier_solution(n, w, steps * k / n**2)).abs().max().item())
        order = -slope(sizes, errors)
        said.append(f'order of convergence, {name}: {order:.2f}')
        axis.loglog(sizes, errors, marker=marker, label=f'{name}: order {order:.2f}')
    axis.loglog(sizes, [0.6 / n**2 for n in sizes], 'k--', lw=1, label='order 2')
    axis.loglog(sizes, [0.25 / n for n in sizes], 'k:', lw=1, label='order 1')
    axis.set_xticks(sizes, sizes)
    axis.minorticks_off()
    axis.set(
        xlabel='cells along the side of the square',
        ylabel='largest error (temperature, arb. units)',
        ylim=(4e-6, 0.1),
    )
    axis.legend(loc='lower left')
    figure.savefig(out / 'convergence.png')
    plt.close(figure)
    return said


def stability(out: Path) -> list[str]:
    """Noise after many steps, on either side of k Σw = 1."""
    figure, axis = plt.subplots(figsize=(6.5, 4.5))
    torch.manual_seed(0)
    n, steps, said = 12, 300, []
    z = torch.randn(1, 1, n, n, dtype=torch.float64)
    for k, colour in (
        (0.9, 'tab:blue'),
        (1.0, 'tab:green'),
        (1.03, 'tab:orange'),
        (1.1, 'tab:red'),
    ):
        largest = [f.abs().max().item() for f in run(z, STENCILS['w = ¼, ¼, ¼, ¼'], k, steps)]
        axis.semilogy(largest, color=colour, label=f'k·Σw = {k:g}')
        growth = (largest[-1] / largest[-101]) ** 0.01
        if k > 1:
            predicted = abs(1 - k * (1 + math.cos(math.pi / n)))
            axis.semilogy(
                range(150, steps + 1),
                [largest[-1] * predicted ** (i - steps) for i in range(150, steps + 1)],
                'k--',
                lw=1,
                label='predicted growth' if k == 1.1 else None,
            )
            said.append(
                f'growth per step at k·Σw = {k:g}: measured {growth:.4f}, predicted {predicted:.4f}'
            )
    axis.set(xlabel='steps', ylabel='largest |temperature| (arb. units)', ylim=(1e-3, 1e14))
    axis.legend()
    figure.savefig(out / 'stability.png')
    plt.close(figure)
    return said


def heat_and_bounds(out: Path) -> list[str]:
    """Total heat, and the hottest and coldest pixel, over the steps."""
    torch.manual_seed(0)
    z = torch.rand(1, 1, 32, 32, dtype=torch.float64)
    z[..., 16:, :] += 1
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5), layout='constrained')
    steps, k, said = 400, 0.9, []
    runs = {**STENCILS, 'w = 0.3, 0.2, ¼, ¼ (w₁ ≠ w₂)': (0.3, 0.2, 0.25, 0.25)}
    for (name, w), style in zip(runs.items(), ('-', '--', '-.', ':')):
        fields = run(z, w, k, steps)
        change = [100 * (f.sum() / z.sum() - 1).item() for f in fields]
        said.append(f'total heat after {steps} steps, {name}: {round(change[-1], 2) + 0.0:+.2f} %')
        left.plot(change, style, lw=2, label=name)
    left.set_yscale('symlog', linthresh=1e-3)
    left.set(xlabel='steps', ylabel='change of total heat (%), linear below 0.001')
    left.legend(loc='center right')
    for k, colour in ((0.9, 'tab:blue'), (1.03, 'tab:orange')):
        fields = run(z, STENCILS['w = ¼, ¼, ¼, ¼'], k, 150)
        right.plot([f.max().item() for f in fields], color=colour, label=f'k·Σw = {k:g}')
        right.plot([f.min().item() for f in fields], color=colour)
    for bound, name in ((z.max(), 'hottest and coldest at the start'), (z.min(), None)):
        right.axhline(bound, color='k', lw=1, ls='--', label=name)
    right.set(xlabel='steps', ylabel='hottest and coldest pixel (arb. units)', ylim=(-1.5, 4.5))
    right.legend(loc='upper right')
    figure.savefig(out / 'heat_and_bounds.png')
    plt.close(figure)
    return said


def two_operators(out: Path) -> list[str]:
    """What vHeat's operator and HcNet's step leave of a mode; the limit of small k."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5), layout='constrained')
    theta = torch.linspace(0, math.pi, 200)
    for k, colour in ((0.05, 'tab:blue'), (0.2, 'tab:green'), (0.5, 'tab:red')):
        left.plot(
            theta / math.pi, torch.exp(-(theta**2) * k), color=colour, label=f'vHeat, k = {k}'
        )
        left.plot(
            theta / math.pi,
            1 - (2 - 2 * theta.cos()) * k,
            '--',
            color=colour,
            label=f'HcNet, k = {k}',
        )
    left.set(xlabel='frequency θ / π along one axis', ylabel='share of the mode that is left')
    left.legend()

    n, rates, said = 32, [2.0**-i for i in range(1, 9)], []
    for mode, marker in ((1, 'o'), (4, 's'), (12, 'd')):
        field = torch.cos(mode * math.pi * (torch.arange(n).double() + 0.5) / n)
        z = field[:, None].expand(1, 1, n, n)
        moved = []
        for k in rates:
            decay = spectral_decay(torch.tensor(k, dtype=torch.float64), n, n)
            spectral = heat_spectral(z.permute(0, 2, 3, 1), decay).permute(0, 3, 1, 2)
            stencil = heat_step(z, torch.ones(1, 4, dtype=torch.float64), k)
            moved.append(((spectral - stencil).norm() / (spectral - z).norm()).item())
        limit = abs((2 - 2 * math.cos(mode * math.pi / n)) / (mode * math.pi / n) ** 2 - 1)
        said.append(
            f'relative difference of the change, mode {mode} of {n}: k = {rates[-1]:.4f} '
            f'{100 * moved[-1]:.2f} %, limit for k -> 0 {100 * limit:.2f} %'
        )
        (line,) = right.loglog(rates, moved, marker=marker, label=f'θ = {mode}π/{n}')
        right.axhline(limit, color=line.get_color(), lw=1, ls=':')
    right.set(xlabel='k (pixels²)', ylabel='|vHeat - HcNet| / |change by vHeat|')
    right.legend()
    figure.savefig(out / 'two_operators.png')
    plt.close(figure)
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('docs/physics'),
        help='folder for the pictures (%(default)s)',
    )
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for draw in (fourier, stability, heat_and_bounds, two_operators):
        print('\n'.join(draw(args.out)))


if __name__ == '__main__':
    main()
