"""A data set of a type that the check does not know."""

import numpy as np
from mmengine.registry import DATASETS


@DATASETS.register_module(force=True)
class UnknownData:
    """Noise without labels, packed already."""

    metainfo = dict(classes=('blue', 'green', 'red'))

    def __init__(self, lazy_init=False, pipeline=()):
        pass

    def full_init(self):
        pass

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return dict(inputs=np.zeros((3, 48, 48)), data_samples=None)
