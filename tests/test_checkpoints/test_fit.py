from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mmhcnet.checkpoints.fit import WholeCheckpoint
from mmhcnet.errors import UserError


class Wrapped(nn.Module):
    """As several ranks and test-time augmentation wrap a model."""

    def __init__(self, module):
        super().__init__()
        self.module = module


def model(classes=3):
    return nn.Sequential(nn.Linear(4, 5), nn.Linear(5, classes))


def load(here, state_dict):
    WholeCheckpoint().after_load_checkpoint(SimpleNamespace(model=here), state_dict)


@pytest.mark.parametrize('wrap', [lambda m: m, Wrapped, lambda m: Wrapped(Wrapped(m))])
@pytest.mark.parametrize('prefix', ['', 'module.'])
@pytest.mark.parametrize('bare', [True, False])
def test_whole(wrap, prefix, bare):
    state = {prefix + key: value for key, value in model().state_dict().items()}
    load(wrap(model()), state if bare else dict(state_dict=state, meta={}))


def test_a_head_is_missing():
    state = {key: value for key, value in model().state_dict().items() if key[0] == '0'}
    with pytest.raises(UserError, match='2 of 4 weights are not in it, as 1.bias.* Give the conf'):
        load(model(), dict(state_dict=state))


def test_a_head_of_other_classes():
    with pytest.raises(UserError, match=r'2 weights differ, the first: size mismatch for 1.weight'):
        load(model(), dict(state_dict=model(classes=7).state_dict()))


def test_more_than_needed_is_no_fault():
    load(model(), dict(state_dict={**model().state_dict(), 'other': torch.zeros(1)}))
