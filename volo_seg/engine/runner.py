"""MMEngine's runner with safe loading and saving, exact resuming, and errors that name the file."""

from __future__ import annotations

import contextlib
import copy
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
from mmengine.device import get_device
from mmengine.dist import broadcast, broadcast_object_list
from mmengine.evaluator import Evaluator
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.model import BaseTTAModel
from mmengine.optim import OptimWrapper
from mmengine.runner import BaseLoop, Runner, save_checkpoint, set_random_seed
from mmseg.registry import RUNNERS
from torch import nn
from torch.utils.data import DataLoader

from volo_seg.checkpoints import fit_segmentor_weights, load_file
from volo_seg.checkpoints.mmengine_loaders import forbid_unpickling
from volo_seg.engine.checkpointing import compose
from volo_seg.engine.evaluator import OverlappedEvaluator
from volo_seg.engine.failures import disk_is_at_fault, run_recorded
from volo_seg.engine.hooks.checkpoint_hook import OTHER_WORK_DIR, SafeCheckpointHook, SaveError, write_checkpoint
from volo_seg.engine.hooks.console_hook import quiet
from volo_seg.engine.hooks.interruption_hook import InterruptionHook, OutliveSignals, end_data_loading
from volo_seg.engine.logging.run_record import DataRecordHook, RunRecord
from volo_seg.engine.optim.accumulation import images_per_step
from volo_seg.engine.optim.learning_rate import scale_rates
from volo_seg.engine.randomness import UNORDERED, IterationSeedHook, use_deterministic_algorithms
from volo_seg.engine.resume import MissedValidationHook, ResumeHook, check_resumable, plain, restore_progress
from volo_seg.engine.sampling import make_resumable
from volo_seg.engine.sharding import check_shardable, is_sharded, shard, shard_optimizer
from volo_seg.errors import UserError
from volo_seg.io import WriteError, check_regular, check_writable, folder_lock

OWN_HOOKS = (IterationSeedHook, ResumeHook, MissedValidationHook, DataRecordHook, InterruptionHook)


@RUNNERS.register_module()
class SafeRunner(Runner):
    """A runner that never unpickles untrusted code and says which file a data error is about.

    Checkpoints load through :mod:`volo_seg.checkpoints`: the model's weights must fit completely, and what is refused
    is refused in one sentence. They are written whole or not at all, and a run that goes on from one computes what
    the uninterrupted run computes. With ``fsdp=True`` in the config the model is split over the processes.
    """

    resumed_at = (0, 0)
    """Iteration that this process began at, and the images that all processes together had seen by then."""
    validated_at: int | None = None
    _timestamp: str
    record: RunRecord | None = None
    _train_dataloader: Any
    _loaded: dict[str, Any] = {}

    def __init__(self, *args: Any, **settings: Any) -> None:
        """Take MMEngine's arguments."""
        self._warned: set[str] = set()
        forbid_unpickling()
        folder = settings.get('work_dir') or args[1]
        check_writable(folder, what='work dir', fix=OTHER_WORK_DIR)
        super().__init__(*args, **settings)

    def build_logger(self, *args: Any, **settings: Any) -> MMLogger:
        """Build MMEngine's logger; where the console shows a view, its listings go to the file alone."""
        logger = super().build_logger(*args, **settings)
        quiet(logger, self.cfg)
        return logger

    def train(self) -> nn.Module:
        """Train, and write in ``run.json`` what was run and how it ended.

        Raises:
            UserError: Another process trains in this work dir.
        """
        if self.cfg.get('fsdp'):
            check_shardable(self.cfg, self.hooks)
        if self.deterministic and get_device() != 'cpu':
            self.logger.warning(UNORDERED)
        with contextlib.ExitStack() as self.locks:
            self.lock(self.work_dir)
            return run_recorded(self, 'train', super().train)

    def lock(self, folder: str) -> None:
        """Keep other trainings out of ``folder`` until this one ends; the first process does.

        Raises:
            UserError: Another one is there.
        """
        if self.rank == 0:
            self.locks.enter_context(folder_lock(folder, what='work dir', fix=OTHER_WORK_DIR))

    def test(self) -> dict[str, float]:
        """Evaluate, and write in ``run.json`` what was run and how it ended."""
        return run_recorded(self, 'test', super().test)

    def setup_env(self, env_cfg: dict) -> None:
        """Set up MMEngine's environment, with a time stamp whose log folder no other run has."""
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
        """Seed all generators; with ``deterministic``, choose ordered algorithms wherever there are any."""
        super().set_randomness(seed, diff_rank_seed, deterministic)
        if deterministic:
            use_deterministic_algorithms()

    def build_train_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        """Build the loop over data whose order and augmentations can be taken up anywhere."""
        loader: Any = self._train_dataloader
        if isinstance(loop, dict) and isinstance(loader, dict):
            self._train_dataloader = make_resumable(loader, seed=self.seed)
        return super().build_train_loop(loop)

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """Make the model one of many processes: by MMEngine's wrapper, or split if the config says ``fsdp``."""
        if not (self.cfg.get('fsdp') and self.distributed):
            return super().wrap_model(model_wrapper_cfg, model)
        model = model.to(get_device())
        self._initialise(model)
        return shard(model)

    def _init_model_weights(self) -> None:
        if not is_sharded(self.model):
            self._initialise(self.model)

    def _initialise(self, model: nn.Module) -> None:
        """Initialise from the seed alone, so that plain and sharded models begin equal, and equal in all processes."""
        set_random_seed(self.seed)
        model = plain(model)
        if hasattr(model, 'init_weights'):
            model.init_weights()  # type: ignore[operator]
            for tensor in model.state_dict().values():
                broadcast(tensor)

    def register_hook(self, hook: Hook | dict, priority: Any = None) -> None:
        """Register a hook; ``CheckpointHook`` is the safe one here."""
        if isinstance(hook, dict) and hook.get('type') in ('CheckpointHook', 'mmengine.CheckpointHook'):
            hook = {**hook, 'type': SafeCheckpointHook.__name__}
        super().register_hook(hook, priority)

    def register_hooks(self, default_hooks: dict | None = None, custom_hooks: list | None = None) -> None:
        """Register the config's hooks and our own."""
        super().register_hooks(default_hooks, custom_hooks)
        for kind in OWN_HOOKS:
            self.register_hook(kind())

    def call_hook(self, fn_name: str, **arguments: Any) -> None:
        """Call all hooks; a log that a full disk refuses does not end the run."""
        for hook in self._hooks:
            if not hasattr(hook, fn_name):
                continue
            try:
                getattr(hook, fn_name)(self, **arguments)
            except (OSError, WriteError) as error:
                if isinstance(error, OSError) and not disk_is_at_fault(error):
                    raise
                reason = error.reason if isinstance(error, WriteError) else error.strerror
                told = f'{type(hook).__name__} could not write ({reason}); the run goes on'
                if told not in self._warned:
                    self.logger.warning(told)
                self._warned.add(told)

    def resume(
        self,
        filename: str,
        resume_optimizer: bool = True,
        resume_param_scheduler: bool = True,
        map_location: str | Callable = 'default',
    ) -> None:
        """Go on from ``filename`` where the run that wrote it was: weights, optimizer, data, random numbers."""
        self._resume = True
        try:
            super().resume(filename, resume_optimizer, resume_param_scheduler, map_location)
        except (ValueError, IndexError) as error:
            if isinstance(error, UserError):
                raise
            told = str(error).splitlines()[0]
            raise UserError(
                f'{filename} is of a run with another optimizer or schedule ({told}): resume with its config and flags'
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
        """Write a checkpoint whole or not at all; all processes call this together, the first one writes.

        Raises:
            SaveError: It cannot be written; raised in all processes.
        """
        place = dict(epoch=self.epoch + 1, iter=self.iter) if by_epoch else dict(epoch=self.epoch, iter=self.iter + 1)
        content = compose(self, {**place, **(meta or {})}, optimizer=save_optimizer, schedulers=save_param_scheduler)
        outcome: list[str | None] = [None]
        if self.rank == 0:
            self.call_hook('before_save_checkpoint', checkpoint=content)
            try:
                if '://' in out_dir:  # MMEngine's storage backends
                    save_checkpoint(content, f'{out_dir.rstrip("/")}/{filename}', file_client_args, backend_args)
                else:
                    write_checkpoint(content, Path(out_dir, filename))
            except SaveError as error:
                outcome = [str(error)]
        broadcast_object_list(outcome)
        if outcome[0] is not None:
            raise SaveError(outcome[0])

    def save_now(self, step: int) -> bool:
        """Save after ``step`` iterations if checkpoints of iterations are kept; whether there is one then."""
        if not hasattr(self.train_loop, 'dataloader_iterator'):  # in the middle of an epoch
            return False
        hooks = [hook for hook in self.hooks if isinstance(hook, SafeCheckpointHook) and not hook.by_epoch]
        for hook in hooks:
            hook.save_now(self, step=step)
        return bool(hooks)

    def stop_listening(self) -> None:
        """Give Ctrl-C and SIGTERM back their usual meaning, and end the processes that load data."""
        end_data_loading([self._train_loop, self._val_loop, self._test_loop])
        for hook in self.hooks:
            if isinstance(hook, InterruptionHook):
                hook.close()

    def load_checkpoint(
        self,
        filename: str,
        map_location: str | Callable = 'cpu',
        strict: bool = True,
        revise_keys: list | None = None,
    ) -> dict[str, Any]:
        """Load ``filename`` into the model and return the whole checkpoint; ``revise_keys`` is not needed here."""
        checkpoint = load_file(filename, map_location='cpu')
        if self._resume:
            check_resumable(checkpoint, name=str(filename))
        # the saved config is text that resuming would execute: a checkpoint must not bring code along
        checkpoint.get('meta', {}).pop('config', None)
        self.call_hook('after_load_checkpoint', checkpoint=checkpoint)
        model = plain(self.model)
        model = model.module if isinstance(model, BaseTTAModel) else model
        fit_segmentor_weights(model, checkpoint, name=str(filename), strict=strict)
        self._has_loaded = True
        self._loaded = checkpoint
        self.logger.info(f'Load checkpoint from {filename}')
        return checkpoint

    def scale_lr(self, optim_wrapper: OptimWrapper, auto_scale_lr: dict[str, Any] | None = None) -> None:
        """Scale the learning rate to the images of one optimizer step, accumulated batches included."""
        base = (auto_scale_lr or {}).get('base_batch_size')
        if not base or not isinstance(optim_wrapper, OptimWrapper):
            super().scale_lr(optim_wrapper, auto_scale_lr)
            return
        batch = images_per_step(self.cfg, world_size=self.world_size)
        scale_rates(optim_wrapper, enable=bool(auto_scale_lr and auto_scale_lr.get('enable')), base=base, batch=batch)

    def build_evaluator(self, evaluator: dict | list | Evaluator) -> Evaluator:
        """Build an evaluator that overlaps with the network.

        Our metric writes its files into this run's log folder if it is told no other.
        """
        if isinstance(evaluator, dict) and evaluator.get('type') == 'ExactIoUMetric':
            evaluator = {'out_dir': self._log_dir, **evaluator}
        built = super().build_evaluator(evaluator)
        return OverlappedEvaluator(built.metrics) if type(built) is Evaluator else built

    @staticmethod
    def build_dataloader(
        dataloader: DataLoader | dict, seed: int | None = None, diff_rank_seed: bool = False
    ) -> DataLoader:
        """Build the loader as MMEngine does, then let its pipeline name the file that it fails on."""
        if isinstance(dataloader, dict):
            dataloader = copy.deepcopy(dataloader)
            if not dataloader.get('num_workers'):
                dataloader['persistent_workers'] = False
        built = Runner.build_dataloader(dataloader, seed, diff_rank_seed)
        built.worker_init_fn = OutliveSignals(built.worker_init_fn)
        dataset = built.dataset
        if hasattr(dataset, 'pipeline') and not isinstance(dataset.pipeline, NamingPipeline):
            dataset.pipeline = NamingPipeline(dataset.pipeline)
        return built


class NamingPipeline:
    """A data pipeline that turns the failure to read a file into one sentence with the file's name."""

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline

    def __getattr__(self, name: str) -> Any:
        if name == 'pipeline':  # while unpickling, before __init__
            raise AttributeError(name)
        return getattr(self.pipeline, name)

    def __call__(self, results: dict[str, Any]) -> dict[str, Any] | None:
        """Run the pipeline on ``results``; raise UserError where one of its files cannot be read."""
        paths = [results[key] for key in ('img_path', 'seg_map_path') if results.get(key)]
        for path in paths:
            # a pipe would be waited for, and a device read until memory is gone
            if os.path.lexists(path) and not os.path.isfile(path):
                raise UserError(f'cannot read {str(path)!r}: {why_unreadable(path)}')
        try:
            return self.pipeline(results)
        except Exception as error:
            for path in paths:
                reason = why_unreadable(path)
                if reason:
                    raise UserError(f'cannot read {str(path)!r}: {reason}') from error
            raise


def why_unreadable(path: str | Path) -> str | None:
    """Say in a few words why the image file at ``path`` cannot be decoded, or None if it can."""
    try:
        if check_regular(path).st_size == 0:
            return 'the file is empty'
    except FileNotFoundError:
        return 'the file does not exist'
    except OSError as error:
        return error.strerror
    try:
        image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        return f'the image does not decode ({error.err})'
    return 'it is damaged or not an image' if image is None else None
