"""What the processes that tests fork have imported already: all but mmhcnet itself.

That a tool imports what it needs is tested where processes are fresh ones: in test_registration.py,
in test_from_outside.py, and where the fixture ``tool`` is told so.
"""

import gc
from contextlib import suppress
from importlib import import_module

PARTS = ('datasets', 'engine', 'evaluation', 'models', 'visualization')
LIBRARIES = (
    'matplotlib.pyplot',
    'mmcv.ops',
    'mmengine.runner',
    'pycocotools.mask',
    'scipy.optimize',
    'sklearn.gaussian_process',
    'torch._dynamo',
    'torchvision',
    *(f'{task}.{part}' for task in ('mmpretrain', 'mmdet', 'mmseg') for part in PARTS),
)

for library in LIBRARIES:
    # The test that needs a library says what is wrong with it.
    with suppress(Exception):
        import_module(library)

# mmengine collects garbage at each data set that it builds, and need not look at all of this.
gc.collect()
gc.freeze()
