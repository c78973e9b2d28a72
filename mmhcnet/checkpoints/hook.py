"""mmengine's checkpoint hook, with files that are never lost."""

import os
import re
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import CheckpointHook as _CheckpointHook
from mmengine.runner import Runner
from torch import Tensor

from mmhcnet.errors import UserError
from mmhcnet.optim_wrappers import wrappers_of
from mmhcnet.registry import HOOKS

from .files import (
    FolderInUse,
    change_record,
    fault_of,
    lock_folder,
    read_record,
    remove_leftovers,
    write_file,
)
from .fitting import fit, weights_of
from .keeping import kept
from .locate import NAMES, newest_intact, place_of
from .plain import plain, with_logs

# What mmengine takes from a checkpoint when it resumes.
_RESUMED = dict(meta=('epoch', 'iter'), message_hub=('log_scalars', 'runtime_info', 'resumed_keys'))


class _NotFinite(Exception):
    """Names a weight."""


@HOOKS.register_module()
class CheckpointHook(_CheckpointHook):
    """Save checkpoints so that at every instant the newest intact one is on the disk.

    The arguments are those of mmengine's hook. Beyond it:

    - A file is written next to its place, flushed, read back and renamed; size and sha256 are
      recorded next to it. An old checkpoint is removed after the new one is written, and so is the
      best one.
    - Only files that this run wrote, to its own folder, are removed, and no two runs write to one
      folder at the same time.
    - Weights that are not finite are not written. While :class:`mmhcnet.FiniteHook` counts steps,
      an old checkpoint stays until as many have succeeded after a newer one as may be skipped in a
      row: weights that a step has ruined replace no good ones.
    - Resuming without a path takes the newest intact checkpoint and logs which it passed
      over. A given path is checked too.
    - It holds plain data, numbers, text, containers and tensors, so that any program reads it with
      ``torch.load(..., weights_only=True)``.
    - If one cannot be written (disk full), training goes on, with an error in the log and the
      former checkpoints intact. The run ends with an error if the last one could not be written.

    With ``backend_args`` of a remote storage, writing is left to that storage.

    Raises:
        TypeError: An argument that mmengine's hook does not have.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # mmengine keeps them until the first checkpoint and fails there.
        for name in self.args:
            raise TypeError(
                f"CheckpointHook.__init__() got an unexpected keyword argument '{name}'"
            )
        if self.backend_args is None and self.file_client_args is None:
            self.backend_args = dict(backend='mmhcnet.checkpoint')
        # What could not be written at the last try -> why.
        self._write_errors: dict[str, str] = {}
        # Objects that are not plain data, as already warned of.
        self._objects: list[str] = []
        # Paths of what this process wrote; numbers of the checkpoints that the run has on the disk,
        # oldest first; of each how many training steps had succeeded before it.
        self._wrote: set[str] = set()
        self._steps: list[int] = []
        self._succeeded: dict[int, int] = {}
        self._lock: TextIO | None = None

    def before_run(self, runner: Runner) -> None:
        # The runner loads right after this stage.
        if not runner._resume:
            return
        found: list[str | None] = [None, None]
        if is_main_process():
            found = list(self._choose(runner))
        broadcast_object_list(found)
        path, error = found
        if error:
            raise UserError(error)
        runner._load_from = path
        runner._resume = path is not None

    def _choose(self, runner: Runner) -> tuple[str | None, str | None]:
        """The checkpoint to resume from, or None to start from scratch; and why there is none."""
        if runner._load_from is not None:
            fault = None if '://' in runner._load_from else fault_of(runner._load_from)
            return runner._load_from, fault and (
                f"cannot resume from '{runner._load_from}': {fault}. Leave the path out to take "
                'the newest intact checkpoint of the work directory'
            )
        folder, names = place_of(runner.work_dir, self.out_dir, self.filename_tmpl)
        path, skipped = newest_intact(folder, names)
        for line in skipped:
            runner.logger.warning(f'Not resumed from {line}')
        if path is None and skipped:
            return None, (
                f'none of the {len(skipped)} checkpoints in {folder} is intact '
                f'({"; ".join(skipped)}). Move them away to start from scratch'
            )
        if path is None:
            runner.logger.info(f'No checkpoint in {folder}: training starts from scratch.')
        else:
            runner.logger.info(f'Resuming from {path}, the newest intact checkpoint.')
        return path and str(path), None

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if runner._resume:
            self._check_resumed(
                runner, [key for key in _RESUMED if not isinstance(checkpoint.get(key), dict)]
            )
        weights = weights_of(checkpoint)
        found = fit(runner.model, weights)
        # The optimizer's state would not fit a weight that was resized.
        other = [*found.missing, *found.other_shape, *found.resized]
        if runner._resume and (found.refusal or other):
            why = found.refusal or (
                f'{len(other)} weights are missing or have another shape, as {other[0]}'
            )
            raise UserError(
                f"cannot resume from '{runner._load_from}': it is of another model "
                f'({why}). Resume with the config that wrote it'
            )
        if not found.matched:
            raise UserError(
                found.refusal
                or (
                    f"no weight of the model is in '{runner._load_from}', which holds "
                    f'{", ".join(list(weights)[:3])}, ...: give a checkpoint of the model in the '
                    'config'
                )
            )
        if runner._resume:
            self._check_resumed(
                runner,
                [
                    f'{key}.{part}'
                    for key, parts in _RESUMED.items()
                    for part in parts
                    if part not in checkpoint[key]
                ],
            )
            if 'optimizer' not in checkpoint:
                runner.logger.warning(
                    f'{runner._load_from} holds no state of the optimizer, as it '
                    'is with the best checkpoint: its momenta start from zero.'
                )
            hub = checkpoint['message_hub']
            hub['log_scalars'] = with_logs(hub['log_scalars'])

    @staticmethod
    def _check_resumed(runner: Runner, lacks: list[str]) -> None:
        if lacks:
            raise UserError(
                f"cannot resume from '{runner._load_from}': it holds weights only (no "
                f'{", no ".join(lacks)}). To start from them, give it as '
                '--cfg-options load_from=... without --resume'
            )

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        for name, value in weights_of(checkpoint).items():
            if isinstance(value, Tensor) and not value.isfinite().all():
                raise _NotFinite(name)
        for key in checkpoint:
            checkpoint[key], objects = plain(checkpoint[key], key)
            for found in set(objects).difference(self._objects):
                runner.logger.warning(
                    f'The checkpoints hold an object that is not plain data ({found}), and reading '
                    'them takes --trust-checkpoint: let the hook that adds it put numbers, text, '
                    'containers or tensors there'
                )
                self._objects.append(found)

    def before_train(self, runner: Runner) -> None:
        resumed = runner._load_from if runner._resume else None
        if is_main_process() and resumed and '://' not in resumed:
            # A killed run may not have come to it, and the file that it names is removed next.
            write_file(Path(runner.work_dir, 'last_checkpoint'), resumed.encode())
        if resumed:
            self._check_optimizer(runner)
        hub = runner.message_hub
        # A copied run has it in common with the original, a run that starts from scratch with none.
        self._run = str(hub.get_info('run', uuid.uuid4().hex))
        hub.update_info('run', self._run)
        self._local = isinstance(self.backend_args, dict) and (
            self.backend_args.get('backend') == 'mmhcnet.checkpoint'
        )
        if self._local:
            self.backend_args = dict(self.backend_args, run=self._run)
        # A checkpoint names files of the folder that it was written to, and mmengine removes them:
        # of its list only what this run wrote to its own folder is taken over.
        listed = {
            key: hub.pop_info(key)
            for key in list(hub.runtime_info)
            if key in ('keep_ckpt_ids', 'interim_ckpt', 'last_ckpt') or key.startswith('best_ckpt')
        }
        super().before_train(runner)
        self._take_folder()
        steps = listed.pop('keep_ckpt_ids', None)
        self._steps = [
            step
            for step in (steps if isinstance(steps, list) else [])
            if type(step) is int and self._is_own(self._path(step))
        ]
        for key, path in listed.items():
            own = self._in_out_dir(os.path.basename(str(path)))
            if path and self._is_own(own):
                hub.update_info(key, own)
                metric = key[len('best_ckpt_') :] or None
                if self.save_best and key.startswith('best_ckpt') and metric in self._best():
                    self._set_best({metric: own})
        if is_main_process() and self._local:
            for name in remove_leftovers(self.out_dir, self.filename_tmpl):
                runner.logger.info(f'Removed {name}, left by a killed process.')
            for path in filter(None, self._best().values() if self.save_best else ()):
                self._remove_older_best(path)

    @staticmethod
    def _check_optimizer(runner: Runner) -> None:
        """torch takes over settings of another class of optimizer, and fails in the first step."""
        for each in wrappers_of(runner):
            lacks = [
                key
                for group in each.optimizer.param_groups
                for key in each.optimizer.defaults
                if key not in group
            ]
            if lacks:
                raise UserError(
                    f"cannot resume from '{runner._load_from}': it is of another optimizer, "
                    f"without '{lacks[0]}'. Resume with the optimizer that it was trained with, or "
                    'give it as --cfg-options load_from=... without --resume, to start from its '
                    'weights'
                )

    def _take_folder(self) -> None:
        taken = [None]
        if is_main_process() and self._local:
            try:
                self._lock = lock_folder(self.out_dir)
            except FolderInUse as other:
                taken = [str(other)]
        broadcast_object_list(taken)
        if taken[0]:
            raise UserError(
                f"another run ({taken[0]}) writes its checkpoints to '{self.out_dir}': "
                'wait for its end, or give another --work-dir'
            )

    def _remove_older_best(self, path: str) -> None:
        """What a process that was killed between writing the best checkpoint and removing the
        former one has left. A later one, of a run that goes on from an earlier moment, stays."""
        names = re.compile(
            '(best_.+_)' + r'(\d+)'.join(map(re.escape, self.filename_tmpl.split('{}')))
        )
        best = names.fullmatch(os.path.basename(path))
        if best is None:
            return
        for name in os.listdir(self.out_dir):
            other = names.fullmatch(name)
            if other and other[1] == best[1] and int(other[2]) < int(best[2]):
                self._remove(self._in_out_dir(name))

    def _in_out_dir(self, name: str) -> str:
        return str(self.file_backend.join_path(self.out_dir, name))

    def _path(self, step: int) -> str:
        return self._in_out_dir(self.filename_tmpl.format(step))

    def _is_own(self, path: str) -> bool:
        """Whether this run wrote the file, as far as anybody can tell."""
        return path in self._wrote or self._local and read_record(path).get('run') == self._run

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        # More than were asked for are there until the newest is proved.
        if 0 < self.max_keep_ckpts < len(self._steps) and self._proved(runner, self._steps[-1]):
            self._remove_old(partial(self._proved, runner))

    def after_train(self, runner: Runner) -> None:
        if self._write_errors:
            raise UserError(f'training has ended, but {"; ".join(self._write_errors.values())}')
        super().after_train(runner)
        if not any(
            hook.recently_skipped(runner)
            for hook in runner.hooks
            if hasattr(hook, 'recently_skipped')
        ):
            self._remove_old(lambda step: True)
        if self._lock is not None:
            self._lock.close()

    def _proved(self, runner: Runner, step: int) -> bool:
        """Whether as many training steps have succeeded after a checkpoint as may be skipped in a
        row; true where no hook counts them."""
        for hook in runner.hooks:
            if hasattr(hook, 'recently_skipped'):
                hook.settle(runner)
                return hook.succeeded - self._succeeded.get(step, 0) >= hook.max_in_a_row
        return True

    def doubt_unproved(self, runner: Runner) -> str | None:
        """Mark the checkpoints that may hold ruined weights, so that no run resumes from them.

        Returns:
            str: The checkpoint that a resumed run goes on from, or None if there is none.
        """
        doubtful = [step for step in self._steps if not self._proved(runner, step)]
        if doubtful == self._steps:
            # The oldest is from before.
            doubtful = doubtful[1:]
        if is_main_process() and self._local:
            for step in doubtful:
                change_record(
                    self._path(step),
                    doubt='training steps soon after it were skipped, so its weights may be ruined',
                )
            newest, _ = newest_intact(self.out_dir, (self.filename_tmpl, *NAMES))
            return newest and str(newest)
        return None

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        hub = runner.message_hub
        # What is removed next stays listed in the checkpoint: after a kill in between, the resumed
        # run removes it.
        steps = self._steps if step in self._steps else [*self._steps, step]
        path, previous = self._path(step), self.last_ckpt
        hub.update_info('keep_ckpt_ids', steps)
        hub.update_info('last_ckpt', path)

        def write():
            runner.save_checkpoint(
                self.out_dir,
                self.filename_tmpl.format(step),
                self.file_client_args,
                save_optimizer=self.save_optimizer,
                save_param_scheduler=self.save_param_scheduler,
                meta=meta,
                by_epoch=self.by_epoch,
                backend_args=self.backend_args,
            )
            if is_main_process():
                # For mmengine's own tools; it is not what resuming relies on.
                write_file(Path(runner.work_dir, 'last_checkpoint'), path.encode())

        if not self._written(runner, 'the checkpoint', write):
            hub.update_info('keep_ckpt_ids', self._steps)
            hub.update_info('last_ckpt', previous)
            return
        self.last_ckpt = path
        self._wrote.add(path)
        self._steps = steps
        self._succeeded.setdefault(
            step,
            next((hook.succeeded for hook in runner.hooks if hasattr(hook, 'recently_skipped')), 0),
        )
        interim = hub.pop_info('interim_ckpt', None)
        if interim:
            self._remove(interim)
        self._remove_old(partial(self._proved, runner))

    def _remove_old(self, proved: Callable[[int], bool]) -> None:
        stay = kept(self._steps, self.max_keep_ckpts, proved)
        for step in self._steps:
            if step not in stay:
                self._remove(self._path(step))
        self._steps = stay

    def save_now(self, runner: Runner) -> str | None:
        """Write a checkpoint after an iteration, whenever it is; returns the path if that worked.

        In a run that saves by epochs it stays next to the others until the next of them is written.
        """
        step = runner.iter + 1
        meta = dict(epoch=runner.epoch, iter=step)
        if not self.by_epoch:
            self._save_checkpoint_with_step(runner, step, meta)
            return None if self._write_errors else self.last_ckpt
        path = self._in_out_dir(NAMES[1].format(step))
        runner.message_hub.update_info('interim_ckpt', path)
        written = self._written(
            runner,
            'the checkpoint',
            lambda: runner.save_checkpoint(
                self.out_dir,
                NAMES[1].format(step),
                self.file_client_args,
                save_optimizer=self.save_optimizer,
                save_param_scheduler=self.save_param_scheduler,
                meta=meta,
                by_epoch=False,
                backend_args=self.backend_args,
            ),
        )
        if written:
            self._wrote.add(path)
        return path if written else None

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        if not self.save_best:
            return
        for name in self.key_indicators:
            if name != 'auto' and name not in metrics:
                raise UserError(
                    f"save_best of the checkpoint hook is '{name}', and the validation reports "
                    f'{", ".join(map(repr, metrics)) or "nothing"}: set it to one of them'
                )
        hub = runner.message_hub
        before = {
            key: hub.get_info(key)
            for key in hub.runtime_info
            if key.startswith(('best_score', 'best_ckpt'))
        }
        old = self._best()
        # mmengine removes the former best one first, unless it knows of none.
        self._set_best(dict.fromkeys(old))
        written = self._written(
            runner,
            'the best checkpoint',
            lambda: super(CheckpointHook, self)._save_best_checkpoint(runner, metrics),
        )
        if not written:
            for key in [
                key for key in hub.runtime_info if key.startswith(('best_score', 'best_ckpt'))
            ]:
                hub.pop_info(key)
            for key, value in before.items():
                hub.update_info(key, value)
        new = self._best() if written else {}
        self._wrote.update(filter(None, new.values()))
        self._set_best({key: new.get(key) or path for key, path in {**new, **old}.items()})
        for key, path in old.items():
            if path and new.get(key) and new[key] != path:
                self._remove(path)

    def _best(self) -> dict:
        """Metric -> path of its best checkpoint, or None."""
        if len(self.key_indicators) == 1:
            return {None: self.best_ckpt_path}
        return dict(self.best_ckpt_path_dict)

    def _set_best(self, paths: dict) -> None:
        if len(self.key_indicators) == 1:
            self.best_ckpt_path = paths[None]
        else:
            self.best_ckpt_path_dict.update(paths)

    def _written(self, runner: Runner, what: str, write: Callable[[], None]) -> bool:
        """Call ``write``; an error of the disk is logged."""
        self._write_errors.pop(what, None)
        try:
            write()
        except _NotFinite as error:
            self._write_errors[what] = (
                f"{what} was not written, because the weight '{error}' is "
                'not finite: lower the learning rate'
            )
            runner.logger.error(f'{self._write_errors[what]}. The former checkpoints are intact.')
            return False
        except OSError as error:
            self._write_errors[what] = (
                f'{what} could not be written ({error}): free space in '
                f'{self.out_dir} or give access to it'
            )
            runner.logger.error(
                f'{self._write_errors[what]}. Training goes on; the former checkpoints are intact.'
            )
            return False
        return True

    def _remove(self, path: str) -> None:
        if is_main_process() and self._is_own(path) and self.file_backend.isfile(path):
            self.file_backend.remove(path)
