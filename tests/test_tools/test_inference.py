"""The inferencers of mmpretrain, mmdet and mmseg with our configs, and demo/image_demo.py."""

import sys

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from PIL import Image

from ..conftest import load_script
from .conftest import CONFIGS, ROOT

DIGITS = tuple('0123456789')
META = dict(
    classification=dict(classes=DIGITS),
    detection=dict(classes=DIGITS),
    segmentation=dict(classes=('background', *DIGITS), palette=[[d, d, d] for d in range(11)]),
)


@pytest.fixture(scope='session')
def scene(digits):
    """A picture of several digits: no pipeline of the digits configs has to resize it."""
    return sorted((digits / 'detection' / 'val2017').glob('*.png'))[0]


@pytest.fixture(scope='session')
def checkpoint(tmp_path_factory):
    """Config file and untrained checkpoint of a task, as a training writes them."""
    folder = tmp_path_factory.mktemp('checkpoints')

    def make(task, family='hcnet', meta=True):
        config = str(ROOT / CONFIGS[task].replace('hcnet', family))
        path = folder / f'{task}_{family}_{meta}.pth'
        if not path.exists():
            cfg = Config.fromfile(config)
            init_default_scope(cfg.default_scope)
            torch.manual_seed(1)
            model = MODELS.build(cfg.model)
            model.init_weights()
            torch.save(
                dict(
                    state_dict=model.state_dict(),
                    meta=dict(dataset_meta=META[task]) if meta else {},
                ),
                path,
            )
        return config, str(path)

    return make


def normalised(path):
    image = np.asarray(Image.open(path).convert('RGB'), dtype=np.float32)
    return torch.from_numpy((image - 127.5) / 60).permute(2, 0, 1)[None]  # (1, 3, H, W)


def load(config, path):
    cfg = Config.fromfile(config)
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    model.load_state_dict(torch.load(path, weights_only=False)['state_dict'])
    return model.eval()


@pytest.mark.parametrize('family', ['hcnet', 'vheat'])
def test_classification_inferencer(family, checkpoint, scene, tmp_path):
    from mmpretrain import ImageClassificationInferencer

    config, weights = checkpoint('classification', family)
    # The size that the config resizes to.
    Image.open(scene).resize((48, 48)).save(tmp_path / 'digit.png')
    inferencer = ImageClassificationInferencer(config, weights, device='cpu')
    (result,) = inferencer(str(tmp_path / 'digit.png'), show_dir=str(tmp_path / 'shown'))
    with torch.no_grad():
        wanted = load(config, weights)(normalised(tmp_path / 'digit.png'), mode='tensor')
    np.testing.assert_allclose(result['pred_scores'], wanted.softmax(1)[0], atol=1e-5)
    assert result['pred_class'] == DIGITS[int(wanted.argmax())]
    assert (tmp_path / 'shown' / 'digit.png').is_file()


@pytest.mark.parametrize('family', ['hcnet', 'vheat'])
def test_detection_inferencer(family, checkpoint, scene, tmp_path):
    from mmdet.apis import DetInferencer
    from mmdet.structures import DetDataSample

    config, weights = checkpoint('detection', family)
    inferencer = DetInferencer(config, weights, device='cpu', show_progress=False)
    (found,) = inferencer(str(scene), out_dir=str(tmp_path), pred_score_thr=0.0)['predictions']
    sample = DetDataSample(
        metainfo=dict(
            img_shape=(128, 128),
            ori_shape=(128, 128),
            scale_factor=(1.0, 1.0),
            batch_input_shape=(128, 128),
            pad_shape=(128, 128),
        )
    )
    with torch.no_grad():
        wanted = load(config, weights).predict(normalised(scene), [sample])[0].pred_instances
    assert len(found['scores']) == len(wanted) > 0
    np.testing.assert_allclose(found['bboxes'], wanted.bboxes, atol=1e-3)
    np.testing.assert_allclose(found['scores'], wanted.scores, atol=1e-5)
    assert found['labels'] == wanted.labels.tolist()
    assert len(found['masks']) == len(wanted)
    assert inferencer.model.dataset_meta['classes'] == DIGITS
    assert Image.open(tmp_path / 'vis' / scene.name).size == (128, 128)


@pytest.mark.parametrize('family', ['hcnet', 'vheat'])
def test_segmentation_inferencer(family, checkpoint, scene, tmp_path):
    from mmseg.apis import MMSegInferencer

    config, weights = checkpoint('segmentation', family)
    inferencer = MMSegInferencer(config, weights, device='cpu')
    result = inferencer(str(scene), out_dir=str(tmp_path))
    with torch.no_grad():
        wanted = (
            load(config, weights)
            .encode_decode(normalised(scene), [dict(img_shape=(128, 128))])[0]
            .argmax(0)
        )
    # Ties between classes are rounded either way.
    assert (result['predictions'] == wanted.numpy()).mean() > 0.999
    assert len(np.unique(result['predictions'])) > 1
    assert inferencer.model.dataset_meta['classes'] == ('background', *DIGITS)
    assert Image.open(tmp_path / 'vis' / scene.name).size == (128, 128)


@pytest.fixture
def image_demo(monkeypatch, capsys):
    """Run demo/image_demo.py in this process; returns what it printed."""
    module = load_script(ROOT / 'demo' / 'image_demo.py')

    def run(*args):
        monkeypatch.setattr(sys, 'argv', ['image_demo.py', *map(str, args)])
        module.main()
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize(
    'task, said',
    [
        ('classification', 'class '),
        ('detection', 'objects with a score of 0.01 or more: '),
        ('segmentation', ' %'),
    ],
)
def test_demo_draws_a_folder(task, said, image_demo, checkpoint, digits, scene, tmp_path):
    out = image_demo(
        scene.parent,
        *checkpoint(task),
        '--out-dir',
        tmp_path / 'out',
        '--device',
        'cpu',
        '--score-thr',
        0.01,
    )
    pictures = sorted((tmp_path / 'out').iterdir())
    assert [p.name for p in pictures] == [p.name for p in sorted(scene.parent.iterdir())]
    assert out.count(said) >= len(pictures) == 4
    drawn, original = (
        np.asarray(Image.open(p).convert('RGB').resize((128, 128)), dtype=int)
        for p in (pictures[0], scene)
    )
    changed = np.abs(drawn - original).max(axis=2) > 20
    # A label in a corner; boxes and masks; colours everywhere.
    assert changed.mean() > (0.01 if task == 'classification' else 0.05)


@pytest.mark.slow
@pytest.mark.parametrize('task', ['classification', 'segmentation'])
def test_demo_compiled(task, traced, image_demo, checkpoint, scene, tmp_path):
    args = scene.parent, *checkpoint(task), '--out-dir', tmp_path, '--device', 'cpu'
    outputs = [image_demo(*args, *more).splitlines() for more in ((), ('--compile',))]
    # Four stages.
    assert outputs[1][-1].startswith('--compile: 4 compilations took ')
    found = [[line for line in output if ' -> ' in line] for output in outputs]
    assert len(found[0]) == 4 and found[0] == found[1]


@pytest.mark.parametrize('task, names', [('detection', DIGITS), ('segmentation', DIGITS)])
def test_demo_takes_class_names_from_the_config(
    task, names, image_demo, checkpoint, scene, tmp_path
):
    # As the converter writes it; mmdet and mmseg would take those of COCO and Cityscapes.
    out = image_demo(
        scene,
        *checkpoint(task, meta=False),
        '--out-file',
        tmp_path / 'a.png',
        '--device',
        'cpu',
        '--score-thr',
        0.01,
    )
    assert (tmp_path / 'a.png').is_file()
    assert any(f' {name}' in out.splitlines()[-1] for name in names)
    assert 'person' not in out and 'road' not in out


@pytest.mark.parametrize(
    'args, message',
    [
        (('none.png', 'CONFIG', 'CKPT'), "no image or folder 'none.png'"),
        (('EMPTY', 'CONFIG', 'CKPT'), "no image in '.*empty': it takes .jpg"),
        (('TEXT', 'CONFIG', 'CKPT'), "'.*text.png' is not an image that can be read"),
        (('FOLDER', 'CONFIG', 'CKPT', '--out-file', 'a.png'), '--out-file is for a single image'),
        (
            ('IMAGE', 'CONFIG', 'CKPT', '--out-file', 'a.txt'),
            r"--out-file is a picture to write, with one of the suffixes \.jpg, .*, got 'a\.txt'",
        ),
        (
            ('IMAGE', 'CONFIG', 'CKPT', '--out-file', 'EMPTY'),
            '--out-file is a picture to write, with one of the suffixes',
        ),
        (
            ('IMAGE', 'CONFIG', 'CKPT', '--out-dir', 'TEXT'),
            "--out-dir is a folder, and '.*' is a file",
        ),
        (('TWINS', 'CONFIG', 'CKPT'), 'two images would be drawn to'),
        (('IMAGE', 'none.py', 'CKPT'), "no config file 'none.py'"),
        (
            ('IMAGE', 'CONFIG', 'CKPT', '--device', 'cpu', '--compile', 'graphs'),
            '--compile graphs needs a GPU: ',
        ),
        (('IMAGE', 'CONFIG', 'none.pth'), "no checkpoint file 'none.pth'"),
        (('IMAGE', 'CONFIG', 'TEXT'), "'.*' is not a checkpoint that torch can read"),
        (('IMAGE', 'CONFIG', 'OTHER'), "'.*' is a checkpoint of another model"),
        (('IMAGE', 'CONFIG', 'CKPT', '--device', 'cuda'), '--device cuda needs a GPU'),
    ],
)
def test_demo_with_bad_input(args, message, image_demo, checkpoint, scene, tmp_path):
    if 'cuda' in args and torch.cuda.is_available():
        pytest.skip('needs a machine without a GPU')
    for folder in ('empty', 'twins'):
        (tmp_path / folder).mkdir()
    (tmp_path / 'text.png').write_text('text')
    for name in ('a.png', 'a.bmp'):
        Image.open(scene).save(tmp_path / 'twins' / name)
    config, weights = checkpoint('classification')
    paths = dict(
        IMAGE=scene,
        FOLDER=scene.parent,
        EMPTY=tmp_path / 'empty',
        CONFIG=config,
        CKPT=weights,
        TEXT=tmp_path / 'text.png',
        TWINS=tmp_path / 'twins',
        OTHER=checkpoint('segmentation')[1],
    )
    if '--device' not in args:
        args += ('--device', 'cpu')
    with pytest.raises(SystemExit, match=f'^Error: {message}') as caught:
        image_demo(*(paths.get(arg, arg) for arg in args))
    assert len(str(caught.value).splitlines()) == 1
