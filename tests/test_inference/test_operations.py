import pytest
import torch
from torch import nn

from mmhcnet import HcNet, VHeat
from mmhcnet.inference.operations import count_operations
from mmhcnet.ops.backend import use_triton


class Linear(nn.Module):
    """A product of a view, with a ReLU or without."""

    def __init__(self, relu):
        super().__init__()
        self.linear = nn.Linear(3, 8, bias=False)
        self.relu = nn.ReLU() if relu else nn.Identity()

    def forward(self, x):
        return (self.relu(self.linear(x.flatten(0, 2))),)


def test_what_is_counted():
    shape = (2, 4, 5, 3)
    assert count_operations(Linear(False), shape, training=False) == {'aten::mm': 1}
    assert count_operations(Linear(True), shape, training=False) == {'aten::mm': 1, 'aten::relu': 1}
    step = count_operations(Linear(False), shape, training=True)
    # The gradient of the weight, and none of the image.
    assert step['aten::mm'] == 2
    # Weight and images to bfloat16; the map to float32, its gradient and the weight's back.
    assert step['aten::_to_copy'] == 5


ARCHS = {
    HcNet: dict(embed_dims=[8, 8, 8, 8], depths=[1, 1, 2, 1]),
    VHeat: dict(embed_dims=[8, 8, 8, 8], depths=[1, 1, 2, 1], post_norm=False, layer_scale=None),
}


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('family', ARCHS)
def test_nothing_is_computed_and_the_model_stays(family, training):
    model = family(ARCHS[family]).train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first = count_operations(model, (2, 3, 64, 64), training)
    # As many for other shapes, and at the next call.
    assert count_operations(model, (4, 3, 96, 64), training) == first
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None and type(p) is nn.Parameter for p in model.parameters())
    # The kernels count as one each.
    assert any(name.startswith('mmhcnet::') for name in first)
    # Nothing else is taken for a tensor on a GPU afterwards.
    assert not use_triton('auto', torch.ones(1, 1, 2, 2))


@pytest.mark.parametrize('family, inference, training', [(HcNet, 200, 900), (VHeat, 300, 1000)])
def test_operations_of_a_step(family, inference, training):
    """Issuing them, not computing, is what a GPU waits for: few are as good as fast ones."""
    for steps, limit in ((False, inference), (True, training)):
        model = family('tiny', out_indices=(3,)).train(steps)
        counts = count_operations(model, (8, 3, 224, 224), steps)
        assert sum(counts.values()) <= limit, counts
        # Fewer would mean that the count misses something: a block has two products at least.
        products = sum(counts[f'aten::{name}'] for name in ('mm', 'addmm', 'addmm_'))
        assert products >= 2 * sum(len(stage) for stage in model.stages)
