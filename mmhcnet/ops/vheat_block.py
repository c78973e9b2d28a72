"""vHeat's block as two differentiable functions, one for each of its residual branches.

Wang et al., "Building Vision Models upon Heat Conduction", CVPR 2025. Forward, for a map x
(B, H, W, C), pre-norm::

    a     = DWConv3x3(LN(x))                    out = x + s γ v
    phi, gate = split(W_in a + b_in)
    X     = DCT2(phi),  U = IDCT2(X · D)        D: the decay of every mode and channel
    g     = LN(U) · SiLU(gate)
    v     = W_out g + b_out

and for the MLP::

    h     = W1 LN(x) + b1,  v = W2 GELU(h) + b2     out = x + s γ v

s is the factor of stochastic depth, one for each sample, γ the layer scale. With post-norm x takes
the place of LN(x), and out = x + s LN(v) with γ in the norm's weight and bias. Backward, with d for
the gradient of the loss, pre-norm::

    e     = s dout,  Q = Σ e gᵀ,  q = Σ e
    dγ    = (W_out · Q) 1 + b_out · q           so that v need not be kept
    dW_out = γ Q,  db_out = γ q,  dg = W_outᵀ γ e
    dU, dgate: of the norm and SiLU
    dX    = DCT2(dU) · D,  dD = Σ DCT2(dU) · X,  dphi = IDCT2(dX)
    da    = W_inᵀ (dphi, dgate),  dx = dout + LN'(DWConvᵀ(da))

The DCT is orthonormal, so its transpose is its inverse. Kept for the backward pass are x and the
map before the split, or before GELU, with post-norm v as well: eight maps of C channels a block
instead of more than twenty. The rest is computed again; no product with a weight is repeated. With
``recompute=False`` the input of both products is kept as well.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .dct import dct2, heat_spectral, idct2
from .norm_gate import norm_gate_backward, norm_gate_forward
from .precision import autocast_dtype, cast, cast_like, compute_dtype, no_autocast
from .product import column_sums, product, product_backward
from .second_order import gradients, wants_plain_backward


class Residual(NamedTuple):
    """What both branches have around their mechanism."""

    norm_weight: Tensor  # (C,)
    norm_bias: Tensor  # (C,)
    gamma: Tensor | None  # (C,): γ, or None without layer scale


class ConductionWeights(NamedTuple):
    """Parameters of the operator; C channels."""

    dw_weight: Tensor | None  # (C, 1, 3, 3), or None without the depthwise convolution
    dw_bias: Tensor | None  # (C,)
    in_weight: Tensor  # (2C, C), or (C, C) without the gate: W_in
    in_bias: Tensor
    norm_weight: Tensor  # (C,)
    norm_bias: Tensor  # (C,)
    out_weight: Tensor  # (C, C): W_out
    out_bias: Tensor  # (C,)


class MlpWeights(NamedTuple):
    """Parameters of the MLP, D channels in the hidden layer."""

    fc1_weight: Tensor  # (D, C): W1
    fc1_bias: Tensor  # (D,)
    fc2_weight: Tensor  # (C, D): W2
    fc2_bias: Tensor  # (C,)


def _rows(x: Tensor) -> Tensor:
    """(B, H, W, C) -> (B H W, C)."""
    return x.reshape(-1, x.shape[-1])


def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(B, H, W, C) -> (B, H, W, D)."""
    return product(_rows(x), weight, bias).view(*x.shape[:3], len(weight))


def _per_sample(keep: Tensor | None) -> Tensor | None:
    return None if keep is None else keep.view(-1, 1, 1, 1)


def _enter(
    x: Tensor, residual: Residual, eps: float, post_norm: bool, dtype: torch.dtype, backend: str
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The input of a branch, with mean and 1 / σ of the norm before it."""
    if post_norm:
        return x.to(dtype), None, None
    y, mean, rstd = norm_gate_forward(
        x, None, residual.norm_weight, residual.norm_bias, eps, backend
    )
    return y.to(dtype), mean, rstd


def _enter_backward(
    dy: Tensor,
    x: Tensor,
    residual: Residual,
    mean: Tensor | None,
    rstd: Tensor | None,
    dout: Tensor,
    backend: str,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients of x, the skip connection's included, and of the norm's weight and bias."""
    dy = dy.to(x.dtype)
    if mean is None:
        return dout + dy, None, None
    dx, _, dweight, dbias = norm_gate_backward(
        dy, x, None, residual.norm_weight, residual.norm_bias, mean, rstd, backend
    )
    return dx.add_(dout), dweight, dbias


def _leave(
    x: Tensor,
    v: Tensor,
    residual: Residual,
    eps: float,
    post_norm: bool,
    keep: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The output of a branch, with mean and 1 / σ of the norm after it."""
    mean = rstd = None
    if post_norm:
        v, mean, rstd = norm_gate_forward(
            v, None, residual.norm_weight, residual.norm_bias, eps, backend
        )
    scale = _per_sample(keep)
    if residual.gamma is not None:
        scale = residual.gamma if scale is None else residual.gamma * scale
    out = x + v if scale is None else torch.addcmul(x, v, scale)
    return out.to(x.dtype), mean, rstd


def _leave_backward(
    dout: Tensor,
    v: Tensor | None,
    residual: Residual,
    mean: Tensor | None,
    rstd: Tensor | None,
    keep: Tensor | None,
    dtype: torch.dtype,
    backend: str,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The gradient e (B H W, C) of v / γ, and those of the norm's weight and bias."""
    e, scale = dout.to(dtype), _per_sample(keep)
    if scale is not None:
        e = e * scale.to(dtype)
    if v is None:
        return _rows(e), None, None
    e, _, dweight, dbias = norm_gate_backward(
        e, v, None, residual.norm_weight, residual.norm_bias, mean, rstd, backend
    )
    return _rows(e), dweight, dbias


def _product_backward(
    e: Tensor, g: Tensor, weight: Tensor, bias: Tensor, gamma: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of g, weight, bias and γ for γ (weight g + bias), from e, which leaves γ out."""
    q_bias = column_sums(e)
    if gamma is None:
        return (*product_backward(e, g, weight), q_bias, None)
    scale = gamma.to(e.dtype)
    dg, q_weight = product_backward(e, g, weight * scale[:, None])
    dgamma = (weight * q_weight).sum(1, dtype=gamma.dtype) + bias * q_bias
    return dg, q_weight * scale[:, None], q_bias * scale, dgamma


def _depthwise(y: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    if weight is None:
        return y
    y = F.conv2d(y.permute(0, 3, 1, 2), weight, bias, padding=1, groups=len(weight))
    return y.permute(0, 2, 3, 1)  # (B, H, W, C)


def _depthwise_backward(
    da: Tensor, y: Tensor, weight: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    if weight is None:
        return da, None, None
    dy, dweight, dbias = torch.ops.aten.convolution_backward(
        da.permute(0, 3, 1, 2),
        y.permute(0, 3, 1, 2),
        weight,
        [len(weight)],
        [1, 1],
        [1, 1],
        [1, 1],
        False,
        [0, 0],
        len(weight),
        [True, True, True],
    )
    return dy.permute(0, 2, 3, 1), dweight, dbias


class _Conduction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, recompute, eps, inner_eps, backend, post_norm, keep, x, decay, *weights):
        ctx.settings = eps, inner_eps, backend, post_norm
        ctx.autocast = autocast_dtype(x.device.type)
        dtype = compute_dtype(x)
        residual, weights = Residual(*weights[:3]), ConductionWeights(*weights[3:])
        dw_weight, dw_bias, in_weight, in_bias, out_weight, out_bias = cast(
            [*weights[:4], *weights[6:]], dtype
        )
        with no_autocast(x.device.type):
            y, mean, rstd = _enter(x, residual, eps, post_norm, dtype, backend)
            a = _depthwise(y, dw_weight, dw_bias)
            q = _linear(a, in_weight, in_bias)
            phi, gate = _split(q, len(out_weight))
            u = _conduct(dct2(phi), decay)
            g = norm_gate_forward(
                u, gate, weights.norm_weight, weights.norm_bias, inner_eps, backend
            )[0]
            v = _linear(g, out_weight, out_bias)
            out, mean_out, rstd_out = _leave(x, v, residual, eps, post_norm, keep, backend)
        ctx.save_for_backward(
            x,
            decay,
            keep,
            mean,
            rstd,
            q,
            v if post_norm else None,
            mean_out,
            rstd_out,
            *((None, None) if recompute else (a, g)),
            dw_weight,
            in_weight,
            out_weight,
            out_bias,
            *residual,
            *weights,
        )
        return out

    @staticmethod
    def backward(ctx, dout):
        (
            x,
            decay,
            keep,
            mean,
            rstd,
            q,
            v,
            mean_out,
            rstd_out,
            a,
            g,
            dw_weight,
            in_weight,
            out_weight,
            out_bias,
            *inputs,
        ) = ctx.saved_tensors
        eps, inner_eps, backend, post_norm = ctx.settings
        wanted, inputs = ctx.needs_input_grad[6:], [x, decay, *inputs]
        if wants_plain_backward(dout):
            return (None,) * 6 + gradients(
                lambda x, decay, *inputs: vheat_conduction_ref(
                    x,
                    decay,
                    ConductionWeights(*inputs[3:]),
                    Residual(*inputs[:3]),
                    post_norm,
                    keep,
                    eps,
                    inner_eps,
                ),
                inputs,
                wanted,
                dout,
                ctx.autocast,
            )
        residual, weights = Residual(*inputs[2:5]), ConductionWeights(*inputs[5:])
        dtype, channels = q.dtype, x.shape[3]

        e, *dnorm = _leave_backward(dout, v, residual, mean_out, rstd_out, keep, dtype, backend)
        phi, gate = _split(q, channels)
        modes = dct2(phi)
        u = _conduct(modes, decay, keep_modes=True)
        # Mean and 1 / σ are as cheap to have again as to keep.
        again, mean_u, rstd_u = norm_gate_forward(
            u, gate, weights.norm_weight, weights.norm_bias, inner_eps, backend
        )
        g = again if g is None else g
        dg, dout_weight, dout_bias, dgamma = _product_backward(
            e, _rows(g), out_weight, out_bias, residual.gamma
        )
        del e, g, again
        dq = torch.empty_like(q)
        dphi, dgate = _split(dq, channels)
        du, _, dnorm_weight, dnorm_bias = norm_gate_backward(
            dg.view(x.shape),
            u,
            gate,
            weights.norm_weight,
            weights.norm_bias,
            mean_u,
            rstd_u,
            backend,
            dgate_out=dgate,
        )
        del dg, u
        du = dct2(du)
        ddecay = (du * modes).sum(0, dtype=decay.dtype).sum_to_size(decay.shape)
        del modes
        dphi.copy_(_conduct(du, decay))
        del du
        dq = _rows(dq)
        y = _enter(x, residual, eps, post_norm, dtype, backend)[0]
        if a is None:
            a = y
            if dw_weight is not None:
                a = _depthwise(y, dw_weight, *cast([weights.dw_bias], dtype))
        din_bias = column_sums(dq)
        da, din_weight = product_backward(dq, _rows(a), in_weight)
        del a, dq
        da = da.view(x.shape)
        dy, ddw_weight, ddw_bias = _depthwise_backward(da, y, dw_weight)
        del da, y
        dx, *dnorm_in = _enter_backward(dy, x, residual, mean, rstd, dout, backend)
        grads = [
            dx,
            ddecay,
            *(dnorm if post_norm else dnorm_in),
            dgamma,
            ddw_weight,
            ddw_bias,
            din_weight,
            din_bias,
            dnorm_weight,
            dnorm_bias,
            dout_weight,
            dout_bias,
        ]
        grads = [grad if asked else None for grad, asked in zip(grads, wanted)]
        return (None,) * 6 + tuple(cast_like(grads, inputs))


def _split(q: Tensor, channels: int) -> tuple[Tensor, Tensor | None]:
    """phi and gate, or phi alone, as views."""
    return (q, None) if q.shape[-1] == channels else (q[..., :channels], q[..., channels:])


def _conduct(modes: Tensor, decay: Tensor, keep_modes: bool = False) -> Tensor:
    # In place, which also spares a copy of the decay in the dtype of the modes.
    return idct2((modes * decay).to(modes.dtype) if keep_modes else modes.mul_(decay))


class _Mlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, recompute, eps, backend, post_norm, keep, x, *weights):
        ctx.settings, ctx.autocast = (eps, backend, post_norm), autocast_dtype(x.device.type)
        dtype = compute_dtype(x)
        residual = Residual(*weights[:3])
        fc1_weight, fc1_bias, fc2_weight, fc2_bias = cast(weights[3:], dtype)
        with no_autocast(x.device.type):
            y, mean, rstd = _enter(x, residual, eps, post_norm, dtype, backend)
            h = _linear(y, fc1_weight, fc1_bias)
            g = F.gelu(h)
            v = _linear(g, fc2_weight, fc2_bias)
            out, mean_out, rstd_out = _leave(x, v, residual, eps, post_norm, keep, backend)
        ctx.save_for_backward(
            x,
            keep,
            mean,
            rstd,
            h,
            v if post_norm else None,
            mean_out,
            rstd_out,
            *((None, None) if recompute else (y, g)),
            fc1_weight,
            fc2_weight,
            fc2_bias,
            *weights,
        )
        return out

    @staticmethod
    def backward(ctx, dout):
        (
            x,
            keep,
            mean,
            rstd,
            h,
            v,
            mean_out,
            rstd_out,
            y,
            g,
            fc1_weight,
            fc2_weight,
            fc2_bias,
            *inputs,
        ) = ctx.saved_tensors
        eps, backend, post_norm = ctx.settings
        wanted, inputs = ctx.needs_input_grad[5:], [x, *inputs]
        if wants_plain_backward(dout):
            return (None,) * 5 + gradients(
                lambda x, *inputs: vheat_mlp_ref(
                    x, MlpWeights(*inputs[3:]), Residual(*inputs[:3]), post_norm, keep, eps
                ),
                inputs,
                wanted,
                dout,
                ctx.autocast,
            )
        residual, dtype = Residual(*inputs[1:4]), h.dtype

        e, *dnorm = _leave_backward(dout, v, residual, mean_out, rstd_out, keep, dtype, backend)
        g = F.gelu(h) if g is None else g
        dg, dfc2_weight, dfc2_bias, dgamma = _product_backward(
            e, _rows(g), fc2_weight, fc2_bias, residual.gamma
        )
        del e, g
        dh = torch.ops.aten.gelu_backward(dg, _rows(h))
        del dg
        y = _enter(x, residual, eps, post_norm, dtype, backend)[0] if y is None else y
        dfc1_bias = column_sums(dh)
        dy, dfc1_weight = product_backward(dh, _rows(y), fc1_weight)
        del y, dh
        dy = dy.view(x.shape)
        dx, *dnorm_in = _enter_backward(dy, x, residual, mean, rstd, dout, backend)
        grads = [
            dx,
            *(dnorm if post_norm else dnorm_in),
            dgamma,
            dfc1_weight,
            dfc1_bias,
            dfc2_weight,
            dfc2_bias,
        ]
        grads = [grad if asked else None for grad, asked in zip(grads, wanted)]
        return (None,) * 5 + tuple(cast_like(grads, inputs))


def _norm_gate(u: Tensor, gate: Tensor | None, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    n = F.layer_norm(u, u.shape[-1:], weight, bias, eps)
    return n if gate is None else n * F.silu(gate)


def _residual_ref(
    x: Tensor,
    branch: Tensor,
    residual: Residual,
    post_norm: bool,
    keep: Tensor | None,
    eps: float,
) -> Tensor:
    if post_norm:
        branch = _norm_gate(branch, None, residual.norm_weight, residual.norm_bias, eps)
    if residual.gamma is not None:
        branch = branch * residual.gamma
    scale = _per_sample(keep)
    return x + (branch if scale is None else branch * scale)


def vheat_conduction_ref(
    x: Tensor,
    decay: Tensor,
    weights: ConductionWeights,
    residual: Residual,
    post_norm: bool = False,
    keep: Tensor | None = None,
    eps: float = 1e-5,
    inner_eps: float = 1e-5,
) -> Tensor:
    """:func:`vheat_conduction` in plain torch, differentiable any number of times."""
    y = x if post_norm else _norm_gate(x, None, residual.norm_weight, residual.norm_bias, eps)
    a = _depthwise(y, weights.dw_weight, weights.dw_bias)
    phi, gate = _split(F.linear(a, weights.in_weight, weights.in_bias), x.shape[3])
    g = _norm_gate(
        heat_spectral(phi, decay), gate, weights.norm_weight, weights.norm_bias, inner_eps
    )
    return _residual_ref(
        x, F.linear(g, weights.out_weight, weights.out_bias), residual, post_norm, keep, eps
    )


def vheat_mlp_ref(
    x: Tensor,
    weights: MlpWeights,
    residual: Residual,
    post_norm: bool = False,
    keep: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """:func:`vheat_mlp` in plain torch, differentiable any number of times."""
    y = x if post_norm else _norm_gate(x, None, residual.norm_weight, residual.norm_bias, eps)
    g = F.gelu(F.linear(y, weights.fc1_weight, weights.fc1_bias))
    return _residual_ref(
        x, F.linear(g, weights.fc2_weight, weights.fc2_bias), residual, post_norm, keep, eps
    )


def _folded(residual: Residual, post_norm: bool) -> Residual:
    """With post-norm γ is part of the norm's weight and bias."""
    if not post_norm or residual.gamma is None:
        return residual
    return Residual(
        residual.norm_weight * residual.gamma, residual.norm_bias * residual.gamma, None
    )


def vheat_conduction(
    x: Tensor,
    decay: Tensor,
    weights: ConductionWeights,
    residual: Residual,
    post_norm: bool = False,
    keep: Tensor | None = None,
    eps: float = 1e-5,
    inner_eps: float = 1e-5,
    recompute: bool = True,
    backend: str = 'auto',
) -> Tensor:
    """vHeat's heat conduction operator with its residual connection; equations above.

    Under autocast matrix products are in its dtype, as torch's own layers are; the residual stream
    keeps the dtype of ``x``.

    Args:
        x (Tensor): (B, H, W, C), floating point, contiguous.
        decay (Tensor): D, :func:`~mmhcnet.ops.spectral_decay` for H and W: (H, W, C or 1).
        weights (ConductionWeights): The operator's parameters.
        residual (Residual): Norm and layer scale of the branch.
        post_norm (bool): The norm after the operator instead of before it.
        keep (Tensor, optional): (B,): s, the factor of every sample's branch.
        eps (float): Of the branch's norm.
        inner_eps (float): Of the operator's norm.
        recompute (bool): Compute again in the backward pass what is cheap, instead of keeping it.
        backend (str): 'auto', 'triton' or 'torch'; see :func:`~mmhcnet.ops.backend.use_triton`.

    Returns:
        Tensor: (B, H, W, C), dtype of ``x``.
    """
    return _Conduction.apply(  # pyright: ignore[reportReturnType]
        recompute,
        eps,
        inner_eps,
        backend,
        post_norm,
        keep,
        x,
        decay,
        *_folded(residual, post_norm),
        *weights,
    )


def vheat_mlp(
    x: Tensor,
    weights: MlpWeights,
    residual: Residual,
    post_norm: bool = False,
    keep: Tensor | None = None,
    eps: float = 1e-5,
    recompute: bool = True,
    backend: str = 'auto',
) -> Tensor:
    """vHeat's MLP with its residual connection; arguments as :func:`vheat_conduction`'s."""
    return _Mlp.apply(  # pyright: ignore[reportReturnType]
        recompute, eps, backend, post_norm, keep, x, *_folded(residual, post_norm), *weights
    )
