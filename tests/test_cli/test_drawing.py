"""Which images of a test are drawn, with the visualisation hooks of mmdet and mmseg themselves."""

import mmengine.visualization
import numpy as np
import pytest
from mmengine.registry import HOOKS
from mmengine.structures import BaseDataElement
from PIL import Image

from mmhcnet.cli.errors import import_task


class Runner:
    work_dir, timestamp, iter = '', '', 0


@pytest.mark.parametrize('interval, drawn', [(1, [0, 1, 2, 3, 4, 5, 6]), (3, [0, 3, 6]), (9, [0])])
@pytest.mark.parametrize(
    'package, name', [('mmdet', 'DetVisualizationHook'), ('mmseg', 'SegVisualizationHook')]
)
def test_every_so_many(tmp_path, package, name, interval, drawn):
    import_task(package)
    mmengine.visualization.Visualizer.get_instance('every')
    seen = []

    class Visualizer:
        def add_datasample(self, name, image, data_sample, **settings):
            seen.append(data_sample.number)

    hook = HOOKS.build(
        dict(
            type='mmhcnet.DrawEveryHook',
            interval=interval,
            hook=dict(type=f'{package}.{name}', draw=True),
        )
    )
    hook.hook._visualizer = Visualizer()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / 'a.png')
    samples = [
        BaseDataElement(metainfo=dict(img_path=str(tmp_path / 'a.png'), number=i)) for i in range(7)
    ]
    # Each test begins with its first image.
    for _ in range(2):
        seen.clear()
        hook.before_test_epoch(Runner())
        for batch in range(3):
            hook.after_test_iter(Runner(), batch, None, samples[3 * batch : 3 * batch + 3])
        assert seen == drawn
