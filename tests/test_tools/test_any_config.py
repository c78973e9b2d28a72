"""Tools take channels, metrics and heads from the config, whatever they are."""

from argparse import Namespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS
from PIL import Image

import mmhcnet
from mmhcnet.cli.config import load_config
from mmhcnet.cli.errors import explain, import_task
from mmhcnet.inference.complexity import count_complexity
from mmhcnet.inference.export import check_onnx, export_onnx, exportable
from mmhcnet.inference.model import build_model, input_channels
from mmhcnet.inference.pictures import model_input
from mmhcnet.visualization import receptive_field, report

from ..conftest import ROOT, load_script
from ..scenes import write_config, write_scenes

GREY = '''
model = dict(backbone=dict(in_channels={n}))
data_preprocessor = dict(mean=[127.5] * {n}, std=[60.] * {n}, to_rgb=False)
test_dataloader = dict(dataset=dict(pipeline=[
    dict(type='LoadImageFromFile', color_type='{kind}'), dict(type='Resize', scale=48),
    dict(type='PackInputs')]))
'''
SIGMOID = '''
loss1 = dict(_delete_=True, type='CrossEntropyLoss', use_sigmoid=True)
two = dict(classes=('background', 'thing'), palette=[[0, 0, 0], [255, 0, 0]])
head = dict(num_classes=2, out_channels=1, threshold=0.5, loss_decode=loss1)
model = dict(decode_head=head, auxiliary_head=head)
test_dataloader = dict(dataset=dict(metainfo=two))
'''


@pytest.fixture
def config(tmp_path):
    """Path of a config of a task with lines that change it, next to data of its own."""
    write_scenes(tmp_path / 'data')

    def make(task, more):
        return write_config(tmp_path / f'{task}.py', task, tmp_path / 'data', more)

    return make


def model_of(path):
    cfg = load_config(str(path), None, None)
    import_task(cfg.default_scope)
    torch.manual_seed(0)
    return cfg, build_model(cfg)


@pytest.mark.parametrize('channels', [1, 4])
def test_channels_of_the_config(config, channels, tmp_path):
    more = GREY.format(n=channels, kind='grayscale' if channels == 1 else 'unchanged')
    cfg, model = model_of(config('cls', more))
    assert input_channels(model) == channels
    backbone, _ = count_complexity(cfg, (64, 64))
    assert backbone.params == sum(p.numel() for p in model.backbone.parameters())
    pytest.importorskip('onnx')
    pytest.importorskip('onnxruntime')
    part = exportable(cfg, None, (48, 48))
    export_onnx(part, str(tmp_path / 'a.onnx'), (48, 48), 17, part.outputs)
    (found,) = check_onnx(part, str(tmp_path / 'a.onnx'), [(2, 48, 48)])
    assert found.ok and found.shape == (2, channels, 48, 48)


def test_a_picture_for_a_grey_model(config):
    _, model = model_of(config('cls', GREY.format(n=1, kind='grayscale')))
    colours = np.random.RandomState(0).randint(0, 256, (48, 64, 3), dtype=np.uint8)
    image = model_input(model, Image.fromarray(colours))
    grey = colours @ [0.299, 0.587, 0.114]
    assert image.shape == (1, 1, 48, 64)
    assert np.abs(image[0, 0].numpy() * 60 + 127.5 - grey).max() < 1
    assert receptive_field.inputs(model, [], 48, 2).shape == (2, 1, 48, 48)
    assert receptive_field.measure(model, receptive_field.inputs(model, [], 48, 1)).max() == 1


def test_the_report_of_a_grey_model(config, tmp_path):
    path = config('cls', GREY.format(n=1, kind='grayscale'))
    import_task('mmpretrain')
    page = report.write_report(
        Image.new('RGB', (64, 64), 'red'), [(str(path), 'none')], tmp_path / 'report', 64
    )
    assert 'heat</h2>' in page.read_text() and (tmp_path / 'report/0/maps.png').is_file()


def test_a_picture_for_a_model_of_four_channels(config):
    _, model = model_of(config('cls', GREY.format(n=4, kind='unchanged')))
    with pytest.raises(ValueError, match='takes 4 channels, and a picture has 3 or, grey, 1'):
        model_input(model, Image.new('RGB', (64, 64)))


def draw(path, image, tmp_path):
    """What demo/image_demo.py says and draws with the weights of a config's untrained model."""
    cfg, model = model_of(path)
    dataset = DATASETS.build(dict(cfg.test_dataloader.dataset, lazy_init=True, pipeline=[]))
    torch.save(
        dict(
            state_dict=model.state_dict(),
            meta=dict(
                dataset_meta=dict(
                    classes=dataset.metainfo.get('classes', ('a', 'b', 'c')),
                    palette=dataset.metainfo.get('palette'),
                )
            ),
        ),
        tmp_path / 'a.pth',
    )
    demo = load_script(ROOT / 'demo' / 'image_demo.py')
    args = Namespace(
        config=str(path),
        checkpoint=str(tmp_path / 'a.pth'),
        image=str(image),
        out_file=None,
        out_dir=str(tmp_path),
        device='cpu',
        score_thr=0.3,
        cfg_options=None,
        compile=None,
    )
    _, drawing = demo.prepare(args)
    return drawing(str(image))


def test_a_binary_segmentor_is_drawn(config, tmp_path):
    image = tmp_path / 'data/seg/images/validation/0.png'
    picture, said = draw(config('seg', SIGMOID), image, tmp_path)
    assert picture.shape == (128, 128, 3)
    parts = dict(part.rsplit(' ', 2)[:2] for part in said.split(', '))
    assert set(parts) <= {'background', 'thing'} and sum(map(int, parts.values())) in (99, 100, 101)


def test_a_grey_classifier_is_drawn(config, tmp_path):
    image = tmp_path / 'data/cls/val/red/0.png'
    picture, said = draw(config('cls', GREY.format(n=1, kind='grayscale')), image, tmp_path)
    assert picture.ndim == 3 and said.startswith('class ')


@pytest.mark.parametrize('several', [True, False])
def test_label_maps_of_one_metric_or_several(config, several, tmp_path):
    more = "test_evaluator = [dict(type='IoUMetric', iou_metrics=['mIoU', 'mFscore'])]" * several
    (tmp_path / 'a.pth').touch()
    script = load_script(ROOT / 'tools' / 'test.py')
    args = Namespace(
        config=str(config('seg', more)),
        checkpoint=str(tmp_path / 'a.pth'),
        cfg_options=None,
        work_dir=None,
        launcher='none',
        no_data_check=False,
        amp=False,
        show=False,
        show_dir=None,
        tta=False,
        out='maps',
        compile=None,
    )
    cfg = script.build_config(args)
    metric = cfg.test_evaluator[0] if several else cfg.test_evaluator
    assert (metric.output_dir, metric.keep_results) == ('maps', True)


def test_a_bare_name_gets_its_scope(config):
    path = config('det', "model = dict(backbone=dict(type='HcNet'))")
    cfg = Config.fromfile(path)
    import_task(cfg.default_scope)
    with pytest.raises(KeyError) as error:
        build_model(cfg)
    assert explain(error.value) == (
        "there is no model of type 'HcNet' in mmdet; write it with its scope: 'mmhcnet.HcNet'"
    )
    assert mmhcnet.HcNet
