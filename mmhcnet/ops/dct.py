"""The heat equation du/dt = k Laplace(u) solved in the frequency domain.

Border: insulated (zero flux, homogeneous Neumann), whose eigenfunctions on a grid are the cosines
of the DCT-II. Grid spacing and time are 1, so k is in pixels². Fields are (B, H, W, C), channels
last: the layers around the transform act on channels, and no permutation is needed here. The
transforms are products with cached cosine matrices, O(N^1.5) in the number of pixels.
"""

import functools
import math

import torch
from torch import Tensor

from mmhcnet.tracing import is_compiling, is_exporting

# Sizes of feature maps seen in multi-scale training; 512 entries of size 200 take 80 MB.
_CACHED = 512


def _made_on(device: torch.device) -> torch.device:
    # The same numbers on every device; but a graph that computes them in each call must not wait
    # for the CPU.
    return device if is_compiling() and not is_exporting() else torch.device('cpu')


def _cosines(size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    # The argument is rounded to the working precision before the cosine is taken. From float64
    # the entries would be exact, but the published weights were trained with these, and their
    # outputs in float32 are reproduced to 1e-5 only so. Half precisions work in float32.
    working = torch.promote_types(dtype, torch.float32)
    n = torch.arange(size, device=_made_on(device), dtype=working)
    matrix = torch.cos(n[:, None] * ((n + 0.5) / size) * math.pi) * math.sqrt(2 / size)
    # Not in place: an exporter folds this into a constant.
    matrix = torch.cat([matrix[:1] / math.sqrt(2), matrix[1:]])
    return matrix.to(device, dtype)


def _eigenvalues(size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    n = torch.arange(size, device=_made_on(device), dtype=torch.float64)
    return (n * (math.pi / size)).square().to(device, dtype)


def _rates(size: tuple[int, int], device: torch.device, dtype: torch.dtype) -> Tensor:
    # -(λ_n + λ_m): (H, W, 1).
    rows, columns = (_eigenvalues(n, device, dtype) for n in size)
    return -(rows[:, None, None] + columns[:, None])


@functools.lru_cache(maxsize=_CACHED)
def _cached(function, size, device: torch.device, dtype: torch.dtype, mode) -> Tensor:
    # A tensor made in inference mode could not be used for training later.
    with torch.inference_mode(False):
        return function(size, device, dtype)


def _constant(function, size, device: torch.device, dtype: torch.dtype, mode=None) -> Tensor:
    if is_compiling():
        return function(size, device, dtype)
    if torch.jit.is_tracing():
        # Into the trace, every time: read from the cache it would be a constant of the second
        # trace and computed in the first, and the trace's own check compares the two. A traced
        # size is a tensor; the trace is for this size.
        size = tuple(map(int, size)) if isinstance(size, tuple) else int(size)
        return function(size, device, dtype)
    return _cached(function, size, device, dtype, mode)


def _mode(x: Tensor) -> object | None:
    # A tensor without data is of use only in the FakeTensorMode that it was made in.
    return getattr(x, 'fake_mode', None)


def dct_matrix(size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Orthonormal DCT-II: C[n, x] = sqrt((2 - δ_n0) / N) cos(nπ (x + ½) / N), so C Cᵀ = I.

    Args:
        size (int): N.
        device (torch.device): Where the result is; constants are cached per device.
        dtype (torch.dtype): Of the result; half precisions are rounded from float32.

    Returns:
        Tensor: (N, N). Shared between calls: not to be changed in place.
    """
    return _constant(_cosines, size, device, dtype)


def eigenvalues(size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Of the cosine modes: λ_n = (nπ / N)², n = 0..N-1.

    Args:
        size (int): N.
        device (torch.device): Where the result is; constants are cached per device.
        dtype (torch.dtype): Rounded to this from float64.

    Returns:
        Tensor: (N,). Shared between calls: not to be changed in place.
    """
    return _constant(_eigenvalues, size, device, dtype)


def _left(matrix: Tensor, x: Tensor) -> Tensor:
    """matrix (N, N) times each of x (B, N, M)."""
    if is_exporting():
        return torch.matmul(matrix, x)
    # What matmul comes to, less the operations that it takes to find out.
    return torch.bmm(matrix.expand(x.shape[0], -1, -1), x)


def _along_both(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    batch, height, width, channels = x.shape
    # Columns first: the channels of x may be a slice of a wider tensor, which a batched product
    # takes as it is.
    x = _left(columns, x.reshape(batch * height, width, channels))
    return _left(rows, x.view(batch, height, width * channels)).view(batch, height, width, channels)


def _matrices(x: Tensor) -> tuple[Tensor, Tensor]:
    rows, columns = (_constant(_cosines, n, x.device, x.dtype, _mode(x)) for n in x.shape[1:3])
    return rows, columns


def dct2(x: Tensor) -> Tensor:
    """Two-dimensional orthonormal DCT-II of every channel: X = C_H x C_Wᵀ.

    Args:
        x (Tensor): (B, H, W, C), floating point.

    Returns:
        Tensor: (B, H, W, C): amplitudes of the modes (n, m); dtype of ``x``, or of the autocast.
    """
    return _along_both(x, *_matrices(x))


def idct2(x: Tensor) -> Tensor:
    """Inverse of :func:`dct2`: x = C_Hᵀ X C_W.

    Args:
        x (Tensor): (B, H, W, C), floating point: amplitudes of the modes (n, m).

    Returns:
        Tensor: (B, H, W, C); dtype of ``x``, or of the autocast.
    """
    rows, columns = _matrices(x)
    return _along_both(x, rows.t(), columns.t())


def spectral_decay(k: Tensor, height: int, width: int) -> Tensor:
    """What is left of every mode: exp(-(λ_n + λ_m) k), with λ of :func:`eigenvalues`.

    Computed in float32 also for a ``k`` of lower precision: λ_n + λ_m goes up to 2π².

    Args:
        k (Tensor): Conductivity times time in pixels², not negative; broadcastable to
            (H, W, C): one number per mode and channel, per channel, or for all.
        height (int): H.
        width (int): W.

    Returns:
        Tensor: (H, W, C) with C = 1 for a ``k`` without channels; float32, float64 for a float64
        ``k``.

    Raises:
        ValueError: ``k`` does not broadcast to (H, W, C).
    """
    legal = k.dim() <= 3 and all(
        n in (1, size) for n, size in zip(k.shape[-2::-1], (width, height))
    )
    if not legal:
        raise ValueError(
            f'k must broadcast to (H, W, C) = ({height}, {width}, C), got {tuple(k.shape)}'
        )
    dtype = torch.float64 if k.dtype == torch.float64 else torch.float32
    return torch.exp(_constant(_rates, (height, width), k.device, dtype, _mode(k)) * k)


def heat_spectral(u: Tensor, decay: Tensor) -> Tensor:
    """Heat conduction with insulated borders: u' = IDCT2(DCT2(u) · decay).

    The heat conduction operator of vHeat (Wang et al., "Building Vision Models upon Heat
    Conduction", CVPR 2025). For one k per channel this is the exact solution at time 1 of the
    semi-discrete spectral problem: the mean is conserved, and k1 then k2 equals k1 + k2. With
    a k per mode, as vHeat learns it, only the mean is.

    Args:
        u (Tensor): Temperature, (B, H, W, C), floating point.
        decay (Tensor): :func:`spectral_decay` for H and W.

    Returns:
        Tensor: (B, H, W, C); dtype of ``u``, or of the autocast.

    Raises:
        ValueError: ``decay`` is made for another size.
    """
    if (
        decay.dim() != 3
        or decay.shape[:2] != u.shape[1:3]
        or (decay.shape[2] not in (1, u.shape[3]))
    ):
        raise ValueError(
            f'decay must be (H, W, C) = {tuple(u.shape[1:])}, got {tuple(decay.shape)}'
        )
    modes = dct2(u)
    return idct2(modes * decay.to(modes.dtype))
