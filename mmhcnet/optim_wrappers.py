"""The optimizers of a run, one or several of them."""

from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner


def wrappers_of(runner: Runner) -> list[OptimWrapper]:
    """mmengine's wrapper of each optimizer; none where the runner does not train."""
    wrapper = runner.optim_wrapper
    if isinstance(wrapper, OptimWrapperDict):
        return list(wrapper.values())
    return [wrapper] if isinstance(wrapper, OptimWrapper) else []
