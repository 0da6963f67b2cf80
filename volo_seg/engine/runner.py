"""MMEngine's runner with safe checkpoints, exact resuming and run records."""

from __future__ import annotations

import contextlib
import copy
import errno
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.device import get_device
from mmengine.dist import broadcast, broadcast_object_list, is_main_process
from mmengine.evaluator import Evaluator
from mmengine.fileio import LocalBackend, get_file_backend
from mmengine.logging import MMLogger
from mmengine.model import BaseTTAModel
from mmengine.optim import OptimWrapper, OptimWrapperDict, _ParamScheduler
from mmengine.runner import BaseLoop, Runner, save_checkpoint, set_random_seed
from mmseg.registry import RUNNERS
from torch import nn
from torch.utils._pytree import tree_leaves

from volo_seg.checkpoints import fit_segmentor_weights
from volo_seg.checkpoints.mmengine_loaders import forbid_unpickling, load_from_config
from volo_seg.config.agreement import check_same_classes
from volo_seg.config.validation import walk
from volo_seg.engine.hooks.checkpoint_hook import (
    OTHER_WORK_DIR,
    AtomicCheckpointHook,
    SaveError,
    check_finite,
    write_checkpoint,
)
from volo_seg.engine.hooks.console_hook import Screen, log_to_screen
from volo_seg.engine.hooks.interruption_hook import InterruptionHook, end_data_loading
from volo_seg.engine.hooks.reproducibility_hooks import ValidationSyncHook
from volo_seg.engine.logging.run_record import RunRecord, run_recorded
from volo_seg.engine.optim.batch_size import scale_rates
from volo_seg.engine.resume import build_checkpoint, check_resumable, restore_progress, unwrap_model
from volo_seg.engine.sharding import check_shardable, is_sharded, shard, shard_optimizer
from volo_seg.errors import UserError
from volo_seg.io import WriteError, check_writable, folder_lock

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE)
"""Errors of a full, read-only or failing disk."""


@RUNNERS.register_module()
class SafeRunner(Runner):
    """MMEngine's runner with safe checkpoints, exact resuming and run records.

    Checkpoints are loaded by :mod:`volo_seg.checkpoints`, which does not execute code in them and requires that all
    weights fit. They are written atomically and contain all state that a resumed run needs to compute the same as an
    uninterrupted one. Start and end of a run are recorded in ``run.json``. With ``fsdp=True`` in the config, the model
    is sharded over the processes. Everything else is built from the config as by MMEngine's ``Runner``.

    Attributes:
        resumed_at: Iteration that this process started at, and images that all processes had seen by then.
        validated_at: Last iteration with a validation, set by :class:`.ValidationSyncHook`.
        record: The record of the run in progress.
    """

    _timestamp: str

    def __init__(self, model: nn.Module | dict, work_dir: str, *args: Any, **settings: Any) -> None:
        """Pass the arguments to MMEngine's ``Runner``; ``work_dir`` must be writable.

        Raises:
            UserError: The work dir cannot be written.
        """
        self.resumed_at = (0, 0)
        self.validated_at: int | None = None
        self.record: RunRecord | None = None
        self._warned: set[str] = set()
        self._loaded: dict[str, Any] = {}
        forbid_unpickling()
        check_writable(work_dir, what='work dir', fix=OTHER_WORK_DIR)
        super().__init__(model, work_dir, *args, **settings)

    def build_logger(self, *args: Any, **settings: Any) -> MMLogger:
        """Build MMEngine's logger; with a ``ConsoleHook`` in the config, long messages go to the log file only."""
        logger = super().build_logger(*args, **settings)
        hooks = self.cfg.get('custom_hooks') or ()
        if is_main_process() and any(isinstance(hook, dict) and hook.get('type') == 'ConsoleHook' for hook in hooks):
            log_to_screen(logger, Screen(tables=True))
        return logger

    def train(self) -> nn.Module:
        """Train, and record the run in ``run.json``.

        Raises:
            UserError: Another process trains in this work dir, or the config cannot be sharded.
        """
        if self.cfg.get('fsdp'):
            check_shardable(self.cfg, self.hooks)
            if not any(isinstance(hook, ValidationSyncHook) for hook in self.hooks):
                raise UserError(
                    "--fsdp: validation needs gathered weights; add dict(type='ValidationSyncHook') to custom_hooks"
                )
        if self.deterministic and get_device() != 'cpu':
            self.logger.warning(
                '--deterministic: on a GPU, the backward passes of cross-entropy over maps, adaptive pooling and some '
                'modes of resizing have no deterministic implementation; where torch warns about one, two runs can '
                'differ in the last bits of the weights'
            )
        with contextlib.ExitStack() as self.locks:
            self.lock(self.work_dir)
            return run_recorded(self, 'train', super().train)

    def lock(self, folder: str) -> None:
        """Lock ``folder`` against other training runs until this one ends (rank 0 only).

        Raises:
            UserError: Another run has locked it.
        """
        if self.rank == 0:
            self.locks.enter_context(folder_lock(folder, what='work dir', fix=OTHER_WORK_DIR))

    def test(self) -> dict[str, float]:
        """Evaluate, and record the run in ``run.json``."""
        return run_recorded(self, 'test', super().test)

    def setup_env(self, env_cfg: dict) -> None:
        """Set up MMEngine's environment, with a timestamp that no other log folder of the work dir has."""
        super().setup_env(env_cfg)
        stamp = [self._timestamp]
        while self.rank == 0:
            try:
                os.makedirs(os.path.join(self.work_dir, stamp[0]))
                break
            except FileExistsError:
                time.sleep(0.05)
                stamp = [time.strftime('%Y%m%d_%H%M%S')]
        broadcast_object_list(stamp)
        self._timestamp = stamp[0]

    def set_randomness(self, seed: int | None, diff_rank_seed: bool = False, deterministic: bool = False) -> None:
        """Seed all generators; with ``deterministic``, use deterministic algorithms where torch has them."""
        super().set_randomness(seed, diff_rank_seed, deterministic)
        if deterministic:
            torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """Wrap the model for distributed training; with ``fsdp=True`` in the config, shard it."""
        if not (self.cfg.get('fsdp') and self.distributed):
            return super().wrap_model(model_wrapper_cfg, model)
        model = model.to(get_device())
        self._initialise(model)
        return shard(model)

    def _init_model_weights(self) -> None:
        if not is_sharded(self.model):
            self._initialise(self.model)

    def _initialise(self, model: nn.Module) -> None:
        """Initialise the weights from the seed and broadcast them, so that all processes start with equal weights."""
        set_random_seed(self.seed)
        model = unwrap_model(model)
        if hasattr(model, 'init_weights'):
            model.init_weights()  # type: ignore[operator]
            for tensor in model.state_dict().values():
                broadcast(tensor)

    def call_hook(self, fn_name: str, **arguments: Any) -> None:
        """Call all hooks; a failed write, for example on a full disk, is logged once and does not end the run.

        Before ``after_run``, in which ``LoggerHook`` may move the log folder, the record of the run is finished.
        """
        if fn_name == 'after_run' and self.record is not None:
            self.record.finish('finished')
        for hook in self._hooks:
            if not hasattr(hook, fn_name):
                continue
            try:
                getattr(hook, fn_name)(self, **arguments)
            except (OSError, WriteError) as error:
                if isinstance(error, OSError) and error.errno not in DISK_ERRORS:
                    raise
                reason = error.reason if isinstance(error, WriteError) else error.strerror
                message = f'{type(hook).__name__} could not write ({reason}); the run continues'
                if message not in self._warned:
                    self.logger.warning(message)
                self._warned.add(message)

    def resume(
        self,
        filename: str,
        resume_optimizer: bool = True,
        resume_param_scheduler: bool = True,
        map_location: str | Callable = 'default',
    ) -> None:
        """Resume the run that wrote ``filename``: weights, optimizer, schedulers, position in the data.

        Raises:
            UserError: The optimizer or a scheduler of the config does not fit the checkpoint.
        """
        self._resume = True
        try:
            super().resume(filename, resume_optimizer, resume_param_scheduler, map_location)
        except (ValueError, IndexError) as error:
            if isinstance(error, UserError):
                raise
            reason = str(error).splitlines()[0]
            raise UserError(
                f'{filename} is from a run with another optimizer or scheduler ({reason}); '
                'resume with the config and flags of that run'
            ) from error
        if is_sharded(self.model):
            shard_optimizer(self.optim_wrapper.optimizer)
        restore_progress(self, self._loaded)
        self._loaded = {}

    def save_checkpoint(
        self,
        out_dir: str,
        filename: str,
        file_client_args: dict | None = None,
        save_optimizer: bool = True,
        save_param_scheduler: bool = True,
        meta: dict | None = None,
        by_epoch: bool = True,
        backend_args: dict | None = None,
    ) -> None:
        """Write a checkpoint atomically. All processes must call this; rank 0 writes.

        Raises:
            SaveError: The file cannot be written, or the weights are not finite; raised in all processes.
        """
        place = dict(epoch=self.epoch + 1, iter=self.iter) if by_epoch else dict(epoch=self.epoch, iter=self.iter + 1)
        meta = {**place, **(meta or {})}
        content = build_checkpoint(self, meta, optimizer=save_optimizer, schedulers=save_param_scheduler)
        outcome: list[SaveError | None] = [None]
        if self.rank == 0:
            self.call_hook('before_save_checkpoint', checkpoint=content)
            try:
                check_finite(content, Path(out_dir, filename))
                if file_client_args or not isinstance(
                    get_file_backend(out_dir, backend_args=backend_args), LocalBackend
                ):
                    save_checkpoint(content, f'{out_dir.rstrip("/")}/{filename}', file_client_args, backend_args)
                else:
                    write_checkpoint(content, Path(out_dir, filename))
            except SaveError as error:
                outcome = [error]
        broadcast_object_list(outcome)
        if outcome[0] is not None:
            raise outcome[0]

    def save_now(self, step: int) -> bool:
        """Save after ``step`` iterations if checkpoints are saved by iteration; return whether one was saved."""
        if not hasattr(self.train_loop, 'dataloader_iterator'):  # in the middle of an epoch
            return False
        hooks = [hook for hook in self.hooks if isinstance(hook, AtomicCheckpointHook) and not hook.by_epoch]
        for hook in hooks:
            hook.save_now(self, step=step)
        return bool(hooks)

    def stop_listening(self) -> None:
        """End the data-loading processes and restore the signal handlers."""
        end_data_loading([self._train_loop, self._val_loop, self._test_loop])
        for hook in self.hooks:
            if isinstance(hook, InterruptionHook):
                hook.close()

    def load_checkpoint(
        self,
        filename: str,
        map_location: str | Callable = 'cpu',
        strict: bool = True,
        revise_keys: Sequence[tuple[str, str]] = (),
    ) -> dict[str, Any]:
        """Load ``filename`` into the model and return the checkpoint, which is on the CPU whatever ``map_location``.

        For training that is not resumed, the classification layers may have another number of classes. ``revise_keys``
        has pairs of a regular expression and its replacement in the names of the weights.
        """
        checkpoint = load_from_config(filename)
        for pattern, replacement in revise_keys:
            state = checkpoint.get('state_dict', checkpoint)
            revised = {re.sub(pattern, replacement, name): value for name, value in state.items()}
            checkpoint = {**checkpoint, 'state_dict': revised} if 'state_dict' in checkpoint else revised
        if self._resume:
            check_resumable(checkpoint, name=str(filename))
        # MMEngine would execute the text of the saved config
        checkpoint.get('meta', {}).pop('config', None)
        self.call_hook('after_load_checkpoint', checkpoint=checkpoint)
        model = unwrap_model(self.model)
        model = model.module if isinstance(model, BaseTTAModel) else model
        tunes = isinstance(self._train_loop, BaseLoop) and not self._resume
        new = fit_segmentor_weights(model, checkpoint, name=str(filename), strict=strict, other_classes=tunes)
        for line in new.values():
            self.logger.warning(f'{filename}: {line}')
        if tunes:
            names = list(model.state_dict())
            anew = [name for name in names if name.rpartition('.')[0] in new]
            parts = Counter(name.partition('.')[0] for name in names if name not in anew)
            loaded = ', '.join(f'{part} {count}' for part, count in parts.items())
            self.logger.info(
                f'{filename}: {parts.total()} of {len(names)} tensors were loaded ({loaded})'
                + (f'; these start anew: {", ".join(anew)}' if anew else '')
            )
        try:
            self._check_classes(checkpoint, str(filename))
        except UserError as error:
            if not tunes:
                raise
            if not new:
                self.logger.warning(str(error))
        self._has_loaded = True
        self._loaded = checkpoint
        self.logger.info(f'Load checkpoint from {filename}')
        return checkpoint

    def _check_classes(self, checkpoint: Mapping[str, Any], name: str) -> None:
        """Compare the class list in ``checkpoint``, if it has one, with that of the data.

        Raises:
            UserError: See :func:`.check_same_classes`.
        """
        loops = (loop for loop in (self._train_loop, self._val_loop, self._test_loop) if isinstance(loop, BaseLoop))
        of_data = getattr(getattr(next(loops, None), 'dataloader', None), 'dataset', None)
        of_file = (checkpoint.get('meta') or {}).get('dataset_meta')
        trained = of_file.get('classes') if isinstance(of_file, Mapping) else None
        classes = (getattr(of_data, 'metainfo', None) or {}).get('classes')
        if classes and isinstance(trained, (list, tuple)) and all(isinstance(label, str) for label in trained):
            check_same_classes(f'checkpoint {name!r}', trained, 'the data set', classes)

    def scale_lr(self, optim_wrapper: OptimWrapper, auto_scale_lr: dict[str, Any] | None = None) -> None:
        """Scale the learning rate to the images of an optimizer step, including accumulated batches."""
        base = (auto_scale_lr or {}).get('base_batch_size')
        built = any(isinstance(item, _ParamScheduler) for item in tree_leaves(self.param_schedulers))
        if not base or built or not isinstance(optim_wrapper, OptimWrapper):
            super().scale_lr(optim_wrapper, auto_scale_lr)
            return
        loader = self._train_dataloader
        size = loader['batch_size'] if isinstance(loader, dict) else loader.batch_size
        wrappers = optim_wrapper.values() if isinstance(optim_wrapper, OptimWrapperDict) else [optim_wrapper]
        for wrapper in wrappers:
            batch = size * self.world_size * wrapper._accumulative_counts
            scale_rates(wrapper, enable=bool(auto_scale_lr and auto_scale_lr.get('enable')), base=base, batch=batch)

    def build_evaluator(self, evaluator: dict | list | Evaluator) -> Evaluator:
        """Build the evaluator; the default ``out_dir`` of ``ExactIoUMetric`` is the log folder of the run."""
        if not isinstance(evaluator, Evaluator):
            evaluator = copy.deepcopy(evaluator)
            metric: Any
            for _, metric in walk(evaluator, 'evaluator'):
                if metric['type'] == 'ExactIoUMetric':
                    metric.setdefault('out_dir', self._log_dir)
        return super().build_evaluator(evaluator)
