import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mmhcnet import HcNet, VHeat
from mmhcnet.checkpoints.fitting import StrictLoadHook, fit, weights_of
from mmhcnet.errors import UserError


class Wrapped(nn.Module):
    """As several ranks and test-time augmentation wrap a model."""

    def __init__(self, module):
        super().__init__()
        self.module = module


def model(classes=3):
    return nn.Sequential(nn.Linear(4, 5), nn.Linear(5, classes))


def load(here, state_dict):
    StrictLoadHook().after_load_checkpoint(SimpleNamespace(model=here), state_dict)


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


def test_every_key_is_in_one_list():
    state = model(classes=7).state_dict()
    state['other'] = torch.zeros(1)
    del state['0.bias']
    state['module.0.weight'] = state.pop('0.weight') + 1
    here = model()
    found = fit(Wrapped(here), weights_of(dict(model=state)))
    assert found.matched == ['0.weight'] and found.missing == ['0.bias']
    assert found.unexpected == ['other'] and not found.resized
    assert list(found.other_shape) == ['1.weight', '1.bias']
    assert torch.equal(here[0].weight, state['module.0.weight'])


def test_what_is_no_tensor_does_not_fit():
    found = fit(model(), {**model().state_dict(), '0.bias': 'text'})
    assert list(found.other_shape) == ['0.bias']
    assert 'expected torch.Tensor' in found.fault


def test_what_the_model_resizes_counts_as_matched():
    arch = dict(embed_dims=[8, 8], depths=[1, 1], post_norm=False, layer_scale=None)
    here, other = (VHeat(arch, img_size=size, out_indices=(0, 1)) for size in (64, 32))
    found = fit(here, other.state_dict())
    assert found.resized == ['freq_embed.0', 'freq_embed.1'] and not found.fault
    assert set(found.resized) < set(found.matched)


def test_what_the_model_refuses():
    arch = dict(embed_dims=[8, 8])
    here, other = (
        HcNet(dict(arch, depths=depths), out_indices=(0, 1)) for depths in ([1, 1], [1, 2])
    )
    found = fit(here, other.state_dict())
    assert not found.matched
    assert re.search('the checkpoint is of HcNet.*: give a checkpoint of this model', found.fault)


def test_a_count_that_old_batch_norms_lack():
    norm = nn.BatchNorm1d(2)
    state = {key: value for key, value in norm.state_dict().items() if 'num' not in key}
    assert fit(norm, state).fault is None


def test_the_authors_average():
    with pytest.raises(ValueError, match="has no 'model_ema'"):
        weights_of(dict(model={}), ema=True)
    assert weights_of(dict(model={'a': 1}, model_ema={'module.a': 2}), ema=True) == {'a': 2}
