"""Wrong commands: each ends with one line that says how to fix it and an exit code other than 0."""

import os
import sys
from collections import OrderedDict

import pytest
import torch
from mmengine.logging import MMLogger

from ..conftest import load_script
from .conftest import CONFIGS, ROOT

CLS, DET, SEG = CONFIGS['classification'], CONFIGS['detection'], CONFIGS['segmentation']
TASKS = {path: task for task, path in CONFIGS.items()}

# What comes after the config; the part of the line that says how to fix it. Options of the small
# data set are added where the first word is not NO.
TRAIN = {
    # the command
    'no equals sign': (
        CLS,
        ['--cfg-options', 'model.backbone.arch'],
        "takes KEY=VALUE, got 'model.backbone.arch'",
    ),
    'no key': (CLS, ['--cfg-options', '=3'], "takes KEY=VALUE, got '=3'"),
    'no value': (CLS, ['--cfg-options'], 'expected at least one argument'),
    'bracket': (CLS, ['+', 'model.backbone.out_indices=(0,1'], 'Imbalanced brackets'),
    'unknown flag': (CLS, ['--batch-size', '4'], 'unrecognized arguments: --batch-size 4'),
    'launcher': (CLS, ['--launcher', 'torchrun'], "invalid choice: 'torchrun'"),
    'empty resume': (CLS, ['--resume', ''], '--resume has an empty path'),
    'empty pretrained': (CLS, ['--pretrained', ''], '--pretrained has an empty path'),
    'trial and resume': (CLS, ['--trial', '3', '--resume'], '--trial starts from scratch'),
    'trial of text': (CLS, ['--trial', 'three'], "invalid int value: 'three'"),
    'trial of nothing': (CLS, ['--trial', '0'], 'at least 1 iteration'),
    'amp on a CPU': (CLS, ['--amp'], '--amp needs a GPU'),
    'no base batch size': (CLS, ['--auto-scale-lr'], 'base_batch_size'),
    # the config
    'missing config': ('configs/nowhere.py', ['NO'], "no config file 'configs/nowhere.py'"),
    'folder as config': ('configs', ['NO'], "no config file 'configs'"),
    'syntax error': ('model = dict(\n', ['NO'], "'(' was never closed"),
    'unknown name': ('model = dict(a=b)', ['NO'], "name 'b' is not defined"),
    'missing base': ("_base_ = './no_base.py'", ['NO'], 'no_base.py'),
    'not a config': ('{"model":', ['NO', 'json'], 'cannot read the config'),
    'line of a syntax error': ('a = 1\nmodel = dict(\n', ['NO'], 'config.py:2: cannot read'),
    'line of an unknown name': ('a = 1\nmodel = dict(\n  a=b)', ['NO'], 'config.py:3: cannot read'),
    'no train_cfg': ('model = dict(type="X")', ['NO'], 'the config has no train_cfg'),
    'no length': (
        'train_cfg = dict(type="mmhcnet.EpochTrainLoop")',
        ['NO'],
        'train_cfg needs max_epochs or max_iters',
    ),
    # keys
    'top key': (
        CLS,
        ['+', 'modle.backbone.arch=tiny'],
        "no key 'modle' for the option 'modle.backbone.arch'; did you mean 'model'?",
    ),
    'top key, far': (CLS, ['+', 'zzz=1'], "the config has no key 'zzz'"),
    'text for a dict': (
        CLS,
        ['+', 'train_cfg=x'],
        "train_cfg is a dict, and is set to 'x': set "
        'one of its keys, as in train_cfg.max_epochs=VALUE',
    ),
    'argument of the backbone': (
        CLS,
        ['+', 'model.backbone.archh=tiny'],
        "has no argument 'archh'; did you mean 'arch'?",
    ),
    'argument of the optimizer': (
        CLS,
        ['+', 'optim_wrapper.optimizer.lrr=1'],
        "AdamW has no argument 'lrr'; did you mean 'lr'?",
    ),
    'argument of the loader': (
        CLS,
        ['+', 'train_dataloader.batchsize=4'],
        "no argument 'batchsize'; did you mean 'batch_size'?",
    ),
    'argument of the loop': (
        CLS,
        ['+', 'train_cfg.max_epoch=4'],
        "has no argument 'max_epoch'; did you mean 'max_epochs'?",
    ),
    'argument of the checkpoint hook': (
        CLS,
        ['+', 'default_hooks.checkpoint.max_keep_ckpt=1'],
        "no argument 'max_keep_ckpt'",
    ),
    'argument of the finite hook': (
        CLS,
        ['+', 'default_hooks.finite.max_in_row=1'],
        "did you mean 'max_in_a_row'?",
    ),
    'argument of a scheduler': (CLS, ['+', 'param_scheduler.0.start=1'], "has no argument 'start'"),
    'index of a list': (
        CLS,
        ['+', 'param_scheduler.9.end=1'],
        "the option 'param_scheduler.9.end' does not fit the config: Index 9",
    ),
    # types
    'type of the backbone': (
        CLS,
        ['+', 'model.backbone.type=mmhcnet.HcNett'],
        "of type 'mmhcnet.HcNett'",
    ),
    'type of the optimizer': (
        CLS,
        ['+', 'optim_wrapper.optimizer.type=AdamWW'],
        "did you mean 'AdamW'?",
    ),
    'type of the data set': (
        CLS,
        ['+', 'train_dataloader.dataset.type=CustomDatase'],
        "did you mean 'CustomDataset'?",
    ),
    'type of a transform': (
        CLS,
        ['+', 'train_dataloader.dataset.pipeline.0.type=LoadImage'],
        "of type 'LoadImage'",
    ),
    'type of the loop': (CLS, ['+', 'train_cfg.type=EpochLoop'], "of type 'EpochLoop'"),
    'type of a hook': (
        CLS,
        ['+', 'default_hooks.timer.type=IterTimer'],
        "did you mean 'IterTimerHook'?",
    ),
    # values
    'arch': (CLS, ['+', 'model.backbone.arch=huge'], "['tiny', 'small', 'base']"),
    'text for a number': (
        CLS,
        ['+', 'train_cfg.max_epochs=many'],
        "train_cfg.max_epochs must be a whole number from 1 up, got 'many'",
    ),
    'loader of a number': (CLS, ['+', 'train_dataloader.num_workers=-1'], 'num_workers'),
    'batch of nothing': (CLS, ['+', 'train_dataloader.batch_size=0'], 'batch_size'),
    'channels of the head': (CLS, ['+', 'model.head.in_channels=7'], 'shapes cannot be multiplied'),
    'classes of the head': (CLS, ['+', 'model.head.num_classes=3'], 'set model.head.num_classes'),
    'signal': (CLS, ['+', "default_hooks.preemption.signals=['SIGFOO']"], 'SIGFOO'),
    # data
    'data root': (
        CLS,
        ['+', 'train_dataloader.dataset.data_root=nowhere'],
        "the data path 'nowhere' does not exist. Prepare it",
    ),
    'annotations': (DET, ['+', 'train_dataloader.dataset.ann_file=none.json'], 'none.json'),
    'folder of images': (
        SEG,
        ['+', 'train_dataloader.dataset.data_prefix.img_path=none'],
        'data_prefix.img_path',
    ),
    'annotations that are none': (
        DET,
        ['+', 'train_dataloader.dataset.ann_file=BROKEN'],
        'annotation file is not complete JSON',
    ),
    'no images': (
        CLS,
        ['+', 'train_dataloader.dataset.data_root=EMPTY', 'train_dataloader.dataset.data_prefix='],
        'EMPTY',
    ),
    # places
    'work directory below a file': (CLS, ['--work-dir', 'FILE/run'], 'Not a directory'),
    # checkpoints
    'no checkpoint': (CLS, ['--resume', 'none.pth'], "cannot resume from 'none.pth': "),
    'damaged checkpoint': (CLS, ['--resume', 'TEXT'], 'is not an intact checkpoint'),
    'weights alone': (CLS, ['--resume', 'WEIGHTS'], 'holds weights only'),
    'another model': (CLS, ['--resume', 'OTHER'], 'it is of another model'),
    'nothing that fits': (CLS, ['+', 'load_from=WEIGHTS'], 'no weight of the model is in'),
    'hostile checkpoint': (CLS, ['+', 'load_from=HOSTILE'], 'add --trust-checkpoint'),
    'no pretrained': (CLS, ['--pretrained', 'none.pth'], "no checkpoint file 'none.pth'"),
    'pretrained that is none': (CLS, ['--pretrained', 'TEXT'], 'is not a checkpoint'),
    'pretrained that fits nothing': (CLS, ['--pretrained', 'WEIGHTS'], 'fits the backbone'),
    'safetensors that are none': (CLS, ['--pretrained', 'none.safetensors'], 'safetensors'),
    'only damaged ones': (CLS, ['--resume', '--work-dir', 'DAMAGED'], 'Move them away'),
}
TEST = {
    'no checkpoint': (CLS, ['none.pth'], "no checkpoint file 'none.pth'"),
    'no argument': (CLS, [], 'the following arguments are required: checkpoint'),
    'folder': (CLS, ['EMPTY'], "no checkpoint file"),
    'text': (CLS, ['TEXT'], 'is not a checkpoint that torch can read'),
    'hostile': (CLS, ['HOSTILE'], 'add --trust-checkpoint'),
    'nothing that fits': (CLS, ['WEIGHTS'], 'Give the config that it was trained with'),
    'out': (CLS, ['TEXT', '--out', 'a.txt'], '--out must end in .pkl'),
    'tta': (DET, ['TEXT', '--tta'], '--tta needs tta_model'),
    'show': (
        CLS,
        ['TEXT', '--show', '+', 'default_hooks.visualization=None'],
        'default_hooks.visualization',
    ),
    'top key': (CLS, ['TEXT', '+', 'modle.a=1'], "did you mean 'model'?"),
    'config': ('nowhere.py', ['NO', 'TEXT'], "no config file 'nowhere.py'"),
    'data root': (
        CLS,
        ['TEXT', '+', 'test_dataloader.dataset.data_root=nowhere'],
        'does not exist. Prepare it',
    ),
    'interval': (CLS, ['TEXT', '--interval', 'x'], "invalid int value: 'x'"),
    'interval of nothing': (CLS, ['TEXT', '--interval', '0'], 'must be at least 1, got 0'),
    'metric': (CLS, ['TEXT', '+', 'test_evaluator.type=Accurac'], "did you mean 'Accuracy'?"),
}


class Hostile:
    def __reduce__(self):
        return os.mkdir, ('never-made',)


@pytest.fixture(scope='module')
def places(tmp_path_factory):
    """What the capital words of the table stand for."""
    root = tmp_path_factory.mktemp('places')
    found = {
        word: root / f'{word.lower()}{suffix}'
        for word, suffix in (
            ('TEXT', '.pth'),
            ('WEIGHTS', '.pth'),
            ('OTHER', '.pth'),
            ('HOSTILE', '.pth'),
            ('FILE', ''),
            ('EMPTY', ''),
            ('BROKEN', '.json'),
            ('DAMAGED', ''),
        )
    }
    found['TEXT'].write_text('<html>')
    found['FILE'].write_text('')
    found['BROKEN'].write_text('{')
    found['EMPTY'].mkdir()
    found['DAMAGED'].mkdir()
    (found['DAMAGED'] / 'epoch_1.pth').write_text('?')
    weights = {'conv1.weight': torch.zeros(1)}
    torch.save(dict(state_dict=weights), found['WEIGHTS'])
    hub = dict(log_scalars={}, runtime_info={}, resumed_keys={})
    torch.save(
        dict(state_dict=weights, meta=dict(epoch=1, iter=1), message_hub=hub), found['OTHER']
    )
    torch.save(dict(state_dict=weights, x=Hostile()), found['HOSTILE'])
    return found


@pytest.fixture
def failed(tmp_path, small, places, monkeypatch, capsys):
    """Run main() of a tool in this process; returns the line that it ended with."""

    def run(script, config, words):
        if '\n' in config or '=' in config or config.startswith('{'):
            suffix = 'json' if 'json' in words else 'py'
            (tmp_path / f'config.{suffix}').write_text(config)
            config, words = tmp_path / f'config.{suffix}', [w for w in words if w != 'json']
        command = [str(config)]
        options = small(TASKS[config]) if words[:1] != ['NO'] else ['--cfg-options']
        words = [word for word in words if word != 'NO']
        for word in words:
            for name, path in places.items():
                word = word.replace(name, str(path))
            command.append(word)
        if '+' in command:
            at = command.index('+')
            command[at:] = [*options, *command[at + 1 :]]
        elif '--cfg-options' not in command and len(options) > 1:
            command += options
        if '--work-dir' not in command:
            command[1:1] = ['--work-dir', str(tmp_path / 'run')]
            if script == 'test.py' and len(command) > 3 and command[0] == str(config):
                # The checkpoint stands right after the config.
                command = [command[0], *command[3:], *command[1:3]]
        module = load_script(ROOT / 'tools' / script)
        # The logger of an earlier case writes to a stream that pytest has closed.
        monkeypatch.setattr(MMLogger, '_instance_dict', OrderedDict())
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr('tempfile.tempdir', str(tmp_path))
        monkeypatch.setattr(sys, 'argv', [script, *command])
        with pytest.raises(SystemExit) as caught:
            module.main()
        code = caught.value.code
        assert code not in (0, None)
        # argparse prints its own line and exits with 2.
        line = code if isinstance(code, str) else capsys.readouterr().err.strip().splitlines()[-1]
        assert '\n' not in line and 'Traceback' not in line
        assert isinstance(code, int) or line.startswith('Error: ')
        return line

    return run


@pytest.mark.skipif(torch.cuda.is_available(), reason='some of the commands are right with a GPU')
@pytest.mark.parametrize(
    'script, name', [*(('train.py', name) for name in TRAIN), *(('test.py', name) for name in TEST)]
)
def test_wrong_command(script, name, failed, places):
    config, words, cure = (TRAIN if script == 'train.py' else TEST)[name]
    if 'safetensors' in name:
        pytest.importorskip('safetensors')
    for word, path in places.items():
        cure = cure.replace(word, str(path))
    assert cure in failed(script, config, words)
    assert not os.path.exists(ROOT / 'never-made')


def test_without_the_data_check(failed):
    line = failed(
        'train.py', CLS, ['--no-data-check', '+', 'train_dataloader.dataset.data_root=nowhere']
    )
    assert 'nowhere' in line and 'Prepare it' not in line


def test_the_line_of_the_own_config(failed, tmp_path):
    own = tmp_path / 'own.py'
    own.write_text(
        f"_base_ = '{ROOT / CLS}'\nmodel = dict(\n    backbone=dict(stencill='isotropic'))\n"
    )
    line = failed('train.py', str(own), ['NO', '--no-data-check'])
    assert f'{own}:3: HcNet has no argument' in line and line.count('(the traceback is in ') == 1
