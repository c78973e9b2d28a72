import pytest
import torch

from mmhcnet.inference.model import load_model
from mmhcnet.inference.pictures import read_picture
from mmhcnet.visualization import grad_cam

from .test_heat import HCNET


def test_maps_of_tokens_and_channels_last():
    as_maps = grad_cam.as_maps
    x = torch.randn(2, 5, 7, 9)
    size = (7 * 32 - 3, 9 * 32)
    assert torch.equal(as_maps(x, size), x)
    assert torch.equal(as_maps(x.permute(0, 2, 3, 1), size), x)
    tokens = x.flatten(2).transpose(1, 2)
    assert torch.equal(as_maps(tokens, size), x)
    assert torch.equal(as_maps(torch.cat([tokens[:, :1], tokens], dim=1), size), x)
    with pytest.raises(ValueError, match='is not a map of an image of 221x288'):
        as_maps(torch.randn(2, 5), size)


def test_grad_cam_of_a_class(photo):
    pytest.importorskip('pytorch_grad_cam')
    picture = read_picture(str(photo), 64)
    _, model = load_model(HCNET, 'none')
    cam = grad_cam.explain(model, picture, 'hcnet', label=3)
    assert (cam.label, cam.layer, cam.map.shape) == (3, 'backbone.norm3', (64, 77))
    assert 0 < cam.score < 100 and cam.map.min() >= 0 and cam.map.max() == pytest.approx(1)
    with pytest.raises(ValueError, match='--label must be from 0 to 9, got 10'):
        grad_cam.explain(model, picture, 'hcnet', label=10)
    with pytest.raises(ValueError, match="no layer 'backbone.norm7'; choose one of: .*norm3"):
        grad_cam.explain(model, picture, 'hcnet', 'backbone.norm7')
