"""Classifiers in int8, and the tool that makes them. OpenVINO's part needs `make test-deploy`."""

import importlib.util
import re
import sys

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

import mmhcnet
from mmhcnet.errors import UserError
from mmhcnet.inference.model import build_model
from mmhcnet.inference.quantize import (
    BACKENDS,
    ExportedClassifier,
    accuracy,
    find_images,
    labelled_images,
    prepare,
    quantize,
)

from ..conftest import ROOT, load_script

pytestmark = [
    pytest.mark.deploy,
    pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning'),
    pytest.mark.filterwarnings('ignore:Constant folding'),
]
FAMILIES = ('hcnet', 'vheat')
TOOL = ROOT / 'tools' / 'deployment' / 'quantize.py'


def require(backend):
    for package in BACKENDS[backend].packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f'{package} is not installed: make test-deploy')


def small(family):
    cfg = Config.fromfile(mmhcnet.config(f'classification/{family}_digits.py'))
    cfg.model.backbone.arch.update(embed_dims=[8, 16], depths=[1, 1])
    cfg.model.backbone.out_indices = (1,)
    cfg.model.head.in_channels = 16
    return cfg


@pytest.fixture
def images(tmp_path):
    """A folder of pictures, in class folders."""
    numbers = np.random.default_rng(0)
    for i in range(12):
        file = tmp_path / 'images' / str(i % 2) / f'{i}.png'
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(numbers.integers(0, 256, (4, 4, 3), np.uint8)).resize((40, 40)).save(file)
    return tmp_path / 'images'


@pytest.fixture
def checkpoint(tmp_path):
    def make(cfg):
        model = build_model(cfg)
        model.init_weights()
        torch.save(dict(state_dict=model.state_dict()), tmp_path / 'a.pth')
        return str(tmp_path / 'a.pth')

    return make


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('backend', BACKENDS)
def test_int8_follows_float32(backend, family, images, checkpoint, tmp_path):
    require(backend)
    cfg = small(family)
    model = prepare(cfg, checkpoint(cfg), str(images), 8, str(tmp_path))
    assert [image.shape for image in model.images] == 8 * [(1, 3, 48, 48)]
    out = str(tmp_path / f'int8{BACKENDS[backend].suffix}')
    quantize(backend, model.source, out, model.images)
    batch = np.concatenate(model.images)
    with torch.no_grad():
        wanted = model.module(torch.from_numpy(batch)).numpy()
    exported = ExportedClassifier(model.source, backend, 'float32')
    np.testing.assert_allclose(exported(batch), wanted, atol=1e-4)
    found = ExportedClassifier(out)
    error = np.abs(found(batch) - wanted).max() / np.abs(wanted).max()
    # Not exact, or nothing was quantised.
    assert 1e-4 < error < 0.1
    with pytest.raises(UserError, match=r"int8\.\w+' takes images of 48x48, got 64x32: resize"):
        found(np.zeros((1, 3, 64, 32), np.float32))


@pytest.mark.parametrize('family', FAMILIES)
def test_conduction_stays_in_floating_point(family, images, checkpoint, tmp_path):
    """Products outside of the heat equation have quantised inputs, and those in it have not."""
    require('onnxruntime')
    import onnx

    cfg = small(family)
    model = prepare(cfg, checkpoint(cfg), str(images), 2, str(tmp_path))
    quantize('onnxruntime', model.source, str(tmp_path / 'a.onnx'), model.images)
    graph = onnx.load(str(tmp_path / 'a.onnx')).graph
    made_by = {output: node.op_type for node in graph.node for output in node.output}
    quantized = {
        node.name: [made_by.get(name) for name in node.input[:2]] == 2 * ['DequantizeLinear']
        for node in graph.node
        if node.op_type in ('Conv', 'Gemm', 'MatMul')
    }
    heat = {name for name in quantized if re.search(r'/conduction/(Conv|MatMul)', name)}
    # A stencil, or four products of the transforms, in each of two blocks.
    assert len(heat) == (2 if family == 'hcnet' else 8)
    assert [name for name, yes in quantized.items() if not yes] == [
        name for name in quantized if name in heat
    ]


def test_accuracy_is_that_of_the_largest_logit(digits_val):
    cfg = small('hcnet')
    cfg.test_dataloader.dataset.data_root = str(digits_val)
    normalise = build_model(cfg).data_preprocessor
    batches = labelled_images(cfg, normalise, 5, batch_size=2)
    assert [len(batch.labels) for batch in batches] == [2, 2, 1]
    # Every second of ten images, of classes 0 and 1 in turn within their folders.
    assert torch.cat([batch.labels for batch in batches]).tolist() == [0, 0, 0, 1, 1]
    assert batches[0].images.shape == (2, 3, 48, 48)

    def zero(images):
        return np.tile(np.float32([1, 0]), (len(images), 1))

    assert accuracy(zero, batches) == 60


@pytest.fixture
def digits_val(tmp_path):
    for i in range(10):
        file = tmp_path / 'root' / 'val' / str(i // 5) / f'{i}.png'
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (40, 40), (25 * i,) * 3).save(file)
    return tmp_path / 'root'


def test_images_are_spread_over_the_folder(images):
    names = [path.rpartition('/')[2] for path in find_images(str(images), 4)]
    assert names == ['0.png', '4.png', '1.png', '5.png']
    assert len(find_images(str(images), 100)) == 12


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the tool in this process; returns its exit code and the lines that it wrote."""

    def run(*args):
        monkeypatch.setattr(sys, 'argv', ['quantize.py', *map(str, args)])
        code = 0
        try:
            load_script(TOOL).main()
        except SystemExit as end:
            code = end.code
        return code, capsys.readouterr()

    return run


DIGITS = ROOT / 'configs' / 'classification' / 'hcnet_digits.py'


def test_tool(run, images, digits_val, checkpoint, tmp_path):
    require('onnxruntime')
    cfg = small('hcnet')
    options = [
        '--backend=onnxruntime',
        f'--out={tmp_path}/new/a.onnx',
        '--rounds=1',
        '--eval-images=10',
        '--cfg-options',
        'model.backbone.arch.embed_dims=[8,16]',
        'model.backbone.arch.depths=[1,1]',
        'model.backbone.out_indices=(1,)',
        'model.head.in_channels=16',
        f'test_dataloader.dataset.data_root={digits_val}',
    ]
    command = (DIGITS, checkpoint(cfg), images, *options)
    code, _ = run('--max-loss=-101', *command)
    assert 'points of accuracy are lost, and --max-loss is -101: ' in code
    assert not list((tmp_path / 'new').iterdir())
    code, written = run('--max-loss=100', *command)
    assert code == 0
    assert [path.name for path in (tmp_path / 'new').iterdir()] == ['a.onnx']
    rows = [line.strip('| ').split(' | ') for line in written.out.splitlines() if line[0] == '|']
    assert [row[0] for row in rows[2:]] == [
        'torch float32',
        'torch bfloat16',
        'onnxruntime float32',
        'onnxruntime int8',
    ]
    accuracies, sizes, times = ([float(row[i]) for row in rows[2:]] for i in (1, 2, 3))
    assert accuracies[0] == accuracies[2] and min(times) > 0
    assert 'a.onnx: images of 48x48' in written.out


@pytest.mark.parametrize(
    'backend, out, message',
    [
        ('tensorrt', 'a.onnx', "--backend: invalid choice: 'tensorrt' .choose from .*openvino"),
        ('openvino', 'a.onnx', r"--out of openvino ends in \.xml, got 'a.onnx'"),
    ],
)
def test_wrong_options(backend, out, message, run, images):
    code, written = run(DIGITS, 'a.pth', images, '--backend', backend, '--out', out)
    assert code == 2
    assert re.search(message, written.err.splitlines()[-1])


@pytest.mark.parametrize(
    'folder, config, message',
    [
        ('nowhere', DIGITS, "no folder '.*nowhere'$"),
        ('empty', DIGITS, r"no image in '.*empty' or below it: calibration takes \.jpg"),
        (
            'images',
            ROOT / 'configs/segmentation/upernet_hcnet_digits.py',
            "classifiers are quantised here, and the default_scope of the config is 'mmseg'",
        ),
    ],
)
def test_bad_input(folder, config, message, run, images, tmp_path):
    require('onnxruntime')
    (tmp_path / 'empty').mkdir()
    options = ('--backend=onnxruntime', f'--out={tmp_path}/new/a.onnx', '--eval-images=0')
    code, _ = run(config, 'a.pth', tmp_path / folder, *options)
    assert re.match(f'Error: {message}', code), code
    assert not list((tmp_path / 'new').iterdir())


def test_images_of_several_sizes(images, tmp_path):
    cfg = small('hcnet')
    cfg.test_dataloader.dataset.pipeline[1] = dict(type='ResizeEdge', scale=48)
    Image.new('RGB', (40, 80)).save(images / '0' / 'z.png')
    with pytest.raises(UserError, match=r"several \(48x48 of '.*', 96x48 of '.*z\.png'\): end it"):
        prepare(cfg, 'a.pth', str(images), 100, str(tmp_path))


def test_files_that_are_no_models(tmp_path):
    with pytest.raises(UserError, match=r'no backend that is supported: .*openvino \(\.xml\) or'):
        ExportedClassifier(str(tmp_path / 'a.engine'))
    with pytest.raises(UserError, match='no model file'):
        ExportedClassifier(str(tmp_path / 'a.onnx'))
