"""Pictures of some of the images of a test."""

from collections.abc import Sequence
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS as ROOT_HOOKS
from mmengine.runner import Runner

from mmhcnet.registry import HOOKS


@HOOKS.register_module()
class DrawEveryHook(Hook):
    """Lets a hook draw every n-th image of a test.

    mmdet's and mmseg's visualisation hooks have an interval for validation only, and draw each
    image of a test.

    Args:
        interval (int): The first image is drawn, and the ``interval``-th after each that is drawn.
        hook (dict): Config of the hook that draws.
    """

    def __init__(self, interval: int, hook: dict):
        self.interval = interval
        # Some versions of mmseg count by the interval in a test, too.
        self.hook = ROOT_HOOKS.build(dict(hook, interval=1))
        self._seen = 0

    def before_test_epoch(self, runner: Runner) -> None:
        self._seen = 0

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | tuple | list | None = None,
        outputs: Sequence[Any] | None = None,
    ) -> None:
        chosen = [output for i, output in enumerate(outputs, self._seen) if i % self.interval == 0]
        self._seen += len(outputs)
        self.hook.after_test_iter(runner, batch_idx, data_batch, chosen)
