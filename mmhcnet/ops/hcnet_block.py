"""HcNet's block as one differentiable function.

Forward, for a field z (B, C, H, W); equation numbers are those of Zhang & Gong, "Efficient Visual
Representation Learning with Heat Conduction Equation", IJCAI 2025::

    k   = sigmoid(K GAP(z))             (6a)   or given
    u   = z + s1 k h(z)                 (6c)   h: the stencil, equation 6b
    y   = GroupNorm_1(u)
    p   = W1 y + b1
    g   = DWConv3x3(GELU(p))                   or GELU(p)
    out = u + s2 (W2 g + b2)

s1 and s2 are the factors of stochastic depth, one for each sample. Backward, with d for the
gradient of the loss and Lᵀ for the transposed stencil::

    e   = s2 dout                       dW2 = Σ e gᵀ       db2 = Σ e
    dp  = GELU'(p) DWConvᵀ(W2ᵀ e)       dW1 = Σ dp yᵀ      db1 = Σ dp
    du  = dout + GroupNorm_1'(W1ᵀ dp)
    dr  = Σ_pixels du h(z),  r = s1 k   dw_n = Σ r du (z[n] - z)
    da  = s1 dr k (1 - k)               dK  = Σ da GAP(z)ᵀ
    dz  = du + r Lᵀ du + Kᵀ da / (H W)

Kept for it are z, p and a few numbers per sample: five maps of C channels instead of the sixteen
that automatic differentiation keeps. u, y and g are computed again, all of which are bound by
memory bandwidth; no matrix product is repeated. With ``recompute=False`` they are kept as well.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .backend import use_triton
from .conduction_rate import conduction_rate_backward, conduction_rate_forward
from .gelu_depthwise import gelu_dwconv_backward, gelu_dwconv_forward, gelu_dwconv_ref
from .group_norm import group_norm_1_backward, group_norm_1_forward, group_norm_1_ref
from .precision import autocast_dtype, cast, cast_like, compute_dtype, no_autocast
from .product import column_sums, product, product_backward
from .second_order import gradients, wants_plain_backward
from .stencil import heat_step_forward, heat_step_ref, heat_step_sums, heat_step_transposed

NO_RATE = 'weights without to_k need k, the conduction rate'


class HcBlockWeights(NamedTuple):
    """Parameters of the block, of any dtypes. C channels, D of them in the hidden layer."""

    w: Tensor | None  # (C, 4), or None for the isotropic stencil
    to_k: Tensor | None  # (C, C): K, or None where k is given
    norm_weight: Tensor  # (C,)
    norm_bias: Tensor  # (C,)
    fc1_weight: Tensor  # (D, C): W1
    fc1_bias: Tensor  # (D,)
    filter: Tensor | None  # (D, 1, 3, 3), or None without the depthwise convolution
    fc2_weight: Tensor  # (C, D): W2
    fc2_bias: Tensor  # (C,)


def hc_block_ref(
    z: Tensor,
    weights: HcBlockWeights,
    k: Tensor | None = None,
    keep1: Tensor | None = None,
    keep2: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """:func:`hc_block` in plain torch, differentiable any number of times."""
    w, to_k, norm_weight, norm_bias, fc1_weight, fc1_bias, filter, fc2_weight, fc2_bias = weights
    if to_k is not None:
        k = torch.sigmoid(F.linear(z.mean(dim=(2, 3)), to_k))[:, :, None, None]
    elif k is None:
        raise ValueError(NO_RATE)
    u = heat_step_ref(z, w, k if keep1 is None else k * keep1.view(-1, 1, 1, 1))
    y = group_norm_1_ref(u, norm_weight, norm_bias, eps)
    p = F.conv2d(y, fc1_weight[:, :, None, None], fc1_bias)
    g = F.gelu(p) if filter is None else gelu_dwconv_ref(p, filter)
    branch = F.conv2d(g, fc2_weight[:, :, None, None], fc2_bias)
    return u + (branch if keep2 is None else branch * keep2.view(-1, 1, 1, 1))


def _rows(x: Tensor) -> Tensor:
    """(B, C, H, W), channels last -> (B H W, C), without a copy."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _maps(rows: Tensor, like: Tensor) -> Tensor:
    """(B H W, C) -> (B, C, H, W), channels last, without a copy, for the size of ``like``."""
    batch, _, height, width = like.shape
    return rows.view(batch, height, width, rows.shape[1]).permute(0, 3, 1, 2)


def _activate(p: Tensor, filter: Tensor | None, scale: Tensor | None, backend: str) -> Tensor:
    """g of p (B, D, H, W), times scale (B,) where it is given: (B H W, D)."""
    if filter is not None:
        return _rows(gelu_dwconv_forward(p, filter, scale, backend))
    # Elementwise functions are fastest on a tensor that is contiguous as it stands.
    g = F.gelu(p.permute(0, 2, 3, 1))
    return (g if scale is None else g * scale.view(-1, 1, 1, 1)).reshape(-1, p.shape[1])


class _HcBlock(torch.autograd.Function):
    @staticmethod
    def forward(ctx, recompute, eps, backend, keep1, keep2, z, k, *weights):
        dtype = compute_dtype(z)
        ctx.eps, ctx.backend, ctx.autocast = eps, backend, autocast_dtype(z.device.type)
        w, to_k, norm_weight, norm_bias, *products, fc2_bias = weights
        fc1_weight, fc1_bias, filter, fc2_weight = cast(products, dtype)
        with no_autocast(z.device.type):
            if to_k is not None:
                rate, k, mean = conduction_rate_forward(z, to_k, keep1, backend)
            else:
                mean, rate = None, k if keep1 is None else k * keep1.view(-1, 1, 1, 1)
                rate = rate.to(z.dtype)
            # Kernels put the last bias into u on the way, and take it off again for the norm: so
            # the last matrix product adds to u in place and completes the block.
            in_place = recompute and z.dtype == dtype and use_triton(backend, z)
            offset = None
            if in_place:
                offset = fc2_bias[None] if keep2 is None else fc2_bias * keep2[:, None]
            u = heat_step_forward(z, w, rate, offset, backend)
            y, mu, rstd = group_norm_1_forward(u, norm_weight, norm_bias, eps, offset, backend)
            y = _rows(y.to(dtype))
            p = _maps(product(y, fc1_weight, fc1_bias), z)
            g = _activate(p, filter, keep2 if in_place else None, backend)
            if in_place:
                _rows(u).addmm_(g, fc2_weight.t())
                out = u
            else:
                branch = _maps(product(g, fc2_weight, fc2_bias.to(dtype)), z)
                if keep2 is not None:
                    branch = branch * keep2.view(-1, 1, 1, 1)
                out = (u + branch).to(z.dtype)
        kept = (None, None, None) if recompute else (u, y, g)
        ctx.save_for_backward(
            z,
            k,
            rate,
            mean,
            offset,
            mu,
            rstd,
            p,
            *kept,
            keep1,
            keep2,
            fc1_weight,
            filter,
            fc2_weight,
            *weights,
        )
        return out

    @staticmethod
    def backward(ctx, dout):
        (
            z,
            k,
            rate,
            mean,
            offset,
            mu,
            rstd,
            p,
            u,
            y,
            g,
            keep1,
            keep2,
            fc1_weight,
            filter,
            fc2_weight,
            *weights,
        ) = ctx.saved_tensors
        w, to_k, norm_weight, norm_bias = weights[:4]
        wanted, backend = ctx.needs_input_grad[5:], ctx.backend
        if wants_plain_backward(dout):
            inputs = [z, k if to_k is None else None, *weights]
            return (None,) * 5 + gradients(
                lambda z, k, *weights: hc_block_ref(
                    z, HcBlockWeights(*weights), k, keep1, keep2, ctx.eps
                ),
                inputs,
                wanted,
                dout,
                ctx.autocast,
            )
        wanted_z, wanted_k, wanted_w = wanted[:3]
        dtype, (height, width) = p.dtype, z.shape[2:]

        dout = dout.contiguous(memory_format=torch.channels_last)
        e = dout.to(dtype) if keep2 is None else dout.to(dtype) * keep2.to(dtype).view(-1, 1, 1, 1)
        e = _rows(e)
        if g is None:
            g = _activate(p, filter, None, backend)
        dfc2_bias = column_sums(e)
        dg, dfc2_weight = product_backward(e, g, fc2_weight)
        del g
        dg = _maps(dg, z)
        if filter is None:
            dp, dfilter = torch.ops.aten.gelu_backward(_rows(dg), _rows(p)), None
            dfc1_bias = column_sums(dp)
        else:
            dp, dfilter, dfc1_bias = gelu_dwconv_backward(dg, p, filter, None, backend)
            dp = _rows(dp)
        del dg
        if u is None:
            u = heat_step_forward(z, w, rate, offset, backend)
        if y is None:
            y = group_norm_1_forward(u, norm_weight, norm_bias, ctx.eps, offset, backend)[0]
            y = _rows(y.to(dtype))
        dy, dfc1_weight = product_backward(dp, y, fc1_weight)
        del y
        dy = _maps(dy, z).to(u.dtype)
        del dp
        du, dnorm_weight, dnorm_bias = group_norm_1_backward(
            dy, u, norm_weight, mu, rstd, dout.to(u.dtype), offset, backend
        )
        del dy, u

        dw = dk = dto_k = dmean = None
        if to_k is not None or wanted_w or wanted_k:
            drate, dw = heat_step_sums(du, z, w, rate, backend)
            if to_k is not None:
                dmean, dto_k = conduction_rate_backward(drate, k, mean, to_k, keep1)
                dmean = dmean / (height * width)
            else:
                dk = drate if keep1 is None else drate * keep1.view(-1, 1, 1, 1)
                dk = dk.sum_to_size(k.shape)
        dz = heat_step_transposed(du, w, rate, dmean, backend) if wanted_z else None
        grads = [
            dz,
            dk,
            dw,
            dto_k,
            dnorm_weight,
            dnorm_bias,
            dfc1_weight,
            dfc1_bias,
            dfilter,
            dfc2_weight,
            dfc2_bias,
        ]
        # What is not asked for is dropped before it costs a cast.
        grads = [grad if asked else None for grad, asked in zip(grads, wanted)]
        return (None,) * 5 + tuple(cast_like(grads, [z, k, *weights]))


def hc_block(
    z: Tensor,
    weights: HcBlockWeights,
    k: Tensor | None = None,
    keep1: Tensor | None = None,
    keep2: Tensor | None = None,
    eps: float = 1e-5,
    recompute: bool = True,
    backend: str = 'auto',
) -> Tensor:
    """A whole block of HcNet; equations in the module's docstring.

    Under autocast matrix products and the hidden layer are in its dtype, as torch's own layers
    are; the residual stream keeps the dtype of ``z``.

    Args:
        z (Tensor): Temperature, (B, C, H, W), floating point.
        weights (HcBlockWeights): The block's parameters.
        k (Tensor, optional): Conduction rate in pixels², broadcastable to (B, C, 1, 1); for
            weights without ``to_k``.
        keep1 (Tensor, optional): (B,): s1, the factor of every sample's conduction.
        keep2 (Tensor, optional): (B,): s2, the factor of every sample's refinement.
        eps (float): Added to the norm's variance.
        recompute (bool): Compute again in the backward pass what is cheap, instead of keeping it.
        backend (str): 'auto', 'triton' or 'torch'; see :func:`~mmhcnet.ops.backend.use_triton`.

    Returns:
        Tensor: (B, C, H, W), channels last, dtype of ``z``.

    Raises:
        ValueError: Neither ``k`` nor ``to_k`` is there.
    """
    if k is None and weights.to_k is None:
        raise ValueError(NO_RATE)
    z = z.contiguous(memory_format=torch.channels_last)
    return _HcBlock.apply(  # pyright: ignore[reportReturnType]
        recompute, eps, backend, keep1, keep2, z, k, *weights
    )
