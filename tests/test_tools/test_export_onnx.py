import importlib.util
import re
import sys

import numpy as np
import pytest
import torch

from ..conftest import load_script
from .conftest import CONFIGS, ROOT
from .test_bad_input import the_line

TOOL = 'deployment/export_onnx.py'


@pytest.mark.slow
@pytest.mark.parametrize(
    'task, family',
    [
        ('classification', 'hcnet'),
        ('classification', 'vheat'),
        ('detection', 'hcnet'),
        ('segmentation', 'hcnet'),
    ],
)
def test_export(task, family, tool, tmp_path):
    onnxruntime = pytest.importorskip('onnxruntime')
    out = tmp_path / 'new' / 'model.onnx'
    done = tool(TOOL, CONFIGS[task].replace('hcnet', family), '--out', out, '--shape', 64, 96)
    found = [float(x) for x in re.findall(r'max difference (\S+),', done.stdout)]
    assert len(found) == (4 if family == 'hcnet' else 2)
    assert max(found) < 1e-4
    assert 'RGB image, minus [127.5, 127.5, 127.5], divided by [60.0, 60.0, 60.0]' in done.stdout
    if task == 'detection':
        assert "the detector's backbone and neck" in done.stdout
    assert [path.name for path in out.parent.iterdir()] == ['model.onnx']
    session = onnxruntime.InferenceSession(str(out), providers=['CPUExecutionProvider'])
    session.run(None, {'image': np.zeros((2, 3, 64, 96), np.float32)})
    other = {'image': np.zeros((1, 3, 70, 101), np.float32)}
    if family == 'hcnet':
        session.run(None, other)
    else:
        with pytest.raises(Exception, match='Got invalid dimensions'):
            session.run(None, other)


def test_checkpoint_of_another_model(tool, tmp_path):
    pytest.importorskip('onnxruntime')
    torch.save(dict(state_dict={'backbone.conv1.weight': torch.zeros(1)}), tmp_path / 'a.pth')
    line = the_line(
        tool(
            TOOL,
            CONFIGS['classification'],
            tmp_path / 'a.pth',
            '--out',
            tmp_path / 'a.onnx',
            fails=True,
        )
    )
    assert 'is a checkpoint of another model' in line
    assert not (tmp_path / 'a.onnx').exists()


@pytest.mark.skipif(importlib.util.find_spec('onnx') is not None, reason='onnx is installed')
def test_without_onnx(tool, tmp_path):
    line = the_line(tool(TOOL, CONFIGS['classification'], '--out', tmp_path / 'a.onnx', fails=True))
    assert line.endswith(': pip install onnx onnxruntime')


@pytest.mark.parametrize(
    'args, message',
    [
        ((), 'the following arguments are required: --out'),
        (('--out', 'FOLDER'), "--out is a file to write, and '.*' is a folder"),
        (('--out', 'a.onnx', '--shape', '0'), '--shape takes pixels, got 0'),
        (('--out', 'a.onnx', '--shape', '64', '-1'), '--shape takes pixels, got -1'),
        (('--out', 'a.onnx', '--shape', '1', '2', '3'), '--shape takes H and W'),
        (('--out', 'a.onnx', '--shape', 'big'), "--shape: invalid int value: 'big'"),
        (('--out', 'a.onnx', '--opset', '3'), '--opset: invalid choice: 3 .choose from '),
        (('--out', 'a.onnx', '--opset', 'x'), "--opset: invalid int value: 'x'"),
    ],
)
def test_wrong_options(args, message, tmp_path, monkeypatch, capsys):
    args = [str(tmp_path) if arg == 'FOLDER' else arg for arg in args]
    monkeypatch.setattr(sys, 'argv', ['export_onnx.py', CONFIGS['classification'], *args])
    with pytest.raises(SystemExit) as end:
        load_script(ROOT / 'tools' / TOOL).main()
    assert end.value.code == 2
    assert re.search(message, capsys.readouterr().err.splitlines()[-1])
