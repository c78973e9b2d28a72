"""Training steps with a loss or gradient that is not finite are skipped, and named.

The device that computes a step also decides on it, so that the host need not wait: torch's fused
optimizers leave a step out where the tensor ``found_inf`` is 1, which is how gradient scalers skip
steps, and running statistics are chosen between new and former ones by the same tensor. The host
reads the verdict on an iteration while the device is at work on the next one.
"""

from collections import defaultdict
from typing import Any, NamedTuple, Optional

import torch
from mmengine.dist import all_reduce, is_distributed
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.optim import Optimizer

from mmhcnet.checkpoints.hook import CheckpointHook
from mmhcnet.errors import UserError
from mmhcnet.optim_wrappers import wrappers_of
from mmhcnet.registry import HOOKS


def image_paths(data_batch: Any) -> list[str]:
    """Files that a batch comes from, as far as its pipeline packs ``img_path``."""
    samples = data_batch.get('data_samples') or [] if isinstance(data_batch, dict) else []
    return [str(path) for path in (getattr(sample, 'img_path', None) for sample in samples) if path]


class RunningStatistics:
    """Buffers that change during training, with what they were before the iteration.

    Nothing is copied of a module whose buffers stay the same. torch counts the writes to a tensor;
    batch norm writes its mean and variance uncounted, but counts its batches in a buffer too, so
    the buffers of one module are looked at together.

    Args:
        model (nn.Module): The model.
    """

    def __init__(self, model: nn.Module):
        self._modules = [module for module in model.modules() if module._buffers]
        # Module -> (its buffers, their numbers of writes, their copies).
        self._kept: dict[nn.Module, tuple[list[Tensor], list[int], list[Tensor]]] = {}

    def _changed(self) -> list[tuple[nn.Module, list[Tensor]]]:
        found = []
        for module in self._modules:
            buffers = [buffer for buffer in module._buffers.values() if buffer is not None]
            kept, writes, _ = self._kept.get(module, ((), (), ()))
            if len(kept) != len(buffers) or any(
                old is not new or count != new._version
                for old, new, count in zip(kept, buffers, writes)
            ):
                found.append((module, buffers))
        return found

    @torch.no_grad()
    def keep(self) -> None:
        """Remember what the buffers are now."""
        pairs = []
        for module, buffers in self._changed():
            *_, copies = self._kept.get(module, ((), (), ()))
            if [(old.shape, old.dtype, old.device) for old in copies] != [
                (new.shape, new.dtype, new.device) for new in buffers
            ]:
                copies = [torch.empty_like(buffer) for buffer in buffers]
            pairs += zip(buffers, copies)
            self._kept[module] = buffers, [buffer._version for buffer in buffers], copies
        for news, olds in _alike(pairs):
            _copy(olds, news)

    @torch.no_grad()
    def restore_where(self, bad: Tensor) -> None:
        """Give the buffers that have changed since :meth:`keep` their former values if ``bad``.

        Args:
            bad (Tensor): (), bool.
        """
        pairs = []
        for module, _ in self._changed():
            kept, _, copies = self._kept.get(module, ((), (), ()))
            pairs += zip(kept, copies)
        for news, olds in _alike(pairs):
            chosen = torch.where(
                bad.to(news[0].device),
                *(
                    torch.cat([tensor.reshape(-1) for tensor in tensors])
                    for tensors in (olds, news)
                ),
            )
            parts = chosen.split([buffer.numel() for buffer in news])
            _copy(news, [part.view_as(buffer) for part, buffer in zip(parts, news)])


def _copy(targets: list[Tensor], sources: list[Tensor]) -> None:
    if hasattr(torch, '_foreach_copy_'):
        torch._foreach_copy_(targets, sources)
        return
    # It came about the time of torch 2.1.
    for target, source in zip(targets, sources):
        target.copy_(source)


def _alike(pairs: list[tuple[Tensor, Tensor]]) -> list[tuple[list[Tensor], list[Tensor]]]:
    """Pairs of tensors as pairs of lists, one for each dtype and device."""
    groups = defaultdict(lambda: ([], []))
    for first, second in pairs:
        for group, tensor in zip(groups[first.dtype, first.device], (first, second)):
            group.append(tensor)
    return list(groups.values())


class _Verdict(NamedTuple):
    """On one iteration; ``flags`` are read late.

    Attributes:
        iteration (int): Counted from 1.
        flags (Tensor): (3, ), 1 where something is not finite: losses of any rank, gradients,
            losses of this rank.
        event (torch.cuda.Event, optional): After it ``flags`` are on the host.
        stepped (bool): An optimizer took or left out a step.
        scaled (bool): A gradient scaler had a part in that.
        paths (list[str]): Images of the batch.
    """

    iteration: int
    flags: Tensor
    event: Optional['torch.cuda.Event']
    stepped: bool
    scaled: bool
    paths: list[str]


def _on_its_way(flags: Tensor) -> tuple[Tensor, Optional['torch.cuda.Event']]:
    """A copy of a tensor on the host, and the event after which it is there."""
    if not flags.is_cuda:
        return flags, None
    copy = torch.empty(flags.shape, dtype=flags.dtype, device='cpu', pin_memory=True)
    copy.copy_(flags, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    return copy, event


@HOOKS.register_module()
class FiniteHook(Hook):
    """Skip the step of a batch whose loss or gradient is not finite; stop after many in a row.

    Weights, optimizer state and running statistics stay as they were before the batch, on all
    ranks. The images of the batch are named in the log one iteration later. Under automatic mixed
    precision the gradient scaler's own search for a scale, in which the loss is finite, does not
    count until the scale falls below 1, and running statistics go on in it. A run in which every
    step was skipped ends with an error.

    With an optimizer of torch that is built with ``fused=True`` the host never waits for a step
    (``tools/train.py`` builds it so on a GPU). For any other one, and in the first step, which
    makes the optimizer's state, it waits until the gradients are computed, as gradient scalers do.

    Another hook learns from :meth:`recently_skipped` whether the weights can be trusted, and reads
    the counts ``skipped`` and ``succeeded`` (steps of this process) after :meth:`settle`.

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
        self.succeeded = 0
        self._succeeded_since = 0
        self._handles: list = []
        # Losses of the forward passes since the last look at them.
        self._losses: list[Tensor] = []
        # 1 if one since the last step was not finite; on the device.
        self._own_losses_bad: Tensor | None = None
        # (losses, gradients) on all ranks, 1 where not finite, once a step was tried.
        self._bad: Tensor | None = None
        self._unread: list[_Verdict] = []
        # The optimizer has our found_inf, and not a scaler's.
        self._lent = False

    def before_train(self, runner: Runner) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self._statistics = RunningStatistics(model)
        self._handles = [model.register_forward_hook(self._see_losses)]
        for wrapper in wrappers_of(runner):
            scaled = self._scaled(wrapper)

            def before_step(optimizer, args, kwargs, scaled=scaled):
                self._before_step(optimizer, scaled)

            self._handles += [
                wrapper.optimizer.register_step_pre_hook(before_step),
                wrapper.optimizer.register_step_post_hook(self._after_step),
            ]

    @staticmethod
    def _scaled(wrapper: OptimWrapper) -> bool:
        """Whether a gradient scaler looks for gradients that are not finite."""
        scaler = getattr(wrapper, 'loss_scaler', None)
        return scaler is not None and scaler.is_enabled()

    def _see_losses(self, model: nn.Module, inputs: tuple, output: Any) -> None:
        if not model.training or not isinstance(output, dict):
            return
        for name, value in output.items():
            if 'loss' in name:
                values = value if isinstance(value, (list, tuple)) else [value]
                self._losses += [loss.detach() for loss in values]

    @torch.no_grad()
    def _before_step(self, optimizer: Optimizer, scaled: bool) -> None:
        params = [
            p for group in optimizer.param_groups for p in group['params'] if p.grad is not None
        ]
        if not params:
            return
        found = getattr(optimizer, 'found_inf', None)
        if found is not None:
            # A scaler leaves it to the optimizer to skip.
            bad = found > 0
        elif scaled:
            # A scaler that has found something does not call the optimizer.
            bad = torch.zeros((), dtype=torch.bool, device=params[0].device)
        else:
            norms = torch._foreach_norm([p.grad for p in params])
            # Asking costs less than hundreds of conversions that do nothing.
            if len({(norm.dtype, norm.device) for norm in norms}) > 1:
                norms = [norm.to(norms[0].device, torch.float32) for norm in norms]
            bad = ~torch.stack(norms).norm().isfinite()
        condemned = self._decide(bad)[0].any()
        if self._skips_by_itself(optimizer, len(params)):
            self._lent = found is None
            optimizer.found_inf = condemned.float().to(params[0].device)
        elif condemned:
            # An optimizer passes over parameters without gradient.
            for p in params:
                p.grad = None

    @staticmethod
    def _skips_by_itself(optimizer: Optimizer, params: int) -> bool:
        # In a skipped first step fused SGD would keep momentum that was never written.
        return (
            getattr(optimizer, '_step_supports_amp_scaling', False)
            and all(group.get('fused') for group in optimizer.param_groups)
            and len(optimizer.state) >= params
        )

    def _after_step(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        if self._lent:
            del optimizer.found_inf
            self._lent = False

    def _decide(self, gradients_bad: Tensor) -> tuple[Tensor, Tensor]:
        """Takes in the losses and gradients of a step; returns ``_bad`` and ``_own_losses_bad``."""
        device = gradients_bad.device
        own = self._own_losses_bad
        if self._losses:
            seen = (
                ~torch.stack(
                    [
                        (loss.sum(dtype=torch.float32) if loss.dim() else loss).to(
                            device, torch.float32
                        )
                        for loss in self._losses
                    ]
                )
                .sum()
                .isfinite()
            )
            own = seen if own is None else own.to(device) | seen
            self._losses = []
        elif own is None:
            own = torch.zeros((), dtype=torch.bool, device=device)
        self._own_losses_bad = own
        bad = torch.stack([own.to(device), gradients_bad]).to(torch.uint8)
        if is_distributed():
            all_reduce(bad, 'max')
        # With several optimizers one bad one spoils the iteration.
        self._bad = bad.bool() if self._bad is None else self._bad.to(device) | bad.bool()
        return self._bad, own

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self._bad = None
        self._statistics.keep()

    @torch.no_grad()
    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        wrappers = wrappers_of(runner)
        bad, own = self._bad, self._own_losses_bad
        stepped, scaled = bad is not None, any(map(self._scaled, wrappers))
        complete = all(wrapper.should_update() for wrapper in wrappers)
        if bad is None or own is None:
            # Gradients are still being accumulated, or the scaler has skipped the step.
            device = self._losses[0].device if self._losses else 'cpu'
            gradients_bad = torch.full((), complete and scaled, dtype=torch.bool, device=device)
            bad, own = self._decide(gradients_bad)
        # A scaler's search for a scale says nothing against the batch.
        self._statistics.restore_where(bad[0] if scaled else bad.any())
        flags = torch.cat([bad, own.to(bad.device).reshape(1)])
        self._unread.append(
            _Verdict(runner.iter + 1, *_on_its_way(flags), stepped, scaled, image_paths(data_batch))
        )
        if complete:
            self._own_losses_bad = None
        # Always the one before, and not whatever is there by now, so that all ranks end together.
        self._read(runner, leave=1)

    def after_train_epoch(self, runner: Runner) -> None:
        self.settle(runner)

    def after_train(self, runner: Runner) -> None:
        self.settle(runner)
        for handle in self._handles:
            handle.remove()
        if self.skipped and not self.succeeded:
            raise UserError(
                f'no training step succeeded: the loss or gradient was not finite in all of '
                f'{self.skipped}. Look at the images that the log names and at mean and std of '
                'data_preprocessor, lower the learning rate, or train without --amp'
            )

    def settle(self, runner: Runner) -> None:
        """Read the verdict on every iteration so far, which may mean to wait for the device.

        Raises:
            UserError: Too many steps in a row were skipped.
        """
        self._read(runner, leave=0)

    def recently_skipped(self, runner: Runner) -> bool:
        """Whether a step was skipped and fewer than ``max_in_a_row`` have succeeded since.

        Weights that finite but ruinous steps have led to are followed by steps that are skipped.
        So a checkpoint from before is not to be given up while this is true.
        """
        self.settle(runner)
        return self.skipped > 0 and self._succeeded_since < self.max_in_a_row

    def _read(self, runner: Runner, leave: int) -> None:
        while len(self._unread) > leave:
            verdict = self._unread.pop(0)
            if verdict.event is not None:
                verdict.event.synchronize()
            self._count(runner, verdict, *map(bool, verdict.flags.tolist()))

    def _count(
        self,
        runner: Runner,
        verdict: _Verdict,
        losses_bad: bool,
        gradients_bad: bool,
        own_losses_bad: bool,
    ) -> None:
        if not losses_bad and not gradients_bad:
            if verdict.stepped:
                self.in_a_row = 0
                self.succeeded += 1
                self._succeeded_since += 1
            return
        if not losses_bad and verdict.scaled and not self._overflows(runner):
            return
        self.in_a_row += 1
        self.skipped += 1
        self._succeeded_since = 0
        what = 'loss' if losses_bad else 'gradient'
        if own_losses_bad or not losses_bad:
            # Errors are logged by every rank.
            runner.logger.error(
                f'Iteration {verdict.iteration}: the {what} is not finite; the step is skipped '
                f'({self.in_a_row} in a row, {self.skipped} in all). Its images: '
                f'{", ".join(verdict.paths) or "their pipeline packs no img_path"}'
            )
        if self.in_a_row >= self.max_in_a_row:
            self._unread.clear()
            before = None
            for hook in runner.hooks:
                if isinstance(hook, CheckpointHook):
                    before = hook.doubt_unproved(runner)
            then = (
                f'--resume goes on from {before}, which is from before'
                if before
                else ('start from scratch, because there is no checkpoint from before')
            )
            raise UserError(
                f'the {what} was not finite in {self.in_a_row} iterations in a row. Look at the '
                'images that the log names, lower the learning rate, or train without --amp; then '
                f'{then}'
            )

    def _overflows(self, runner: Runner) -> bool:
        """Whether gradients overflow by themselves: a scaler has gone below 1."""
        return any(
            wrapper.loss_scaler.get_scale() < 1
            for wrapper in wrappers_of(runner)
            if self._scaled(wrapper)
        )
