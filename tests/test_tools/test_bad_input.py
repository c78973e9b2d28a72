"""A mistake of the user ends a tool with one line that says how to fix it, before any training."""

import importlib.util
import os
import re

import pytest
import torch

from .conftest import CONFIGS, ROOT

PAPER = 'configs/detection/mask_rcnn_hcnet_t_1x.py'


def the_line(done):
    """The last line on standard error, which must be the only one after the logs."""
    assert 'Traceback' not in done.stderr, done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith('Error: ')
    return line


def test_missing_config(tool):
    line = the_line(tool('train.py', 'configs/detection/mask_rcnn_hcnet_x.py', fails=True))
    assert "no config file 'configs/detection/mask_rcnn_hcnet_x.py'" in line


@pytest.mark.parametrize('script, args', [('train.py', ()), ('test.py', ('a.pth',))])
def test_missing_data(tool, tmp_path, script, args):
    if args:
        torch.save({}, tmp_path / 'a.pth')
        args = (tmp_path / 'a.pth',)
    line = the_line(
        tool(
            script,
            PAPER,
            *args,
            '--work-dir',
            tmp_path / 'run',
            '--cfg-options',
            'train_dataloader.dataset.data_root=nowhere/coco',
            'test_dataloader.dataset.data_root=nowhere/coco',
            fails=True,
        )
    )
    assert "'nowhere/coco' does not exist" in line
    assert 'docs/data.md' in line
    assert f'--cfg-options {script[:-3]}_dataloader.dataset.data_root=' in line
    assert not (tmp_path / 'run').exists()


def test_missing_digits_name_the_command(tool, tmp_path):
    line = the_line(
        tool(
            'train.py',
            CONFIGS['classification'],
            '--cfg-options',
            f'train_dataloader.dataset.data_root={tmp_path}/none',
            fails=True,
        )
    )
    assert 'tools/dataset_converters/make_digits.py' in line


@pytest.mark.parametrize(
    'file, error',
    [
        ('mmdet/__init__.py', 'AssertionError("MMCV==2.2.0 is used but incompatible.")'),
        ('mmdet/models/__init__.py', 'ImportError("_ext.so: undefined symbol: _ZN2at")'),
    ],
)
def test_package_that_cannot_be_imported(tool, small, tmp_path, file, error):
    for path in ('mmdet/__init__.py', 'mmdet/models/__init__.py', file):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(f'raise {error}' if path == file else '')
    line = the_line(
        tool(
            'train.py',
            CONFIGS['detection'],
            '--work-dir',
            tmp_path / 'run',
            *small('detection'),
            fails=True,
            fresh=True,
            PYTHONPATH=f'{tmp_path}{os.pathsep}{ROOT}',
        )
    )
    assert re.search(r'"(.*)"', error)[1] in line and 'import mmdet.models fails' in line
    assert '"python -m mmhcnet.doctor"' in line


@pytest.mark.parametrize(
    'option, message',
    [
        ('model.backbone.arch=tinny', "arch must be one of ['tiny', 'small', 'base']"),
        ('model.backbone.stencil=round', "stencil must be one of ('anisotropic', 'isotropic')"),
        ('model.backbone.k=auto', "k must be one of ('input_dependent', 'learnable')"),
        ('model.backbone.out_indices=(0,4)', 'ascending stage numbers from 0 to 3'),
        (
            'model.backbone.stencill=isotropic',
            "HcNet has no argument 'stencill'; did you mean 'stencil'? It takes: arch, ",
        ),
    ],
)
def test_wrong_settings_of_the_backbone(tool, small, tmp_path, option, message):
    line = the_line(
        tool(
            'train.py',
            CONFIGS['segmentation'],
            '--work-dir',
            tmp_path,
            *small('segmentation'),
            option,
            fails=True,
        )
    )
    assert message in line


def test_checkpoint_that_matches_nothing(tool, small, tmp_path):
    torch.save(
        dict(state_dict={'backbone.layer1.0.conv1.weight': torch.zeros(1)}), tmp_path / 'resnet.pth'
    )
    line = the_line(
        tool(
            'train.py',
            CONFIGS['classification'],
            '--work-dir',
            tmp_path / 'run',
            '--pretrained',
            tmp_path / 'resnet.pth',
            *small('classification'),
            fails=True,
        )
    )
    assert 'fits the backbone mmhcnet.HcNet' in line
    assert 'backbone.layer1.0.conv1.weight' in line
    assert 'official_to_mmhcnet.py' in line


@pytest.mark.parametrize(
    'script, args, message',
    [
        ('train.py', ('--pretrained', 'none.pth'), 'none.pth'),
        ('test.py', ('none.pth',), "no checkpoint file 'none.pth'"),
    ],
)
def test_missing_checkpoint(tool, small, tmp_path, script, args, message):
    line = the_line(
        tool(
            script,
            CONFIGS['classification'],
            *args,
            '--work-dir',
            tmp_path,
            *small('classification'),
            fails=True,
        )
    )
    assert message in line


def test_wrong_out(tool, small, tmp_path):
    torch.save({}, tmp_path / 'a.pth')
    line = the_line(
        tool(
            'test.py',
            CONFIGS['classification'],
            tmp_path / 'a.pth',
            '--out',
            'a.txt',
            *small('classification'),
            fails=True,
        )
    )
    assert '--out must end in .pkl' in line


def test_tta_without_a_setting(tool, small, tmp_path):
    torch.save({}, tmp_path / 'a.pth')
    line = the_line(
        tool(
            'test.py',
            CONFIGS['detection'],
            tmp_path / 'a.pth',
            '--tta',
            *small('detection'),
            fails=True,
        )
    )
    assert '--tta needs tta_model' in line


def test_auto_scale_lr_without_a_base(tool, small):
    line = the_line(
        tool(
            'train.py',
            CONFIGS['classification'],
            '--auto-scale-lr',
            *small('classification'),
            fails=True,
        )
    )
    assert 'base_batch_size' in line


def test_trial_of_no_iterations(tool, small):
    line = the_line(
        tool(
            'train.py',
            CONFIGS['classification'],
            '--trial',
            0,
            *small('classification'),
            fails=True,
        )
    )
    assert 'at least 1 iteration' in line


@pytest.mark.skipif(
    importlib.util.find_spec('tensorboard') is not None, reason='tensorboard is installed'
)
def test_tensorboard_is_not_installed(tool, small):
    line = the_line(
        tool(
            'train.py',
            CONFIGS['classification'],
            '--tensorboard',
            *small('classification'),
            fails=True,
        )
    )
    assert 'this needs tensorboard: pip install tensorboard (the traceback is in ' in line


@pytest.mark.skipif(torch.cuda.is_available(), reason='needs a machine without a GPU')
def test_amp_without_a_gpu(tool, small):
    line = the_line(
        tool('train.py', CONFIGS['classification'], '--amp', *small('classification'), fails=True)
    )
    assert '--amp needs a GPU' in line


@pytest.mark.parametrize(
    'state, message',
    [
        ({'conv1.weight': torch.zeros(1)}, "not a state dict of the authors' HcNet"),
        (None, 'no checkpoint file'),
    ],
)
def test_converter(tool, tmp_path, state, message):
    if state:
        torch.save(state, tmp_path / 'src.pth')
    line = the_line(
        tool(
            'model_converters/official_to_mmhcnet.py',
            tmp_path / 'src.pth',
            tmp_path / 'dst.pth',
            fails=True,
        )
    )
    assert message in line
    assert not (tmp_path / 'dst.pth').exists()


def test_converter_without_a_moving_average(tool, tmp_path):
    torch.save(dict(model={'freq_embed.0': torch.zeros(1)}), tmp_path / 'src.pth')
    line = the_line(
        tool(
            'model_converters/official_to_mmhcnet.py',
            tmp_path / 'src.pth',
            tmp_path / 'dst.pth',
            '--ema',
            fails=True,
        )
    )
    assert "no averaged weights: the checkpoint has no 'model_ema'" in line
    assert not (tmp_path / 'dst.pth').exists()


def test_converter_does_not_overwrite(tool, tmp_path):
    (tmp_path / 'dst.pth').write_text('precious')
    line = the_line(
        tool(
            'model_converters/official_to_mmhcnet.py',
            tmp_path / 'src.pth',
            tmp_path / 'dst.pth',
            fails=True,
        )
    )
    assert 'exists: remove it or choose another name' in line
    assert (tmp_path / 'dst.pth').read_text() == 'precious'


@pytest.mark.parametrize(
    'script', ['dist_train.sh', 'dist_test.sh', 'slurm_train.sh', 'slurm_test.sh']
)
def test_launchers_say_how_to_call_them(tool, script):
    assert 'usage:' in tool(script, 'config.py', fails=True).stderr


@pytest.mark.parametrize(
    'script, args',
    [
        ('slurm_train.sh', ('part', 'job', 'c.py', 'dir', '--amp')),
        ('slurm_test.sh', ('part', 'job', 'c.py', 'ckpt', '--tta')),
    ],
)
def test_slurm_command(tool, tmp_path, script, args):
    # srun is not here: a stand-in that prints its arguments.
    (tmp_path / 'srun').write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / 'srun').chmod(0o755)
    command = tool(
        script,
        *args,
        PATH=f'{tmp_path}:{os.environ["PATH"]}',
        GPUS='16',
        SRUN_ARGS='--quotatype=reserved',
    ).stdout
    for part in (
        '-p part',
        '--job-name=job',
        '--ntasks=16',
        '--ntasks-per-node=8',
        '--gres=gpu:8',
        '--quotatype=reserved',
        '--launcher slurm',
        args[-1],
    ):
        assert part in command
    wanted = 'train.py c.py --work-dir dir' if 'train' in script else 'test.py c.py ckpt'
    assert wanted in command
