"""A data set and a metric of types that the check does not know."""

import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.registry import DATASETS, METRICS


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


@METRICS.register_module(force=True)
class UnknownMetric(BaseMetric):
    """The number of samples."""

    def process(self, data_batch, data_samples):
        self.results += data_samples

    def compute_metrics(self, results):
        return dict(unknown=len(results))
