import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / 'shared'


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


@pytest.fixture
def golden():
    """Folder of the reference implementations' outputs."""
    folder = SHARED / 'golden'
    if not folder.is_dir():
        pytest.skip('the golden outputs (../shared/golden) are not here')
    return folder


@pytest.fixture
def photos():
    """Folder of small real data: coco_tiny, coco_semantic, ade_tiny, imagenet_samples."""
    folder = Path(os.environ.get('MMHCNET_TEST_DATA', SHARED / 'data'))
    if not folder.is_dir():
        pytest.skip('the real photos (../shared/data or $MMHCNET_TEST_DATA) are not here')
    return folder
