"""Stop training whose loss or gradients are NaN or infinite, with a report of the cause."""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_gather_object, all_reduce, is_main_process
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmseg.registry import HOOKS
from torch import Tensor, nn

from volo_seg.engine.hooks.checkpoint_hook import last_checkpoint
from volo_seg.engine.resume import unwrap_model
from volo_seg.engine.sharding import is_sharded
from volo_seg.errors import UserError
from volo_seg.io import WriteError, atomic_write

REPORT = 'non_finite.json'


@HOOKS.register_module()
class NonFiniteHook(Hook):
    """Stops training after ``patience`` iterations in a row with a loss or gradient that is NaN or infinite.

    An optimizer step with such a gradient is not made, so that one bad batch leaves weights and optimizer state as they
    are. Training stops at once if the batch put NaN or infinity into a weight or a batch-norm statistic, which later
    iterations keep, and if the last iteration is not finite. Steps that the loss scaling of float16 skips do not count
    unless the scale falls below 1.

    The cause is written to ``non_finite.json`` in the work dir: iteration, loss terms, images, learning rates, names of
    the gradients and weights that are not finite, and the largest absolute output of each layer.

    The gradients are checked by their norm: that of ``clip_grad``, or one computed here. Behind a loss scaler, which
    checks them itself, there is no check.

    Args:
        patience: Number of iterations in a row, at least 1.
    """

    def __init__(self, *, patience: int = 10) -> None:
        if not isinstance(patience, int) or patience < 1:
            raise UserError(f'custom_hooks: NonFiniteHook.patience={patience!r} is not a number of iterations; use 10')
        self.patience = patience
        self.count = 0
        self.stepped: bool | Tensor = False
        self.gradients: list[str] = []
        self.scales: dict[int, float] = {}
        self.sentence = ''
        self._handles: list[Any] = []

    def before_train(self, runner: Any) -> None:
        """Check the gradients before each step of each optimizer."""
        for wrapper in _wrappers(runner):
            check = functools.partial(self._check, runner, wrapper)
            self._handles.append(wrapper.optimizer.register_step_pre_hook(check))

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Mapping[str, Any] | None = None
    ) -> None:
        """Count this iteration if it is not finite.

        Raises:
            UserError: It is the last of ``patience`` in a row, or weights are not finite.
        """
        losses = {name: _number(value) for name, value in (outputs or {}).items() if 'loss' in name}
        bad = bool(self.gradients) or not all(map(math.isfinite, losses.values()))
        if _any_process(self._scale_fell(runner) or bad):
            self.count += 1
            state = unwrap_model(runner.model).state_dict()
            weights = [name for name, value in state.items() if not _all_finite(_tensors(value))]
            stops = _any_process(bool(weights)) or self.count >= self.patience
            report = self._report(runner, data_batch, losses)
            self.sentence = _sentence(report)
            if stops:
                self._stop(runner, {**report, 'weights_not_finite': weights}, data_batch)
            runner.logger.warning(f'{self.sentence}; training stops after {self.patience} such iterations in a row')
        elif self.count and self.stepped:
            self.count = 0
        self.stepped, self.gradients = False, []

    def after_train(self, runner: Any) -> None:
        """Raise a UserError if the last iteration was not finite."""
        for handle in self._handles:
            handle.remove()
        if self.count:
            raise UserError(f'training ended with {self.sentence}; {_advice(runner)}')

    def _check(self, runner: Any, wrapper: OptimWrapper, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Drop the gradients of a step of ``optimizer`` if one is not finite."""
        scaler = getattr(wrapper, 'loss_scaler', None)
        if scaler is not None and scaler.is_enabled():  # it calls only fused optimizers with infinite gradients
            self.stepped = getattr(optimizer, 'found_inf', 0) == 0
            return
        parameters = [p for group in optimizer.param_groups for p in group['params'] if p.grad is not None]
        if wrapper.clip_grad_kwargs and wrapper.grad_name == 'grad_norm' and parameters:
            finite = math.isfinite(wrapper.message_hub.get_scalar(f'train/{wrapper.grad_name}').current())
        else:
            finite = _all_finite(p.grad for p in parameters)
        if is_sharded(runner.model):  # other gradients, which are equal in all processes, need no communication
            finite = not _any_process(not finite)
        if finite:
            self.stepped = True
            return
        names = {id(parameter): name for name, parameter in unwrap_model(runner.model).named_parameters()}
        self.gradients = [names.get(id(p), '?') for p in parameters if not _all_finite([p.grad])] or ['?']
        for parameter in parameters:
            parameter.grad = None

    def _scale_fell(self, runner: Any) -> bool:
        """Return whether the loss scale of an optimizer fell to less than 1 in this iteration."""
        fell = False
        for index, wrapper in enumerate(_wrappers(runner)):
            scaler = getattr(wrapper, 'loss_scaler', None)
            if scaler is not None and scaler.is_enabled():
                scale = scaler.get_scale()
                fell = fell or scale < min(1.0, self.scales.get(index, 1.0))
                self.scales[index] = scale
        return fell

    def _report(self, runner: Any, data_batch: Any, losses: Mapping[str, float]) -> dict[str, Any]:
        """Describe this iteration. All processes must call this."""
        samples = data_batch.get('data_samples') or () if isinstance(data_batch, Mapping) else ()
        paths = [str(sample.img_path) for sample in samples if hasattr(sample, 'img_path')]
        peers = all_gather_object((dict(losses), paths))
        terms, images = next((peer for peer in peers if not all(map(math.isfinite, peer[0].values()))), peers[0])
        return {
            'iteration': runner.iter + 1,
            'iterations_in_a_row': self.count,
            'loss_terms': terms,
            'gradients_not_finite': self.gradients,
            'images': images,
            'learning_rates': {name: rates[0] for name, rates in runner.optim_wrapper.get_lr().items()},
        }

    def _stop(self, runner: Any, report: dict[str, Any], data_batch: Any) -> None:
        """Write ``report`` with the largest outputs of the layers, and raise a UserError."""
        outputs = report['largest_outputs'] = largest_outputs(runner, data_batch)
        path = Path(runner.work_dir, REPORT)
        where = f'{str(path)!r} has the details'
        if is_main_process():
            try:
                atomic_write(path, (json.dumps(_plain(report), indent=2) + '\n').encode())
            except WriteError as error:
                where = str(error)
        layer = next((name for name, value in outputs.items() if not math.isfinite(value)), None)
        layer = layer or max(outputs, key=outputs.__getitem__, default=None)
        largest = f', largest output {outputs[layer]:g} at layer {layer!r}' if layer else ''
        weights = report['weights_not_finite']
        broken = f', and {len(weights)} of the weights are NaN or infinite, first {weights[0]!r}' if weights else ''
        raise UserError(
            f'training stopped: {_sentence(report)}, the last of {self.count} in a row{broken}{largest}; {where}; '
            f'{_advice(runner)}'
        )


def largest_outputs(runner: Any, data_batch: Any) -> dict[str, float]:
    """Return the largest absolute output of each layer, in the order of the calls, for the loss of ``data_batch``."""
    model = unwrap_model(runner.model)
    found: dict[str, float] = {}

    def measure(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            values = [value for value in _tensors(output) if value.is_floating_point() and value.numel()]
            for value in (_number(v.detach().abs().max()) for v in values):
                if name not in found or (value > found[name] or math.isnan(value)) and not math.isnan(found[name]):
                    found.pop(name, None)
                    found[name] = value

        return hook

    handles = [
        module.register_forward_hook(measure(name))
        for name, module in model.named_modules()
        if name and not any(True for _ in module.children())
    ]
    wrapper = next(iter(_wrappers(runner)))
    # the outputs up to an operation that fails are reported too
    with suppress(RuntimeError), torch.no_grad(), wrapper.optim_context(runner.model):
        data = model.data_preprocessor(data_batch, True)
        model(**data, mode='loss')
    for handle in handles:
        handle.remove()
    return found


def _wrappers(runner: Any) -> list[Any]:
    wrapper = runner.optim_wrapper
    return list(wrapper.values()) if isinstance(wrapper, OptimWrapperDict) else [wrapper]


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for item in items for tensor in _tensors(item)]


def _number(value: Any) -> float:
    return value.item() if isinstance(value, Tensor) and value.numel() == 1 else float(torch.as_tensor(value).sum())


def _all_finite(tensors: Iterable[Tensor]) -> bool:
    """Return whether all values of the part of ``tensors`` in this process are finite."""
    local: list[Any] = [getattr(tensor, '_local_tensor', tensor).detach() for tensor in tensors]
    local = [tensor for tensor in local if tensor.is_floating_point() and tensor.numel()]
    # the norm is one fused operation, but overflows for finite values too
    return (
        not local or math.isfinite(torch.nn.utils.get_total_norm(local)) or all(bool(t.isfinite().all()) for t in local)
    )


def _any_process(value: bool) -> bool:
    """Return whether ``value`` is true in a process. All processes must call this."""
    flag = torch.tensor(float(value))
    all_reduce(flag, op='max')
    return bool(flag)


def _sentence(report: Mapping[str, Any]) -> str:
    terms = {name: value for name, value in report['loss_terms'].items() if not math.isfinite(value)}
    named = [name for name in terms if name != 'loss'] or list(terms)
    cause = f'{named[0]} is {terms[named[0]]}' if named else 'the loss is finite, but not its gradient'
    rates = list(report['learning_rates'].values())
    images = [os.fspath(path) for path in report['images']]
    shown = ', '.join(map(repr, images[:4])) + (f' and {len(images) - 4} more' if len(images) > 4 else '')
    return f'{cause} at iteration {report["iteration"]} (learning rate {max(rates):g}, images {shown or "unknown"})'


def _advice(runner: Any) -> str:
    good = last_checkpoint(runner.work_dir)
    resume = f', and resume from {str(good)!r}' if good else ''
    return f'check these images, lower the learning rate, or set optim_wrapper.clip_grad{resume}'


def _plain(value: Any) -> Any:
    """Replace numbers that JSON does not have by their names."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value
