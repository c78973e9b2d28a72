import torch
from mmengine.registry import MODELS

from mmhcnet.visualization import receptive_field

from .test_heat import ARCH, Model


def test_receptive_field_of_a_known_filter():
    # Two 3x3 convolutions of ones, the first with stride 2: 7x7 pixels move the centre, as often
    # as there are ways through the two, which is largest in the middle.
    convs = torch.nn.Sequential(
        torch.nn.Conv2d(3, 1, 3, stride=2, padding=1), torch.nn.Conv2d(1, 1, 3, padding=1)
    )
    for conv in convs:
        torch.nn.init.ones_(conv.weight)
    convs.append(torch.nn.Identity())
    backbone = torch.nn.Module()
    backbone.forward = lambda x: (convs(x),)
    field = receptive_field.measure(Model(backbone), torch.randn(2, 3, 32, 32))
    line = torch.tensor([1.0, 1, 2, 1, 2, 1, 1])
    expected = torch.zeros(32, 32)
    expected[13:20, 13:20] = line[:, None] * line
    torch.testing.assert_close(field, expected / 4)


def test_receptive_field_after_a_layer_norm():
    # There the sum over the channels is constant, and its gradient rounding noise.
    model = Model(
        MODELS.build(
            dict(
                type='mmhcnet.VHeat',
                out_indices=(1,),
                arch=dict(ARCH, post_norm=False, layer_scale=None),
            )
        )
    ).eval()
    x = torch.randn(1, 3, 64, 64)
    field = receptive_field.measure(model, x)
    again = receptive_field.measure(model.double(), x.double())
    torch.testing.assert_close(field.double(), again.double(), rtol=0, atol=1e-3)
