"""Training steps with a loss or gradient that is not finite are skipped, and named."""
from typing import Any, List, Optional

import torch
from mmengine.dist import all_reduce, is_distributed
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapperDict
from mmengine.runner import Runner
from torch import Tensor, nn

from mmhcnet.errors import UserError
from mmhcnet.registry import HOOKS


def image_paths(data_batch: Any) -> List[str]:
    """Files that a batch comes from, as far as its pipeline packs ``img_path``."""
    samples = data_batch.get('data_samples') or [] if isinstance(data_batch, dict) else []
    return [str(path) for path in (getattr(sample, 'img_path', None) for sample in samples)
            if path]


@HOOKS.register_module()
class FiniteHook(Hook):
    """Skip the step of a batch whose loss or gradient is not finite; stop after many in a row.

    Weights, optimizer state and buffers (running statistics) stay as they were before the batch,
    on all ranks. The images of the batch are named in the log. Under automatic mixed precision
    the gradient scaler's own search for a scale, in which the loss is finite, does not count until
    the scale falls below 1.

    Args:
        max_in_a_row (int): Training ends with an error after so many skipped steps in a row.
    """
    # Before anything that uses the weights after a step, as a moving average of them.
    priority = 'VERY_HIGH'

    def __init__(self, max_in_a_row: int = 10):
        if max_in_a_row < 1:
            raise ValueError(f'max_in_a_row must be at least 1, got {max_in_a_row}')
        self.max_in_a_row = max_in_a_row
        self.in_a_row = 0
        self.skipped = 0
        # Of the losses since the last step: 0 if all were finite, else nan.
        self._losses: Optional[Tensor] = None
        # (losses finite, gradients finite) on all ranks, once a step was tried.
        self._verdict: Optional[List[bool]] = None
        self._own_losses_finite = True

    def before_train(self, runner: Runner) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        model.register_forward_hook(self._see_losses)
        for wrapper in self._wrappers(runner):
            wrapper.optimizer.register_step_pre_hook(self._before_step)

    @staticmethod
    def _wrappers(runner: Runner) -> list:
        wrapper = runner.optim_wrapper
        return list(wrapper.values()) if isinstance(wrapper, OptimWrapperDict) else [wrapper]

    def _see_losses(self, model: nn.Module, inputs: tuple, output: Any) -> None:
        if not model.training or not isinstance(output, dict):
            return
        for name, value in output.items():
            if 'loss' in name:
                for loss in value if isinstance(value, (list, tuple)) else [value]:
                    zero = loss.detach().float().sum() * 0
                    self._losses = zero if self._losses is None else self._losses + zero

    def _before_step(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        params = [p for group in optimizer.param_groups for p in group['params']
                  if p.grad is not None]
        # Multiplies by 1.
        norm = nn.utils.clip_grad_norm_(params, float('inf'))
        self._decide(norm)
        if not all(self._verdict):
            # An optimizer passes over parameters without gradient.
            for p in params:
                p.grad = None

    def _decide(self, norm: Tensor) -> None:
        losses = self._losses if self._losses is not None else torch.zeros_like(norm)
        finite = torch.stack([losses.to(norm.device).isfinite(), norm.isfinite()]).to(torch.uint8)
        self._own_losses_finite = bool(finite[0])
        if is_distributed():
            all_reduce(finite, 'min')
        verdict = [bool(value) for value in finite]
        # With several optimizers one bad one condemns the iteration.
        self._verdict = [a and b for a, b in zip(self._verdict or [True, True], verdict)]

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self._verdict = None
        self._buffers = [(buffer, buffer.clone()) for buffer in runner.model.buffers()]

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None,
                         outputs: Optional[dict] = None) -> None:
        stepped = self._verdict is not None
        if not stepped:
            # Gradients are still being accumulated, or the scaler has skipped the step.
            self._decide(torch.tensor(float('inf') if self._overflows(runner) else 0.))
        losses_finite, gradients_finite = self._verdict
        if all(wrapper.should_update() for wrapper in self._wrappers(runner)):
            self._losses = None
        if losses_finite and gradients_finite:
            self.in_a_row = 0 if stepped else self.in_a_row
            return
        for buffer, before in self._buffers:
            buffer.data.copy_(before)
        self.in_a_row += 1
        self.skipped += 1
        what = 'gradient' if losses_finite else 'loss'
        if losses_finite or not self._own_losses_finite:
            paths = image_paths(data_batch)
            # Errors are logged by every rank.
            runner.logger.error(
                f'Iteration {runner.iter + 1}: the {what} is not finite; the step is skipped '
                f'({self.in_a_row} in a row, {self.skipped} in all). Its images: '
                f'{", ".join(paths) or "their pipeline packs no img_path"}')
        if self.in_a_row >= self.max_in_a_row:
            raise UserError(
                f'the {what} was not finite in {self.in_a_row} iterations in a row. Look at the '
                'images that the log names, lower the learning rate, or train without --amp; then '
                '--resume goes on from the newest checkpoint, which is from before')

    def _overflows(self, runner: Runner) -> bool:
        """Whether gradients overflow by themselves: a scaler has gone below 1."""
        return any(wrapper.loss_scaler.get_scale() < 1 for wrapper in self._wrappers(runner)
                   if hasattr(wrapper, 'loss_scaler'))
