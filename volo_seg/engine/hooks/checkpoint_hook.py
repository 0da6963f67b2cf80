"""Checkpoints are written whole or not at all, and an old one goes only when the new one stands."""

from __future__ import annotations

import os
import tempfile
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import CheckpointHook
from mmseg.registry import HOOKS

from volo_seg.errors import UserError
from volo_seg.io import PART, WriteError, atomic_path, atomic_write, write_failure

LAST = 'last_checkpoint'
OTHER_WORK_DIR = 'give another by --work-dir'


class SaveError(UserError):
    """A checkpoint could not be written; what stood there before is untouched."""


def write_checkpoint(content: Mapping[str, Any], path: Path) -> None:
    """Write ``content`` to ``path`` through a file beside it, which replaces ``path`` when it is complete and on disk.

    Raises:
        SaveError: The disk or the folder refuses it.
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


def last_checkpoint(work_dir: str | Path) -> Path | None:
    """The newest whole checkpoint of ``work_dir``, also after the folder was moved; None if there is none."""
    folder = Path(work_dir)
    try:
        told = Path((folder / LAST).read_text(encoding='utf-8').strip())
    except (OSError, UnicodeDecodeError):
        return None
    return next((path for path in (folder / told.name, told) if told.name and path.is_file()), None)


def remove_parts(folder: Path) -> None:
    """Remove what a killed process left of checkpoints and records that never became whole."""
    for name in ('iter_*.pth', 'epoch_*.pth', 'best_*.pth', LAST, 'run.json'):
        for part in folder.glob(f'.{name}*{PART}'):
            with suppress(OSError):
                part.unlink(missing_ok=True)


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """MMEngine's CheckpointHook in another order: save, then name as the last one, then delete the old.

    What cannot be written is told and tried again at the next time; training goes on. If the last of all cannot be
    written, it goes to the folder for temporary files, and the run ends with an error that says where it is.
    Checkpoints outside the run's own folder are never deleted.
    """

    file_backend: Any

    def __init__(self, *args: Any, **settings: Any) -> None:
        """Take MMEngine's arguments."""
        super().__init__(*args, **settings)
        self.failed: SaveError | None = None
        self.saved_step: int | None = None

    def before_train(self, runner: Any) -> None:
        """Prepare the folder; see MMEngine."""
        super().before_train(runner)
        if is_main_process() and '://' not in self.out_dir:
            if not os.path.samefile(self.out_dir, runner.work_dir):
                runner.lock(self.out_dir)
            remove_parts(Path(self.out_dir))

    def after_train(self, runner: Any) -> None:
        """Publish as MMEngine does; see that the last checkpoint is somewhere.

        Raises:
            SaveError: It is not where it should be.
        """
        super().after_train(runner)
        if self.failed is not None:
            self._rescue(runner, step=runner.epoch if self.by_epoch else runner.iter)

    def save_now(self, runner: Any, *, step: int) -> None:
        """Save after ``step`` iterations, whatever the interval.

        Raises:
            SaveError: It is not where it should be.
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
        self._tell(runner, self.file_backend.join_path(self.out_dir, filename), kept[len(dropped) :])
        try:
            self._save(runner, self.out_dir, filename, meta)
        except SaveError as error:
            self._tell(runner, *before)
            self.failed = error
            runner.logger.warning(f'{error}; training goes on and tries again later')
            return
        self.failed, self.saved_step = None, step
        if is_main_process():
            atomic_write(Path(runner.work_dir, LAST), str(self.last_ckpt).encode())
            for old in dropped:
                self._delete(self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(old)))

    def _save(self, runner: Any, folder: str, filename: str, meta: dict[str, Any]) -> None:
        runner.save_checkpoint(
            folder,
            filename,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=dict(meta),
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )

    def _tell(self, runner: Any, last: str | None, kept: list[int]) -> None:
        """Write into the run's records, which the checkpoint holds too, which checkpoints there are."""
        self.last_ckpt = last
        if last is not None:
            runner.message_hub.update_info('last_ckpt', last)
        if self.max_keep_ckpts > 0:
            self.keep_ckpt_ids = deque(kept, self.max_keep_ckpts)
            runner.message_hub.update_info('keep_ckpt_ids', kept)

    def _save_best_checkpoint(self, runner: Any, metrics: dict[str, Any]) -> None:
        info = runner.message_hub.runtime_info
        before = {key: info[key] for key in info if key.startswith('best_')}
        paths = getattr(self, 'best_ckpt_path', None), dict(getattr(self, 'best_ckpt_path_dict', {}))
        try:
            with self._deletions_postponed():
                super()._save_best_checkpoint(runner, metrics)
        except SaveError as error:
            for key in [key for key in info if key.startswith('best_')]:
                info.pop(key)
            info.update(before)
            self.best_ckpt_path, self.best_ckpt_path_dict = paths
            runner.logger.warning(f'{error}; the best checkpoint before it stays')

    @contextmanager
    def _deletions_postponed(self) -> Iterator[None]:
        """Delete when the block is through, and nothing if it fails."""
        backend: Any = self.file_backend
        postponed = _Postponed(backend)
        self.file_backend = postponed
        try:
            yield
        finally:
            self.file_backend = backend
        for path in postponed.paths:
            self._delete(path)

    def _delete(self, path: str) -> None:
        inside = os.path.dirname(os.path.abspath(path)) == os.path.abspath(self.out_dir)
        if (inside or '://' in path) and self.file_backend.isfile(path):
            self.file_backend.remove(path)

    def _rescue(self, runner: Any, *, step: int) -> None:
        """Save in the folder for temporary files what the work dir does not take; ends in an error in any case."""
        folder = [_temporary_folder() if is_main_process() else '']
        broadcast_object_list(folder)
        filename = self.filename_tmpl.format(step)
        meta = dict(epoch=runner.epoch, iter=runner.iter if self.by_epoch else step)
        try:
            if not folder[0]:
                raise SaveError(f'a folder below {tempfile.gettempdir()} be made')
            self._save(runner, folder[0], filename, meta)
        except SaveError as error:
            good = last_checkpoint(runner.work_dir)
            left = f'the last whole one is {str(good)!r}' if good else 'there is none before it'
            raise SaveError(f'{self.failed}, nor can {error}; {left}') from error
        raise SaveError(f'{self.failed}; the last checkpoint is {os.path.join(folder[0], filename)!r} instead: move it')


class _Postponed:
    """A file backend that notes what is to be deleted."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self.paths: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def remove(self, path: str) -> None:
        self.paths.append(path)


def _temporary_folder() -> str:
    """A new folder, or nothing if there is no place for one."""
    try:
        return tempfile.mkdtemp(prefix='volo-seg-')
    except OSError:
        return ''
