"""Atomic checkpoints: a file is written completely before it replaces another one or an older one is deleted."""

from __future__ import annotations

import math
import os
import tempfile
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook
from mmseg.registry import HOOKS

from volo_seg.errors import UserError
from volo_seg.io import PART, WriteError, atomic_path, atomic_write, check_writable, write_failure

LAST = 'last_checkpoint'
RESCUED = 'rescued_checkpoint'
"""In the work dir: the checkpoint of a failed last save, which is in the folder for temporary files."""
OTHER_WORK_DIR = 'give another by --work-dir'


class SaveError(UserError):
    """A checkpoint could not be written; an existing file is unchanged."""


class NonFiniteError(SaveError):
    """A checkpoint is not saved, because its weights or the last loss are NaN or infinite."""


def check_finite(content: Mapping[str, Any], path: Path) -> None:
    """Check that the weights in ``content``, of the checkpoint ``path``, and the last loss are finite.

    Raises:
        NonFiniteError: They are not.
    """
    states = [content[key] for key in ('state_dict', 'ema_state_dict') if key in content]
    tensors = [pair for state in states for pair in state.items() if isinstance(pair[1], torch.Tensor)]
    bad = [name for name, value in tensors if not torch.isfinite(value).all()]
    losses = content['message_hub']['log_scalars'].get('train/loss')
    if not bad and (losses is None or math.isfinite(losses.current())):
        return
    reason = (
        f'{len(bad)} of its tensors hold NaN or inf, first {bad[0]!r}' if bad else f'the loss is {losses.current()}'
    )
    raise NonFiniteError(f'the checkpoint {str(path)!r} is not saved, because {reason}')


def write_checkpoint(content: Mapping[str, Any], path: Path) -> None:
    """Write ``content`` to a temporary file in the same folder, flush it to disk, and rename it to ``path``.

    Raises:
        SaveError: The file cannot be written.
    """
    try:
        with atomic_path(path) as part, open(part, 'wb') as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
    except (WriteError, RuntimeError) as error:
        raise SaveError(
            f'the checkpoint {str(path)!r} cannot be written ({write_failure(error, path.parent)})'
        ) from error


def recorded_checkpoint(work_dir: str | Path, *, record: str = LAST) -> str:
    """Return the path or address in the file ``record`` of ``work_dir``; empty if there is none."""
    try:
        return Path(work_dir, record).read_text(encoding='utf-8').strip()
    except (OSError, UnicodeDecodeError):
        return ''


def last_checkpoint(work_dir: str | Path, *, record: str = LAST) -> Path | None:
    """Return the last checkpoint of ``work_dir``, also after the folder was moved; None if there is none.

    With ``record=RESCUED``, return the checkpoint of a failed last save.
    """
    folder, recorded = Path(work_dir), Path(recorded_checkpoint(work_dir, record=record))
    places = (folder / recorded.name, recorded) if record == LAST else (recorded, folder / recorded.name)
    return next((path for path in places if recorded.name and path.is_file()), None)


def remove_parts(folder: Path) -> None:
    """Remove the temporary files that a killed process left in ``folder``."""
    for name in ('iter_*.pth', 'epoch_*.pth', 'best_*.pth', LAST, RESCUED, 'run.json'):
        for part in folder.glob(f'.{name}*{PART}'):
            with suppress(OSError):
                part.unlink(missing_ok=True)


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """MMEngine's ``CheckpointHook`` that deletes an old checkpoint after the new one is saved, not before.

    A failed save is logged and retried at the next interval; training continues. A checkpoint of
    weights or a last loss that are NaN or infinite counts as failed. If the last save fails, the checkpoint is saved in
    the system's folder for temporary files, and the run ends with an error that names it. Checkpoints outside
    ``out_dir`` are not deleted.
    """

    file_backend: Any
    best_ckpt_path: Any

    def __init__(self, *args: Any, **settings: Any) -> None:
        """Take MMEngine's arguments."""
        super().__init__(*args, **settings)
        self.failed: SaveError | None = None
        self.saved_step: int | None = None

    def before_train(self, runner: Any) -> None:
        """Make and lock the folder, and remove temporary files of a killed run.

        Raises:
            UserError: The folder cannot be written.
        """
        super().before_train(runner)
        if is_main_process() and isinstance(self.file_backend, LocalBackend):
            check_writable(self.out_dir, what='checkpoint.out_dir', fix='give another folder')
            os.makedirs(self.out_dir, exist_ok=True)
            if not os.path.samefile(self.out_dir, runner.work_dir):
                runner.lock(self.out_dir)
            remove_parts(Path(self.out_dir))

    def after_val_epoch(self, runner: Any, metrics: dict[str, Any] | None = None) -> None:
        """Save the best checkpoint; a validation without training has nothing to save."""
        if hasattr(self, 'file_backend'):
            super().after_val_epoch(runner, metrics)

    def after_train(self, runner: Any) -> None:
        """Publish as MMEngine does; retry a failed save in the folder for temporary files.

        Raises:
            SaveError: The last checkpoint is not in ``out_dir``.
        """
        super().after_train(runner)
        if self.failed is not None:
            self._rescue(runner, step=runner.epoch if self.by_epoch else runner.iter)

    def save_now(self, runner: Any, *, step: int) -> None:
        """Save after ``step`` iterations, independent of the interval.

        Raises:
            SaveError: The checkpoint is not in ``out_dir``.
        """
        if self.saved_step != step:
            self._save_checkpoint_with_step(runner, step, meta=dict(epoch=runner.epoch, iter=step))
        if self.failed is not None:
            self._rescue(runner, step=step)

    def _save_checkpoint_with_step(self, runner: Any, step: int, meta: dict[str, Any]) -> None:
        filename = self.filename_tmpl.format(step)
        before = self.last_ckpt, list(getattr(self, 'keep_ckpt_ids', ()))
        kept = [*(old for old in before[1] if old != step), step]
        dropped = kept[: -self.max_keep_ckpts] if self.max_keep_ckpts > 0 else []
        self._set_saved(runner, self.file_backend.join_path(self.out_dir, filename), kept[len(dropped) :])
        try:
            self._save(runner, self.out_dir, filename, meta)
        except SaveError as error:
            self._set_saved(runner, *before)
            self.failed = error
            runner.logger.warning(f'{error}; training continues and saves again at the next interval')
            return
        self.failed, self.saved_step = None, step
        if is_main_process():
            atomic_write(Path(runner.work_dir, LAST), str(self.last_ckpt).encode())
            Path(runner.work_dir, RESCUED).unlink(missing_ok=True)
            for old in dropped:
                self._delete(self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(old)))

    def _save(self, runner: Any, folder: str, filename: str, meta: dict[str, Any]) -> None:
        given = folder == self.out_dir  # the folder for temporary files has no storage backend
        runner.save_checkpoint(
            folder,
            filename,
            self.file_client_args if given else None,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=dict(meta),
            by_epoch=self.by_epoch,
            backend_args=self.backend_args if given else None,
            **self.args,
        )

    def _set_saved(self, runner: Any, last: str | None, kept: list[int]) -> None:
        """Store the last and the kept checkpoints in the message hub, which each checkpoint contains."""
        self.last_ckpt = last
        runner.message_hub.runtime_info.pop('last_ckpt', None)
        if last is not None:
            runner.message_hub.update_info('last_ckpt', last)
        if self.max_keep_ckpts > 0:
            self.keep_ckpt_ids = deque(kept, self.max_keep_ckpts)
            runner.message_hub.update_info('keep_ckpt_ids', kept)

    def _save_best_checkpoint(self, runner: Any, metrics: dict[str, Any]) -> None:
        info = runner.message_hub.runtime_info
        before = {key: info[key] for key in info if key.startswith('best_')}
        path, paths = getattr(self, 'best_ckpt_path', None), dict(getattr(self, 'best_ckpt_path_dict', {}))
        # MMEngine deletes the previous files before it saves; without their paths, it deletes nothing
        self.best_ckpt_path, self.best_ckpt_path_dict = None, dict.fromkeys(paths)
        try:
            super()._save_best_checkpoint(runner, metrics)
        except SaveError as error:
            for key in [key for key in info if key.startswith('best_')]:
                info.pop(key)
            info.update(before)
            self.best_ckpt_path, self.best_ckpt_path_dict = path, paths
            runner.logger.warning(f'{error}; the previous best checkpoint is kept')
            return
        self.best_ckpt_path = self.best_ckpt_path or path
        self.best_ckpt_path_dict = {key: new or paths[key] for key, new in self.best_ckpt_path_dict.items()}
        if is_main_process():
            for old in {path, *paths.values()} - {None, self.best_ckpt_path, *self.best_ckpt_path_dict.values()}:
                self._delete(old)

    def _delete(self, path: str) -> None:
        """Delete a checkpoint of ``out_dir``."""
        inside = os.path.dirname(os.path.abspath(path)) == os.path.abspath(self.out_dir)
        if (inside or not isinstance(self.file_backend, LocalBackend)) and self.file_backend.isfile(path):
            self.file_backend.remove(path)

    def _rescue(self, runner: Any, *, step: int) -> None:
        """Save in the folder for temporary files, and raise a SaveError that names the file."""
        good = last_checkpoint(runner.work_dir)
        left = f'the last complete checkpoint is {str(good)!r}' if good else 'there is no earlier checkpoint'
        if isinstance(self.failed, NonFiniteError):
            raise NonFiniteError(f'{self.failed}; {left}; lower the learning rate, or set optim_wrapper.clip_grad')
        folder = ['']
        if is_main_process():
            with suppress(OSError):
                folder = [tempfile.mkdtemp(prefix='volo-seg-')]
        broadcast_object_list(folder)
        filename = self.filename_tmpl.format(step)
        meta = dict(epoch=runner.epoch, iter=runner.iter if self.by_epoch else step)
        try:
            if not folder[0]:
                raise SaveError(f'no folder can be made in {tempfile.gettempdir()!r}')
            self._save(runner, folder[0], filename, meta)
        except SaveError as error:
            raise SaveError(f'{self.failed}, and {error}; {left}') from error
        path = os.path.join(folder[0], filename)
        if is_main_process():
            with suppress(WriteError):  # the disk may not even have room for this
                atomic_write(Path(runner.work_dir, RESCUED), os.fsencode(path))
        raise SaveError(f'{self.failed}; it is saved as {path!r}; move it to a folder with free space')
