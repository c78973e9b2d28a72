"""HcNet and vHeat op by op: the equations as plain torch on (B, C, H, W), one operation a line.

The oracle of the backbones' tests: the same parameters, no fused kernel, no choice of layout, and
nothing is recomputed in the backward pass.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmhcnet import HcNet
from mmhcnet.ops import dct_matrix, eigenvalues, heat_flux


def _group_norm(norm: nn.Module, x: Tensor) -> Tensor:
    return F.group_norm(x, 1, norm.weight, norm.bias, norm.eps)


def _layer_norm(norm: nn.Module, x: Tensor) -> Tensor:
    x = x.permute(0, 2, 3, 1)
    x = F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
    return x.permute(0, 3, 1, 2).contiguous()


def _linear(linear: nn.Linear, x: Tensor) -> Tensor:
    return F.conv2d(x, linear.weight[:, :, None, None], linear.bias)


def hcnet_block(block: nn.Module, z: Tensor) -> Tensor:
    """Equations 6a to 6c and the refinement layer of HcNet: (B, C, H, W) -> (B, C, H, W)."""
    conduction, refinement = block.conduction, block.refinement
    h = conduction.rate(z) * heat_flux(z, conduction.w)
    z = z + conduction.drop_path(h)
    h = _group_norm(refinement.norm, z)
    h = refinement.fc1(h)
    h = F.gelu(h)
    if refinement.dwconv is not None:
        h = refinement.dwconv(h)
    h = refinement.fc2(h)
    return z + refinement.drop_path(h)


def _conduct(conduction: nn.Module, x: Tensor, freq_embed: Tensor) -> Tensor:
    height, width = x.shape[2:]
    if conduction.dwconv is not None:
        x = conduction.dwconv(x)
    x = _linear(conduction.fc_in, x)
    phi, gate = x.chunk(2, dim=1) if conduction.with_gate else (x, None)
    rows, columns = (dct_matrix(n, x.device, x.dtype) for n in (height, width))
    modes = torch.einsum('nh,bchw->bcnw', rows, phi)
    modes = torch.einsum('mw,bcnw->bcnm', columns, modes)
    rate = eigenvalues(height, x.device, torch.float32)[:, None] + eigenvalues(
        width, x.device, torch.float32
    )
    if conduction.to_k is not None:
        k = F.relu(conduction.to_k(freq_embed)).permute(2, 0, 1)
    elif isinstance(conduction.k, float):
        k = conduction.k
    else:
        k = F.softplus(conduction.k)
    modes = modes * torch.pow(torch.exp(-rate), k).to(modes.dtype)
    u = torch.einsum('nh,bcnm->bchm', rows, modes)
    u = torch.einsum('mw,bchm->bchw', columns, u)
    u = _layer_norm(conduction.norm, u)
    if gate is not None:
        u = u * F.silu(gate)
    return _linear(conduction.fc_out, u)


def vheat_block(block: nn.Module, x: Tensor, freq_embed: Tensor) -> Tensor:
    """Operator and MLP of vHeat: (B, C, H, W) and (H, W, C) -> (B, C, H, W)."""

    def mlp(y: Tensor) -> Tensor:
        return _linear(block.mlp.fc2, F.gelu(_linear(block.mlp.fc1, y)))

    def conduct(y: Tensor) -> Tensor:
        return _conduct(block.conduction, y, freq_embed)

    for branch, norm, gamma in (
        (conduct, block.norm1, block.gamma1),
        (mlp, block.norm2, block.gamma2),
    ):
        y = _layer_norm(norm, branch(x)) if block.post_norm else branch(_layer_norm(norm, x))
        if gamma is not None:
            y = y * gamma[:, None, None]
        x = x + block.drop_path(y)
    return x


class OpByOp(nn.Module):
    """An HcNet or VHeat, run op by op with its own parameters.

    Args:
        backbone (HcNet or VHeat): Not folded for deployment.
    """

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone
        hcnet = isinstance(backbone, HcNet)
        self._norm = _group_norm if hcnet else _layer_norm
        self._block = hcnet_block if hcnet else vheat_block

    def forward(self, x: Tensor) -> tuple:
        """As the backbone's forward."""
        backbone, norm, outs = self.backbone, self._norm, []
        stem = backbone.stem
        x = F.gelu(norm(stem.norm1, stem.conv1(x)))
        x = norm(stem.norm2, stem.conv2(x))
        for i, stage in enumerate(backbone.stages):
            if i > 0:
                downsample = backbone.downsamples[i - 1]
                x = norm(downsample.norm, downsample.conv(x))
            inputs = backbone.stage_inputs(i, x)
            for block in stage:
                x = self._block(block, x, *inputs)
            if i in backbone.out_indices:
                outs.append(norm(getattr(backbone, f'norm{i}'), x))
        return tuple(outs)
