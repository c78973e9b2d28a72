import argparse
import os
from collections import OrderedDict

import pytest
import torch

from mmhcnet.checkpoints.official import read_official


class Settings(dict):
    """As yacs' CfgNode in the authors' checkpoints: a class that a reader does not have."""


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize('zipped', [True, False])
def test_weights_beside_objects_of_the_training_code(tmp_path, zipped):
    settings = Settings(lr=0.1)
    settings.frozen = True
    weights = OrderedDict(
        a=torch.randn(3, 2),
        b=torch.arange(4),
        c=torch.nn.Parameter(torch.randn(2)).half(),
        d=torch.randn(2).bfloat16(),
        e=torch.randn(4, 6).T,
    )
    torch.save(
        dict(
            model=weights,
            config=settings,
            args=argparse.Namespace(x=1),
            device=torch.device('cpu'),
            epoch=7,
        ),
        tmp_path / 'a.pth',
        _use_new_zipfile_serialization=zipped,
    )
    checkpoint = read_official(str(tmp_path / 'a.pth'))
    assert checkpoint['epoch'] == 7
    assert list(checkpoint['model']) == list(weights)
    for key, value in weights.items():
        assert torch.equal(checkpoint['model'][key], value)
        assert checkpoint['model'][key].dtype == value.dtype
    assert not isinstance(checkpoint['config'], Settings)


def test_nothing_in_the_file_is_run(tmp_path):
    torch.save(dict(model={'a': torch.zeros(1)}, evil=Evil(tmp_path / 'made')), tmp_path / 'a.pth')
    assert torch.equal(read_official(str(tmp_path / 'a.pth'))['model']['a'], torch.zeros(1))
    assert not (tmp_path / 'made').exists()


def test_other_files_are_refused(tmp_path):
    (tmp_path / 'text.pth').write_text('not a checkpoint')
    (tmp_path / 'empty.pth').write_bytes(b'')
    torch.save([torch.zeros(1)], tmp_path / 'list.pth')
    for name in ('text.pth', 'empty.pth'):
        with pytest.raises(ValueError, match='is not a checkpoint that torch can read'):
            read_official(str(tmp_path / name))
    with pytest.raises(ValueError, match='holds a list, not a dict'):
        read_official(str(tmp_path / 'list.pth'))
