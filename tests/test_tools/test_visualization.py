"""What the visualisation tools show is what the layers do; the page comes from one command."""
import importlib
import math

import pytest
import torch
from mmengine.registry import MODELS
from PIL import Image

from mmhcnet.ops import heat_spectral
from mmhcnet.ops.heat_step import heat_step_ref

from .conftest import CONFIGS, ROOT

HCNET, VHEAT = CONFIGS['classification'], 'configs/classification/vheat_digits.py'
ARCH = dict(embed_dims=[8, 12], depths=[2, 1])


@pytest.fixture
def load(monkeypatch):
    """Import a tool as a module; the tools find each other beside themselves."""
    monkeypatch.syspath_prepend(str(ROOT / 'tools' / 'visualization'))
    return importlib.import_module


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / 'photo.jpg'
    Image.effect_noise((96, 80), 120).convert('RGB').save(path)
    return path


class Model(torch.nn.Module):
    """A backbone as the tools see it."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone


def test_heat_of_hcnet(load):
    model = Model(MODELS.build(dict(type='mmhcnet.HcNet', arch=ARCH, out_indices=(1, )))).eval()
    torch.nn.init.uniform_(model.backbone.stages[0][1].conduction.w, .1, .4)
    heats = load('vis_heat').record(model, torch.randn(1, 3, 40, 48))
    assert list(heats) == [f'backbone.stages.{i}.conduction' for i in ('0.0', '0.1', '1.0')]
    layer, heat = model.backbone.stages[0][1].conduction, heats['backbone.stages.0.1.conduction']
    assert heat.before.shape == (8, 10, 12)
    k = torch.sigmoid(layer.to_k.weight @ heat.before.mean(dim=(1, 2)))
    torch.testing.assert_close(heat.k, k)
    torch.testing.assert_close(heat.fourier, k * layer.w.sum(dim=1))
    torch.testing.assert_close(
        heat.after, heat_step_ref(heat.before[None], layer.w, k[:, None, None])[0])
    # The field goes on from one layer to the next through the refinement.
    first = heats['backbone.stages.0.0.conduction']
    torch.testing.assert_close(
        model.backbone.stages[0][0].refinement(first.after[None])[0], heat.before)
    assert load('vis_heat').stages(heats) == [list(heats)[:2], list(heats)[2:]]


@pytest.mark.parametrize('k', ['frequency', 'learnable', .3])
def test_heat_of_vheat(load, k):
    arch = dict(ARCH, post_norm=False, layer_scale=None)
    model = Model(MODELS.build(dict(
        type='mmhcnet.VHeat', arch=arch, k=k, out_indices=(1, )))).eval()
    heats = load('vis_heat').record(model, torch.randn(1, 3, 40, 48))
    heat = heats['backbone.stages.0.1.conduction']
    layer = model.backbone.stages[0][1].conduction
    embedding = model.backbone.freq_embed.at(0, (10, 12)) if k == 'frequency' else None
    decay = layer.decay_table(10, 12, embedding)
    torch.testing.assert_close(heat.left, decay.mean(dim=2))
    after = heat_spectral(heat.before.permute(1, 2, 0)[None], decay)[0].permute(2, 0, 1)
    torch.testing.assert_close(heat.after, after)
    if k != 'frequency':
        rate = k if k == .3 else math.log(2)  # softplus(0)
        torch.testing.assert_close(heat.k, torch.full((8, ), rate))


def test_receptive_field_of_a_known_filter(load):
    # Two 3x3 convolutions of ones, the first with stride 2: 7x7 pixels move the centre, as often
    # as there are ways through the two, which is largest in the middle.
    convs = torch.nn.Sequential(
        torch.nn.Conv2d(3, 1, 3, stride=2, padding=1), torch.nn.Conv2d(1, 1, 3, padding=1))
    for conv in convs:
        torch.nn.init.ones_(conv.weight)
    convs.append(torch.nn.Identity())
    backbone = torch.nn.Module()
    backbone.forward = lambda x: (convs(x), )
    field = load('vis_erf').receptive_field(Model(backbone), torch.randn(2, 3, 32, 32))
    line = torch.tensor([1., 1, 2, 1, 2, 1, 1])
    expected = torch.zeros(32, 32)
    expected[13:20, 13:20] = line[:, None] * line
    torch.testing.assert_close(field, expected / 4)


def test_receptive_field_behind_a_layer_norm(load):
    # There the sum over the channels is constant, and its gradient rounding noise.
    model = Model(MODELS.build(dict(type='mmhcnet.VHeat', out_indices=(1, ), arch=dict(
        ARCH, post_norm=False, layer_scale=None)))).eval()
    x = torch.randn(1, 3, 64, 64)
    field = load('vis_erf').receptive_field(model, x)
    again = load('vis_erf').receptive_field(model.double(), x.double())
    torch.testing.assert_close(field.double(), again.double(), rtol=0, atol=1e-3)


def test_maps_of_tokens_and_channels_last(load):
    as_maps = load('vis_cam').as_maps
    x = torch.randn(2, 5, 7, 9)
    size = (7 * 32 - 3, 9 * 32)
    assert torch.equal(as_maps(x, size), x)
    assert torch.equal(as_maps(x.permute(0, 2, 3, 1), size), x)
    tokens = x.flatten(2).transpose(1, 2)
    assert torch.equal(as_maps(tokens, size), x)
    assert torch.equal(as_maps(torch.cat([tokens[:, :1], tokens], dim=1), size), x)
    with pytest.raises(ValueError, match='is no map of an image of 221x288'):
        as_maps(torch.randn(2, 5), size)


def test_report(tool, photo, tmp_path):
    # One command: two kinds of heat, receptive fields, Grad-CAM where its package is installed.
    done = tool('visualization/report.py', photo, '--model', HCNET, 'none', '--model', VHEAT,
                'none', '--size', 64, '--out', tmp_path / 'out')
    assert str(tmp_path / 'out' / 'index.html') in done.stdout
    page = (tmp_path / 'out' / 'index.html').read_text(encoding='utf-8')
    pictures = {part.split('"')[0] for part in page.split('src="')[1:]}
    assert {'photo.png', 'erf.png', '0/maps.png', '0/rates.png', '0/diffusion.gif',
            '1/maps.png', '1/rates.png', '1/diffusion.gif'} <= pictures
    for name in pictures:
        with Image.open(tmp_path / 'out' / name) as picture:
            picture.load()
    with Image.open(tmp_path / 'out' / '0' / 'diffusion.gif') as animation:
        assert animation.n_frames == 2  # one layer in stage 1, before and after
    assert '% of the pixels above 0.0455' in page
    assert ('cam.png' in pictures) != ('pip install --no-deps grad-cam' in page)


def test_grad_cam_of_a_class(load, photo):
    pytest.importorskip('pytorch_grad_cam')
    from mmhcnet.inference.model import load_model
    from mmhcnet.inference.pictures import read_picture
    picture = read_picture(str(photo), 64)
    _, model = load_model(str(ROOT / HCNET), 'none')
    cam = load('vis_cam').grad_cam(model, picture, 'hcnet', label=3)
    assert (cam.label, cam.layer, cam.map.shape) == (3, 'backbone.norm3', (64, 77))
    assert 0 < cam.score < 100 and cam.map.min() >= 0 and cam.map.max() == pytest.approx(1)
    with pytest.raises(ValueError, match='--label must be from 0 to 9, got 10'):
        load('vis_cam').grad_cam(model, picture, 'hcnet', label=10)
    with pytest.raises(ValueError, match="no layer 'backbone.norm7'; choose one of: .*norm3"):
        load('vis_cam').grad_cam(model, picture, 'hcnet', 'backbone.norm7')


@pytest.mark.parametrize('options, message', [
    (dict(layers=['backbone.stages.0.0']), 'choose one of: backbone.stages.0.0.conduction, '),
    (dict(layers=['stages.9']), 'choose one of: backbone.stages.0.0.conduction, '),
    (dict(stage=5), '--stage must be from 1 to 4, got 5'),
    (dict(channel=32), '--channel must be from 0 to 31 in stage 1, got 32'),
])
def test_wrong_names_and_numbers(load, photo, tmp_path, options, message):
    from mmhcnet.inference.model import load_model
    from mmhcnet.inference.pictures import read_picture
    _, model = load_model(str(ROOT / HCNET), 'none')
    with pytest.raises(ValueError, match=message):
        load('vis_heat').draw(model, read_picture(str(photo), 64), tmp_path / 'out', **options)
    assert not (tmp_path / 'out').exists()


def test_a_model_without_heat(load, photo, tmp_path):
    from mmhcnet.inference.model import load_model
    from mmhcnet.inference.pictures import read_picture
    _, model = load_model('mmpretrain::resnet/resnet18_8xb32_in1k.py', 'none')
    with pytest.raises(ValueError, match='ResNet has no heat conduction layer: choose a config'):
        load('vis_heat').draw(model, read_picture(str(photo), 64), tmp_path / 'out')


def test_mistakes_end_with_one_line(tool):
    done = tool('visualization/vis_heat.py', 'none.jpg', HCNET, 'none', fails=True)
    assert 'Traceback' not in done.stderr
    assert done.stderr.strip().splitlines()[-1] == "Error: no image file 'none.jpg'"
