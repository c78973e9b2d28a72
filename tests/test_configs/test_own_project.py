"""The configs of README and docs/own_project.md, word by word, on bases that mmdet, mmseg and
mmpretrain carry: they build a model of ours, whose parameters decay as the page says."""

import importlib.util
import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmhcnet import HcNet

from ..conftest import ROOT

EXAMPLE = re.compile(
    r'<!-- own: (?P<package>\w+) (?P<base>\S+) -->\n```python\n(?P<text>.*?)```', re.DOTALL
)
PAGES = ('README.md', 'docs/own_project.md')
EXAMPLES = {
    f'{page}: {match["base"]}': match.groupdict()
    for page in PAGES
    for match in EXAMPLE.finditer((ROOT / page).read_text())
}
SIZE = 64


def load(name, tmp_path):
    example = EXAMPLES[name]
    package = Path(importlib.util.find_spec(example['package']).origin).parent
    path = package / '.mim/configs' / example['base']
    name = path.name
    assert example['text'].count(f"'{name}'") == 1
    (tmp_path / 'mine.py').write_text(example['text'].replace(f"'{name}'", repr(str(path))))
    return Config.fromfile(tmp_path / 'mine.py')


def test_examples_are_found():
    count = sum((ROOT / page).read_text().count('<!-- own:') for page in PAGES)
    assert len(EXAMPLES) == count == 5


@pytest.mark.parametrize('name', EXAMPLES)
def test_example(name, tmp_path):
    cfg = load(name, tmp_path)
    init_default_scope(cfg.default_scope)
    cfg.model.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
    model = MODELS.build(cfg.model)
    assert type(model.backbone) is HcNet

    # Maps fit what reads them, and every parameter of the backbone gets a gradient from that.
    maps = model.backbone(torch.randn(2, 3, SIZE, SIZE))
    read = model.neck(maps) if getattr(model, 'neck', None) is not None else maps
    if cfg.default_scope == 'mmseg':
        read = [model.decode_head(maps), model.auxiliary_head(maps)]
        assert all(out.shape[1] == 4 for out in read)
    sum(out.sum() for out in read).backward()
    assert all(p.grad is not None for p in model.backbone.parameters())

    # The learning rate is the optimizer's everywhere; norms and stencil weights do not decay.
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    assert type(optimizer) is torch.optim.AdamW
    decays = {
        id(p): group['weight_decay'] for group in optimizer.param_groups for p in group['params']
    }
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            kept = isinstance(module, nn.GroupNorm | nn.modules.batchnorm._BatchNorm)
            if not parameter.requires_grad or (name == 'bias' and not kept):
                continue
            assert (decays[id(parameter)] == 0) == (kept or name == 'w'), (type(module), name)


@pytest.mark.parametrize('name', [name for name in EXAMPLES if 'README' not in name])
def test_classes_are_the_users_own(name, tmp_path):
    """None of the base's numbers of classes is left where a head would have it."""
    cfg = load(name, tmp_path)
    heads = {key: value for key, value in cfg.model.to_dict().items() if key != 'rpn_head'}
    assert set(re.findall(r"'num_classes': (\d+)", str(heads))) <= {'3', '4'}
