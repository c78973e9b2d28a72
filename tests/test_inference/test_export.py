"""ONNX export, compared in onnxruntime with torch. Needs onnx and onnxruntime."""

import copy

import pytest
import torch
from mmengine.config import Config
from torch import nn

import mmhcnet
from mmhcnet import HcNet, VHeat
from mmhcnet.checkpoints.fitting import load_weights
from mmhcnet.inference.export import (
    TOLERANCE,
    AdaptiveAvgPool,
    Difference,
    check_onnx,
    check_shapes,
    export_onnx,
    exportable,
    has_fixed_size,
)

pytestmark = pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
ARCH = dict(embed_dims=[8, 16], depths=[1, 1])
OPSET = 17


def ops_of(path):
    onnx = pytest.importorskip('onnx')
    return [node.op_type for node in onnx.load(str(path)).graph.node]


def differences(module, path, shapes):
    pytest.importorskip('onnxruntime')
    return list(check_onnx(module, str(path), shapes))


@pytest.mark.parametrize('size', [1, 2, 3, 6])
@pytest.mark.parametrize('shape', [(1, 1), (4, 7), (6, 12), (13, 5)])
def test_adaptive_pooling_by_matrix_products(size, shape):
    x = torch.randn(2, 3, *shape, dtype=torch.float64)
    torch.testing.assert_close(AdaptiveAvgPool(size)(x), nn.AdaptiveAvgPool2d(size)(x))


@pytest.mark.parametrize(
    'options',
    [
        dict(),
        dict(stencil='isotropic'),
        dict(k='learnable'),
        dict(k=0.3),
        dict(with_filter=False),
        dict(stencil='isotropic', k='learnable', with_filter=False),
    ],
    ids=str,
)
def test_hcnet_with_dynamic_shapes(options, tmp_path):
    pytest.importorskip('onnx')
    model = HcNet(ARCH, out_indices=(0, 1), **options).eval()
    export_onnx(model, str(tmp_path / 'a.onnx'), (32, 48), OPSET, ['a', 'b'])
    checked = differences(
        model, tmp_path / 'a.onnx', [(1, 32, 48), (3, 32, 48), (2, 41, 77), (1, 8, 8)]
    )
    assert all(found.ok for found in checked)
    assert not {'DFT', 'STFT'} & set(ops_of(tmp_path / 'a.onnx'))


@pytest.mark.parametrize(
    'options',
    [dict(), dict(k='learnable'), dict(k=1.5), dict(with_dwconv=False, with_gate=False)],
    ids=str,
)
def test_vheat_folded_for_a_size(options, tmp_path):
    pytest.importorskip('onnx')
    model = VHeat(
        dict(ARCH, post_norm=False, layer_scale=None), img_size=32, out_indices=(0, 1), **options
    ).eval()
    model.switch_to_deploy((32, 48))
    export_onnx(model, str(tmp_path / 'a.onnx'), (32, 48), OPSET, ['a', 'b'])
    checked = differences(model, tmp_path / 'a.onnx', [(1, 32, 48), (3, 32, 48)])
    assert all(found.ok for found in checked)
    ops = ops_of(tmp_path / 'a.onnx')
    assert not {'DFT', 'STFT'} & set(ops)
    # The matrices are constants, and the transforms products with them.
    assert not {'Cos', 'Range', 'Exp', 'ScatterND'} & set(ops)
    # In each of two blocks: 4 of the transforms, 2 of the operator's linear layers, 2 of the MLP.
    assert ops.count('MatMul') == 16


def test_a_wrong_graph_is_found_out(tmp_path):
    pytest.importorskip('onnx')
    model = HcNet(ARCH, out_indices=(1,)).eval()
    export_onnx(model, str(tmp_path / 'a.onnx'), (32, 32), OPSET, ['a'])
    with torch.no_grad():
        model.norm1.bias += 2 * TOLERANCE
    (checked,) = differences(model, tmp_path / 'a.onnx', [(1, 32, 32)])
    assert checked.difference == pytest.approx(2 * TOLERANCE, rel=0.1)


def test_tolerance_is_relative_above_one():
    assert Difference((1,), 0.9e-4, 0.1).ok and not Difference((1,), 1.1e-4, 0.1).ok
    assert Difference((1,), 0.9e-3, 10.0).ok and not Difference((1,), 1.1e-3, 10.0).ok


def test_shapes_to_check():
    assert {shape[1:] for shape in check_shapes((64, 96), fixed=True)} == {(64, 96)}
    free = check_shapes((64, 96), fixed=False)
    assert {b for b, _, _ in free} == {1, 2, 3}
    assert any(h % 2 for _, h, _ in free) and all(min(h, w) >= 32 for _, h, w in free)


CONFIGS = {
    'classification/{}_digits.py': [(2, 10)],
    'segmentation/upernet_{}_digits.py': [(2, 11, 64, 96)],
    'detection/mask_rcnn_{}_digits.py': [
        (2, 48, 16, 24),
        (2, 48, 8, 12),
        (2, 48, 4, 6),
        (2, 48, 2, 3),
    ],
}


@pytest.mark.parametrize('family', ['hcnet', 'vheat'])
@pytest.mark.parametrize('name', CONFIGS)
def test_what_is_exported_of_a_config(name, family):
    cfg = Config.fromfile(mmhcnet.config(name.format(family)))
    module = exportable(cfg, None, (64, 96))
    assert has_fixed_size(module) == (family == 'vheat')
    with torch.no_grad():
        found = module(torch.randn(2, 3, 64, 96))
    found = [found] if isinstance(found, torch.Tensor) else found
    assert [tuple(x.shape) for x in found] == CONFIGS[name]
    assert len(module.outputs) == len(found)


def test_logits_of_a_segmentor_are_mmsegs():
    cfg = Config.fromfile(mmhcnet.config('segmentation/upernet_hcnet_digits.py'))
    module = exportable(cfg, None, (64, 96))
    image = torch.randn(1, 3, 61, 87)
    reference = copy.deepcopy(module.model)
    # Its pooling as mmseg has it.
    for part in reference.decode_head.psp_modules:
        part[0] = nn.AdaptiveAvgPool2d(part[0].size)
    with torch.no_grad():
        wanted = reference.encode_decode(image, [dict(img_shape=(61, 87))])
        torch.testing.assert_close(module(image), wanted, atol=1e-5, rtol=1e-4)


def test_weights_of_the_checkpoint_are_exported(tmp_path):
    cfg = Config.fromfile(mmhcnet.config('classification/hcnet_digits.py'))
    trained = exportable(cfg, None, (64, 64)).model
    torch.save(dict(state_dict=trained.state_dict()), tmp_path / 'a.pth')
    module = exportable(cfg, str(tmp_path / 'a.pth'), (64, 64))
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(module(image), trained(image, mode='tensor'))


def test_config_without_a_task():
    with pytest.raises(ValueError, match='default_scope of the config must be one of'):
        exportable(Config(dict(model=dict())), None, (64, 64))


@pytest.mark.parametrize(
    'content, message',
    [
        (None, 'no checkpoint file'),
        ('text', 'is not a checkpoint that torch can read'),
        (dict(model=dict()), "has no 'state_dict'.*official_to_mmhcnet.py"),
        (
            dict(state_dict={'weight': torch.zeros(2, 3)}),
            'another model.*1 of 2 weights are not in it, as bias',
        ),
        (
            dict(state_dict={'weight': torch.zeros(9, 3), 'bias': torch.zeros(2)}),
            'another model.*1 weights differ, the first: size mismatch for weight',
        ),
    ],
)
def test_checkpoints_that_do_not_fit(content, message, tmp_path):
    path = tmp_path / 'a.pth'
    if isinstance(content, str):
        path.write_text(content)
    elif content:
        torch.save(content, path)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_weights(nn.Linear(3, 2), str(path))


def test_weights_of_a_checkpoint(tmp_path):
    weights = {'weight': torch.randn(2, 3), 'bias': torch.randn(2)}
    torch.save(dict(state_dict=weights, meta=dict(epoch=3)), tmp_path / 'a.pth')
    model = nn.Linear(3, 2)
    assert load_weights(model, str(tmp_path / 'a.pth')) == dict(epoch=3)
    assert torch.equal(model.weight, weights['weight'])
