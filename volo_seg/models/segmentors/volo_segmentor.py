"""``EncoderDecoder`` with batched sliding windows, and labels computed in chunks of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.structures import PixelData
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.segmentors import EncoderDecoder
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from volo_seg.errors import UserError
from volo_seg.models.resize.logit_source import (
    AveragedLogits,
    CroppedLogits,
    FlippedLogits,
    LogitSource,
    ResizedLogits,
    TensorLogits,
    WindowAccumulator,
    compute_labels,
    full_logits,
)
from volo_seg.models.segmentors.lazy_logits import LazyLogits, LogitMap
from volo_seg.windows import MAX_WINDOWS, InferenceConfig, Size, WindowGrid

Config = dict[str, Any]


@MODELS.register_module()
class VOLOSegmentor(EncoderDecoder):
    """A drop-in ``EncoderDecoder`` that needs less time and memory at inference.

    Arguments, parameter names, losses and labels are those of MMSegmentation's ``EncoderDecoder``. The output of the
    head is resized, averaged over windows, cropped and flipped in chunks of rows that are reduced to labels, so the map
    of all classes at image size is never stored. Windows pass the network in batches.
    ``test_cfg`` is read by :class:`~volo_seg.windows.InferenceConfig`: ``mode``, ``crop_size`` and
    ``stride`` as in MMSegmentation, and ``window_weights``, ``batch_windows``, ``logits_budget`` and ``keep_logits``.
    ``seg_logits`` of a result are computed at the first access (:class:`LazyLogits`). Half precision logits are resized
    in float32. If a subclass overrides a method that MMSegmentation's ``predict`` calls, MMSegmentation's ``predict``
    runs. A batch of images of unequal sizes is predicted image by image.

    Raises:
        UserError: ``test_cfg`` is invalid; see :meth:`InferenceConfig.from_test_cfg`.
    """

    def __init__(
        self,
        backbone: Config,
        decode_head: Config,
        neck: Config | None = None,
        auxiliary_head: Config | list[Config] | None = None,
        train_cfg: Config | None = None,
        test_cfg: Config | None = None,
        data_preprocessor: Config | None = None,
        pretrained: str | None = None,
        init_cfg: Config | list[Config] | None = None,
    ) -> None:
        InferenceConfig.from_test_cfg(test_cfg)
        super().__init__(
            backbone, decode_head, neck, auxiliary_head, train_cfg, test_cfg, data_preprocessor, pretrained, init_cfg
        )

    def predict(self, inputs: Tensor, data_samples: list[SegDataSample] | None = None) -> list[SegDataSample]:
        """Set ``pred_sem_seg`` (1, H, W) and ``seg_logits`` of each sample for ``inputs`` (B, 3, H, W), normalised.

        Results have the ``ori_shape`` of the sample; without ``data_samples``, new samples of the size of ``inputs``.
        """
        if overridden_methods(self):
            return super().predict(inputs, data_samples)
        if data_samples is not None:
            metas = [sample.metainfo for sample in data_samples]
        else:
            size = inputs.shape[2:]
            metas = [{'ori_shape': size, 'img_shape': size, 'pad_shape': size} for _ in inputs]
        config = InferenceConfig.from_test_cfg(self.test_cfg)
        if config.mode == 'slide':
            sources = self._slide(inputs, metas, config)
        elif head_only_resizes(self.decode_head):
            sources = self._resize_each(self._head_output(inputs), _resized_shape(metas[0]))
        else:
            sources = [TensorLogits(logits) for logits in self.encode_decode(inputs, metas)]
        if data_samples is None:
            data_samples = [SegDataSample() for _ in sources]
        else:
            sources = [self._to_ori_shape(s, m) for s, m in zip(sources, metas, strict=True)]
        for sample, source in zip(data_samples, sources, strict=True):
            self._set_result(sample, source, config)
        return data_samples

    def val_step(self, data: Any) -> list[SegDataSample]:
        """Predict a validation batch, whose images may have unequal sizes."""
        return _step_by_size(super().val_step, data)

    def test_step(self, data: Any) -> list[SegDataSample]:
        """Predict a test batch, whose images may have unequal sizes."""
        return _step_by_size(super().test_step, data)

    def slide_inference(self, inputs: Tensor, batch_img_metas: list[dict]) -> Tensor:
        """Logits (B, C, H, W) of ``inputs`` (B, 3, H, W), averaged over windows."""
        config = InferenceConfig.from_test_cfg({**(self.test_cfg or {}), 'mode': 'slide'})
        sources = self._slide(inputs, batch_img_metas, config)
        return torch.stack([full_logits(s, budget=config.budget) for s in sources])

    def _slide(self, inputs: Tensor, metas: list[dict], config: InferenceConfig) -> list[LogitSource]:
        """Average over windows.

        The outputs of the head are stored if they have fewer pixels together than the image, else summed at its size.
        """
        grid = WindowGrid((inputs.shape[2], inputs.shape[3]), crop_size=config.crop_size, stride=config.stride)
        crops = (((y, x), inputs[:, :, y : y + grid.size[0], x : x + grid.size[1]]) for y, x in grid)
        stored: list[tuple[int, int, list[LogitSource]]] = []
        total = None
        for (top, left), logits in self.forward_windows(crops, metas, config):
            if total is None and logits[0, 0].numel() * len(grid) >= grid.image[0] * grid.image[1]:
                total = WindowAccumulator(logits, grid, config.window_weights)
            if total is None:
                stored.append((top, left, self._resize_each(logits, grid.size)))
            else:
                if logits.shape[2:] != grid.size:
                    logits = F.interpolate(logits, grid.size, mode='bilinear', align_corners=self.align_corners)
                total.add(top, left, logits)
        if total is not None:
            return [TensorLogits(logits) for logits in total.mean()]
        per_image = ([(top, left, rows[i]) for top, left, rows in stored] for i in range(len(inputs)))
        return [AveragedLogits(windows, grid.image, weights=config.window_weights) for windows in per_image]

    def forward_windows(
        self, windows: Iterable[tuple[Size, Tensor]], metas: list[dict], config: InferenceConfig
    ) -> Iterator[tuple[Size, Tensor]]:
        """Yield (top, left) and logits (B, C, h, w) of each window, several windows in one forward pass.

        ``windows`` are (top, left) and normalised pixels (B, 3, H, W), all of one size; they are consumed batch by
        batch. The logits are the output of the head if it only has to be resized (:meth:`resize_logits`), else they
        have the size of the windows.
        """
        remaining = iter(windows)
        measure = config.batch_windows == 'auto'
        batch_size = 1 if measure else int(config.batch_windows)
        while batch := list(islice(remaining, batch_size)):
            crops = torch.cat([pixels for _, pixels in batch])
            measure = measure and crops.is_cuda
            if measure:
                torch.cuda.reset_peak_memory_stats(crops.device)
                before = torch.cuda.memory_allocated(crops.device)
            logits = self._window_logits(crops, metas)
            if measure:
                used = torch.cuda.max_memory_allocated(crops.device) - before
                batch_size, measure = max_windows_in_memory(used, crops.device), False
            yield from zip((corner for corner, _ in batch), logits.split(len(batch[0][1])), strict=True)

    def _window_logits(self, crops: Tensor, metas: list[dict]) -> Tensor:
        """Logits of ``crops`` (B, 3, h, w); see :meth:`forward_windows`."""
        if head_only_resizes(self.decode_head) and _is_defined_here(self, 'encode_decode'):
            return self._head_output(crops)
        metas = [{**meta, 'img_shape': crops.shape[2:]} for meta in metas] * (len(crops) // len(metas))
        return self.encode_decode(crops, metas)

    def _head_output(self, inputs: Tensor) -> Tensor:
        """What ``encode_decode`` resizes."""
        return self.decode_head.forward(self.extract_feat(inputs))

    def _resize_each(self, logits: Tensor, size: Size) -> list[LogitSource]:
        """Resize each image of ``logits`` (B, C, h, w) to ``size``."""
        if logits.device.type == 'cpu':  # labels are then computed faster (benchmarks/segmentor.py)
            logits = logits.contiguous(memory_format=torch.channels_last)
        return [self.resize_logits(TensorLogits(image), size) for image in logits]

    def resize_logits(self, source: LogitSource, size: Size) -> LogitSource:
        """``source`` resized to ``size`` as the decode head does it."""
        return source if source.size == size else ResizedLogits(source, size, align_corners=self.align_corners)

    def _to_ori_shape(self, source: LogitSource, meta: dict) -> LogitSource:
        """Crop the padding, undo the flip and resize to ``ori_shape``."""
        padding = meta.get('img_padding_size', meta.get('padding_size', (0, 0, 0, 0)))
        left, right, top, bottom = (int(pixels) for pixels in padding)
        height, width = source.size
        if any((left, right, top, bottom)):
            source = CroppedLogits(source, top=top, bottom=height - bottom, left=left, right=width - right)
        if meta.get('flip'):
            direction = meta.get('flip_direction')
            if direction not in ('horizontal', 'vertical'):
                raise UserError(
                    f'flip_direction={direction!r} of {meta.get("img_path", "an image")} cannot be undone when '
                    "testing; flip 'horizontal' or 'vertical'"
                )
            source = FlippedLogits(source, horizontal=direction == 'horizontal')
        return self.resize_logits(source, tuple(meta['ori_shape'][:2]))

    def _set_result(self, sample: SegDataSample, source: LogitSource, config: InferenceConfig) -> None:
        """Set ``pred_sem_seg`` and ``seg_logits`` of ``sample``."""
        binary = source.channels == 1
        if config.keep_logits:
            source = TensorLogits(full_logits(source, budget=config.budget))
        threshold = self.decode_head.threshold if binary else None
        labels = compute_labels(source, budget=config.budget, threshold=threshold)
        logits = LogitMap(source, budget=config.budget, sigmoid=binary)
        field = PixelData(data=logits.data) if config.keep_logits else LazyLogits.from_map(logits)
        sample.set_data({'seg_logits': field, 'pred_sem_seg': PixelData(data=labels)})


PREDICTION_METHODS = ('inference', 'whole_inference', 'slide_inference', 'encode_decode', 'postprocess_result')
"""The methods that MMSegmentation's ``predict`` calls."""
_DEFINED_HERE = {name: getattr(VOLOSegmentor, name) for name in PREDICTION_METHODS}


def overridden_methods(model: EncoderDecoder) -> list[str]:
    """The methods of ``PREDICTION_METHODS`` that are overridden, in a subclass or in the object."""
    return [name for name in PREDICTION_METHODS if not _is_defined_here(model, name)]


def _is_defined_here(model: EncoderDecoder, name: str) -> bool:
    return getattr(getattr(model, name), '__func__', None) in (_DEFINED_HERE[name], getattr(EncoderDecoder, name))


def _step_by_size(step: Callable[[Any], list[SegDataSample]], data: Any) -> list[SegDataSample]:
    """``step`` of the batch ``data``, or of each of its images if their sizes differ."""
    inputs = data['inputs'] if isinstance(data, dict) else None
    if not isinstance(inputs, (list, tuple)) or len({image.shape for image in inputs}) < 2:
        return step(data)
    parts = ({key: values[i : i + 1] for key, values in data.items()} for i in range(len(inputs)))
    return [result for part in parts for result in step(part)]


def head_only_resizes(head: nn.Module) -> bool:
    """Whether ``head.predict`` is that of ``BaseDecodeHead``, which only resizes the output of ``head``."""
    methods = (getattr(getattr(head, name, None), '__func__', None) for name in ('predict', 'predict_by_feat'))
    return tuple(methods) == (BaseDecodeHead.predict, BaseDecodeHead.predict_by_feat)


def _resized_shape(meta: dict) -> Size:
    """The size to which ``BaseDecodeHead.predict_by_feat`` resizes the logits of a whole image."""
    shape = meta['img_shape']
    height, width = (shape if isinstance(shape, torch.Size) else meta.get('pad_shape', shape))[:2]
    return height, width


def max_windows_in_memory(bytes_per_window: int, device: torch.device) -> int:
    """Number of windows that fit into half of the free memory of a GPU, in 1..``MAX_WINDOWS``."""
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return max(1, min(MAX_WINDOWS, free // 2 // max(bytes_per_window, 1)))
