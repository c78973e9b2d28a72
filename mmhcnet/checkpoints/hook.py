"""mmengine's checkpoint hook, with files that are never lost."""
from collections import deque
from pathlib import Path
from typing import Callable, Dict, List, Optional, Tuple

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.fileio import get_file_backend
from mmengine.hooks import CheckpointHook as _CheckpointHook
from mmengine.runner import Runner

from mmhcnet.errors import UserError
from mmhcnet.registry import HOOKS

from .files import fault_of, remove_leftovers, write_file
from .fitting import fit, weights_of
from .locate import NAMES, newest_whole, place_of
from .plain import plain, with_logs

# What mmengine takes from a checkpoint when it resumes.
_RESUMED = dict(meta=('epoch', 'iter'), message_hub=('log_scalars', 'runtime_info', 'resumed_keys'))


@HOOKS.register_module()
class CheckpointHook(_CheckpointHook):
    """Save checkpoints so that at every instant the newest whole one is on the disk.

    The arguments are those of mmengine's hook. Beyond it:

    - A file is written beside its place, flushed, read back and renamed; size and sha256 are
      recorded beside it. An old checkpoint is removed after the new one stands, the best one too.
    - Resuming without a path takes the newest checkpoint that is whole and logs which it passed
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
                f"CheckpointHook.__init__() got an unexpected keyword argument '{name}'")
        if self.backend_args is None and self.file_client_args is None:
            self.backend_args = dict(backend='mmhcnet.checkpoint')
        # What could not be written at the last try -> why.
        self._write_errors: Dict[str, str] = {}
        # Objects that are not plain data, as already warned of.
        self._objects: List[str] = []

    def before_run(self, runner: Runner) -> None:
        # The runner loads right after this stage.
        if not runner._resume:
            return
        found: List[Optional[str]] = [None, None]
        if is_main_process():
            found = list(self._choose(runner))
        broadcast_object_list(found)
        path, error = found
        if error:
            raise UserError(error)
        runner._load_from = path
        runner._resume = path is not None

    def _choose(self, runner: Runner) -> Tuple[Optional[str], Optional[str]]:
        """The checkpoint to resume from, or None to start anew; and why there is none."""
        if runner._load_from is not None:
            fault = None if '://' in runner._load_from else fault_of(runner._load_from)
            return runner._load_from, fault and (
                f"cannot resume from '{runner._load_from}': {fault}. Leave the path out to take "
                'the newest checkpoint of the work directory that is whole')
        folder, names = place_of(runner.work_dir, self.out_dir, self.filename_tmpl)
        path, skipped = newest_whole(folder, names)
        for line in skipped:
            runner.logger.warning(f'Not resumed from {line}')
        if path is None and skipped:
            return None, (f'none of the {len(skipped)} checkpoints in {folder} is whole '
                          f'({"; ".join(skipped)}). Move them away to start anew')
        if path is None:
            runner.logger.info(f'No checkpoint in {folder}: training starts anew.')
        else:
            runner.logger.info(f'Resuming from {path}, the newest checkpoint that is whole.')
        return path and str(path), None

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if runner._resume:
            lacks = [f'{key}.{part}' for key, parts in _RESUMED.items() for part in parts
                     if not isinstance(checkpoint.get(key), dict) or part not in checkpoint[key]]
            if lacks:
                raise UserError(f"cannot resume from '{runner._load_from}': it holds weights only "
                                f'(no {", no ".join(lacks)}). To start from them, give it as '
                                '--cfg-options load_from=... without --resume')
            if 'optimizer' not in checkpoint:
                runner.logger.warning(f'{runner._load_from} holds no state of the optimizer, as it '
                                      'is with the best checkpoint: its momenta start from zero.')
            hub = checkpoint['message_hub']
            hub['log_scalars'] = with_logs(hub['log_scalars'])
        weights = weights_of(checkpoint)
        found = fit(runner.model, weights)
        # The optimizer's state would not fit a weight that was resized.
        other = [*found.missing, *found.other_shape, *found.resized]
        if runner._resume and (found.refusal or other):
            why = found.refusal or (f'{len(other)} weights are missing or have another shape, as '
                                    f'{other[0]}')
            raise UserError(f"cannot resume from '{runner._load_from}': it is of another model "
                            f'({why}). Resume with the config that wrote it')
        if not found.matched:
            raise UserError(found.refusal or (
                f"no weight of the model is in '{runner._load_from}', which holds "
                f'{", ".join(list(weights)[:3])}, ...: give a checkpoint of the model in the '
                'config'))

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        for key in checkpoint:
            checkpoint[key], objects = plain(checkpoint[key], key)
            for found in set(objects).difference(self._objects):
                runner.logger.warning(
                    f'The checkpoints hold an object that is not plain data ({found}), and reading '
                    'them takes --trust-checkpoint: let the hook that adds it put numbers, text, '
                    'containers or tensors there')
                self._objects.append(found)

    def before_train(self, runner: Runner) -> None:
        resumed = runner._load_from if runner._resume else None
        if is_main_process() and resumed and '://' not in resumed:
            # A killed run may not have come to it, and the file that it names is removed next.
            write_file(Path(runner.work_dir, 'last_checkpoint'), resumed.encode())
        super().before_train(runner)
        if is_main_process() and isinstance(self.backend_args, dict) and (
                self.backend_args.get('backend') == 'mmhcnet.checkpoint'):
            for name in remove_leftovers(self.out_dir):
                runner.logger.info(f'Removed {name}, left by a killed process.')

    def after_train(self, runner: Runner) -> None:
        if self._write_errors:
            raise UserError(f'training has ended, but {"; ".join(self._write_errors.values())}')
        super().after_train(runner)

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        hub = runner.message_hub
        kept = list(self.keep_ckpt_ids) if self.max_keep_ckpts > 0 else []
        # The one to be removed stays listed in the checkpoint: after a kill in between, the
        # resumed run removes it.
        steps = kept if step in kept else [*kept, step]
        path = get_file_backend(self.out_dir, backend_args=self.backend_args).join_path(
            self.out_dir, self.filename_tmpl.format(step))
        previous = self.last_ckpt
        if self.max_keep_ckpts > 0:
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
                backend_args=self.backend_args)
            if is_main_process():
                # For mmengine's own tools; it is not what resuming relies on.
                write_file(Path(runner.work_dir, 'last_checkpoint'), path.encode())

        if not self._written(runner, 'the checkpoint', write):
            if self.max_keep_ckpts > 0:
                hub.update_info('keep_ckpt_ids', kept)
            hub.update_info('last_ckpt', previous)
            return
        self.last_ckpt = path
        interim = hub.pop_info('interim_ckpt', None)
        if interim:
            self._remove(interim)
        if self.max_keep_ckpts > 0:
            self.keep_ckpt_ids = deque(steps, self.max_keep_ckpts)
            for old in steps[:-self.max_keep_ckpts]:
                self._remove(self.file_backend.join_path(
                    self.out_dir, self.filename_tmpl.format(old)))

    def save_now(self, runner: Runner) -> Optional[str]:
        """Write a checkpoint after an iteration, whenever it is; returns the path if that worked.

        In a run that saves by epochs it lies beside the others until the next of them stands.
        """
        step = runner.iter + 1
        meta = dict(epoch=runner.epoch, iter=step)
        if not self.by_epoch:
            self._save_checkpoint_with_step(runner, step, meta)
            return None if self._write_errors else self.last_ckpt
        path = self.file_backend.join_path(self.out_dir, NAMES[1].format(step))
        runner.message_hub.update_info('interim_ckpt', path)
        written = self._written(runner, 'the checkpoint', lambda: runner.save_checkpoint(
            self.out_dir, NAMES[1].format(step), self.file_client_args,
            save_optimizer=self.save_optimizer, save_param_scheduler=self.save_param_scheduler,
            meta=meta, by_epoch=False, backend_args=self.backend_args))
        return path if written else None

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        if not self.save_best:
            return
        hub = runner.message_hub
        before = {key: hub.get_info(key) for key in hub.runtime_info
                  if key.startswith(('best_score', 'best_ckpt'))}
        old = self._best()
        # mmengine removes the former best one first, unless it knows of none.
        self._set_best(dict.fromkeys(old))
        written = self._written(
            runner, 'the best checkpoint',
            lambda: super(CheckpointHook, self)._save_best_checkpoint(runner, metrics))
        if not written:
            for key in [key for key in hub.runtime_info
                        if key.startswith(('best_score', 'best_ckpt'))]:
                hub.pop_info(key)
            for key, value in before.items():
                hub.update_info(key, value)
        new = self._best() if written else {}
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
        except OSError as error:
            self._write_errors[what] = (f'{what} could not be written ({error}): free space in '
                                        f'{self.out_dir} or give access to it')
            runner.logger.error(f'{self._write_errors[what]}. Training goes on; the former '
                                'checkpoints are intact.')
            return False
        return True

    def _remove(self, path: str) -> None:
        if is_main_process() and self.file_backend.isfile(path):
            self.file_backend.remove(path)
