import json
import pickle
import re
import socket

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from .conftest import CONFIGS, ROOT


def free_port():
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return str(probe.getsockname()[1])


def losses(output):
    return [float(x) for x in re.findall(r'\(train\).*? loss: ([\d.]+)', output)]


@pytest.mark.slow
@pytest.mark.parametrize('task', CONFIGS)
def test_train_resume_and_test(task, tool, small, tmp_path):
    work_dir = tmp_path / 'run'
    done = tool('train.py', CONFIGS[task], '--work-dir', work_dir, *small(task))
    assert 'is scaled to the run of 2' in done.stdout
    assert losses(done.stdout)
    assert re.search(r'\(val\) .*(top1|mAP|mIoU)', done.stdout)
    checkpoint = (work_dir / 'last_checkpoint').read_text()

    # Longer, from where it stopped.
    length = 'train_cfg.max_iters' if task == 'segmentation' else 'train_cfg.max_epochs'
    resumed = tool(
        'train.py',
        CONFIGS[task],
        '--work-dir',
        work_dir,
        '--resume',
        '--no-validate',
        *small(task, **{length: 3}),
    )
    assert 'resumed epoch: 2' in resumed.stdout or 'iter: 2' in resumed.stdout
    assert '(val)' not in resumed.stdout
    assert (work_dir / 'last_checkpoint').read_text() != checkpoint

    out = tmp_path / ('maps' if task == 'segmentation' else 'predictions.pkl')
    tested = tool(
        'test.py',
        CONFIGS[task],
        checkpoint,
        '--work-dir',
        tmp_path / 'test',
        '--out',
        out,
        '--show-dir',
        tmp_path / 'shown',
        '--interval',
        3,
        *small(task),
    )
    assert re.search(r'\(test\) .*(top1|mAP|mIoU)', tested.stdout)
    (metrics,) = (json.loads(p.read_text()) for p in (tmp_path / 'test').glob('*/*.json'))
    assert all(np.isfinite(v) for v in metrics.values())
    if task == 'segmentation':
        maps = sorted(out.glob('*.png'))
        assert len(maps) == 4
        assert np.asarray(Image.open(maps[0])).shape == (128, 128)
    else:
        assert len(pickle.loads(out.read_bytes())) == (20 if task == 'classification' else 4)
    pictures = [*tmp_path.glob('shown/**/*.png'), *tmp_path.glob('test/**/shown/**/*.png')]
    assert len(pictures) == (7 if task == 'classification' else 2)


@pytest.mark.slow
@pytest.mark.parametrize('task', CONFIGS)
def test_trial(task, tool, small, tmp_path):
    work_dir = tmp_path / 'run'
    work_dir.mkdir()
    (work_dir / 'last_checkpoint').write_text('of a real run')
    done = tool(
        'train.py', CONFIGS[task], '--work-dir', work_dir, '--trial', 3, *small(task), fresh=True
    )
    report = done.stdout[done.stdout.index('Trial of') :]
    for word in (
        'loss ',
        'read back',
        'peak memory',
        's per iteration',
        f'ran on all {20 if task == "classification" else 4} images (',
        'the whole run of 2',
    ):
        assert word in report
    assert (work_dir / 'last_checkpoint').read_text() == 'of a real run'
    assert (work_dir / 'trial' / 'iter_3.pth').is_file()


@pytest.mark.slow
def test_pretrained_backbone(tool, small, tmp_path):
    tool(
        'train.py',
        CONFIGS['classification'],
        '--work-dir',
        tmp_path / 'cls',
        '--no-validate',
        *small('classification'),
    )
    checkpoint = (tmp_path / 'cls' / 'last_checkpoint').read_text()
    # Learning rate 0: what is saved is what was loaded.
    done = tool(
        'train.py',
        CONFIGS['segmentation'],
        '--work-dir',
        tmp_path / 'seg',
        '--no-validate',
        '--pretrained',
        checkpoint,
        *small('segmentation', **{'optim_wrapper.optimizer.lr': 0}),
    )
    found = re.search(
        r'--pretrained .*: (\d+) of (\d+) weights of the backbone matched', done.stdout
    )
    # A classifier has the norm of its last stage only.
    assert int(found[2]) - int(found[1]) == 6
    assert re.search(r'6 stay at their initial values: norm0.weight', done.stdout)
    # What is said before there is a runner is in its log file.
    log = next((tmp_path / 'seg').glob('*/*.log')).read_text()
    assert found[0] in log and 'The learning-rate schedule' in log
    before = torch.load(checkpoint, weights_only=False)['state_dict']
    after = torch.load((tmp_path / 'seg' / 'last_checkpoint').read_text(), weights_only=False)[
        'state_dict'
    ]
    shared = [key for key in before if key.startswith('backbone.')]
    assert shared and all(torch.equal(before[key], after[key]) for key in shared)


@pytest.mark.slow
@pytest.mark.parametrize('task', CONFIGS)
def test_two_gloo_ranks(task, tool, small, tmp_path):
    ranks = dict(ranks=2, CUDA_VISIBLE_DEVICES='')
    done = tool('train.py', CONFIGS[task], '--work-dir', tmp_path, *small(task), **ranks)
    assert losses(done.stdout)
    checkpoint = (tmp_path / 'last_checkpoint').read_text()
    words, options = [CONFIGS[task], checkpoint], ['--work-dir', tmp_path / 'test', *small(task)]
    if task == 'classification':
        # As a user starts them: torchrun and both ranks import everything. So does dist_train.sh
        # in test_survival.py.
        start = dict(PORT=free_port(), CUDA_VISIBLE_DEVICES='')
        tested = tool('dist_test.sh', *words, 2, *options, **start)
    else:
        tested = tool('test.py', *words, *options, **ranks)
    single = tool(
        'test.py', CONFIGS[task], checkpoint, '--work-dir', tmp_path / 'single', *small(task)
    )

    def metrics(output):
        line = re.findall(r'\(test\) .*', output)[-1]
        return re.findall(r'(\S*(?:top1|mAP|mIoU)\S*): +([\d.-]+)', line)

    # Every sample is counted once, however many ranks there are.
    assert metrics(tested.stdout) == metrics(single.stdout) != []


@pytest.mark.slow
def test_flexible_runner(tool, small, tmp_path):
    """mmengine's runner for strategies, FSDP among them, with our loops and data."""
    cfg = Config.fromfile(ROOT / CONFIGS['classification'])
    cfg.runner_type, cfg.strategy = 'FlexibleRunner', dict(type='SingleDeviceStrategy')
    cfg.dump(tmp_path / 'config.py')
    done = tool(
        'train.py', tmp_path / 'config.py', '--work-dir', tmp_path / 'run', *small('classification')
    )
    assert losses(done.stdout) and re.search(r'\(val\) .*top1', done.stdout)
    assert (tmp_path / 'run/epoch_2.pth').is_file()


@pytest.mark.slow
@pytest.mark.parametrize('task', ['classification', 'segmentation'])
def test_tta(task, tool, small, tmp_path):
    paper = dict(
        classification='configs/classification/hcnet_t_in1k.py',
        segmentation='configs/segmentation/upernet_hcnet_t_160k_ade20k.py',
    )[task]
    # The digits config has no test-time augmentation, so take the paper's on digits.
    demo, cfg = Config.fromfile(ROOT / CONFIGS[task]), Config.fromfile(ROOT / paper)
    demo.tta_model, demo.tta_pipeline = cfg.tta_model, cfg.tta_pipeline
    demo.dump(tmp_path / 'config.py')
    tool(
        'train.py',
        tmp_path / 'config.py',
        '--work-dir',
        tmp_path / 'run',
        '--no-validate',
        *small(task),
    )
    checkpoint = (tmp_path / 'run' / 'last_checkpoint').read_text()
    done = tool(
        'test.py',
        tmp_path / 'config.py',
        checkpoint,
        '--tta',
        '--work-dir',
        tmp_path / 'test',
        *small(task),
    )
    assert re.search(r'\(test\) .*(top1|mIoU)', done.stdout)


@pytest.mark.slow
def test_converted_checkpoint_starts_a_training(tool, small, tmp_path):
    from ..test_models.test_convert import official_state_dict

    arch = [32, 64, 96, 128], [1, 1, 2, 1]
    torch.save(dict(model=official_state_dict(*arch)), tmp_path / 'official.pth')
    tool(
        'model_converters/official_to_mmhcnet.py', tmp_path / 'official.pth', tmp_path / 'ours.pth'
    )
    done = tool(
        'train.py',
        CONFIGS['classification'],
        '--work-dir',
        tmp_path / 'run',
        '--no-validate',
        '--pretrained',
        tmp_path / 'ours.pth',
        *small('classification', **{'model.backbone.stencil': 'isotropic'}),
    )
    matched = re.search(r'(\d+) of (\d+) weights of the backbone matched', done.stdout)
    assert matched[1] == matched[2]


@pytest.mark.slow
@pytest.mark.parametrize('ema', [False, True])
def test_converted_vheat_starts_a_training_at_another_size(tool, small, tmp_path, ema):
    from ..test_models.test_convert import official_vheat

    states = [official_vheat([32, 64, 96, 128], [1, 1, 2, 1]) for _ in range(2)]
    torch.save(dict(model=states[0], model_ema=states[1]), tmp_path / 'official.pth')
    tool(
        'model_converters/official_to_mmhcnet.py',
        tmp_path / 'official.pth',
        tmp_path / 'ours.pth',
        *(['--ema'] if ema else []),
    )
    weights = torch.load(tmp_path / 'ours.pth')['state_dict']
    assert torch.equal(weights['backbone.freq_embed.0'], states[ema]['freq_embed.0'])
    done = tool(
        'train.py',
        'configs/classification/vheat_digits.py',
        '--work-dir',
        tmp_path / 'run',
        '--no-validate',
        '--pretrained',
        tmp_path / 'ours.pth',
        *small('classification'),
    )
    matched = re.search(r'(\d+) of (\d+) weights of the backbone matched', done.stdout)
    assert matched[1] == matched[2]
    assert 'freq_embed.0: resized from 56x56 of the checkpoint to the 12x12' in done.stdout


def test_print_config(tool):
    done = tool(
        'misc/print_config.py', CONFIGS['detection'], '--cfg-options', 'train_cfg.max_epochs=5'
    )
    assert "type='mmhcnet.HcNet'" in done.stdout
    assert 'end=5' in done.stdout


@pytest.mark.parametrize(
    'config, shape, expected',
    [
        # 4.15 G with the isotropic stencil; the anisotropic one adds 9 per pixel and channel.
        ('classification/hcnet_t_in1k.py', '224x224', '28.42 M'),
        ('detection/mask_rcnn_hcnet_digits.py', '800x1280', 'box head on 1000 proposals'),
        ('segmentation/upernet_hcnet_digits.py', '512x2048', 'whole model'),
    ],
)
def test_get_flops(tool, config, shape, expected):
    done = tool(
        'analysis_tools/get_flops.py',
        f'configs/{config}',
        '--cfg-options',
        'model.backbone.stencil=isotropic',
    )
    assert shape in done.stdout and expected in done.stdout
    if 'in1k' in config:
        assert done.stdout.count('4.15 G MACs') == 2
    done = tool('analysis_tools/get_flops.py', f'configs/{config}', '--shape', 64, 96)
    assert '64x96' in done.stdout


@pytest.mark.slow
def test_tensorboard(tool, small, tmp_path):
    pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    done = tool(
        'train.py',
        CONFIGS['classification'],
        '--work-dir',
        tmp_path,
        '--no-validate',
        '--tensorboard',
        *small('classification'),
    )
    (events,) = tmp_path.glob('*/vis_data/events.out.tfevents.*')
    logged = EventAccumulator(str(events)).Reload().Scalars('loss')
    assert [round(point.value, 4) for point in logged] == losses(done.stdout)
    assert list(tmp_path.glob('*/vis_data/*.json'))
