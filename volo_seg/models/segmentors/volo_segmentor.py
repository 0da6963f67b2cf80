"""Encoder and decoder, with sliding windows in batches and labels in chunks of rows."""

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
from torch import Tensor

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
from volo_seg.models.segmentors.lazy_logits import LazyLogits
from volo_seg.windows import MAX_WINDOWS, InferenceConfig, Size, WindowGrid

Config = dict[str, Any]


@MODELS.register_module()
class VOLOSegmentor(EncoderDecoder):
    """``EncoderDecoder`` of MMSegmentation: the same arguments, parameters, losses and labels; testing takes less.

    The head's small map is enlarged, averaged over windows, cropped, flipped and enlarged again in chunks of rows that
    end in labels, so the map of all classes at image size never exists. Windows go through the network in batches.
    ``test_cfg`` is read by :class:`~volo_seg.windows.InferenceConfig`: ``mode``, ``crop_size`` and
    ``stride`` as in MMSegmentation, and ``window_weights``, ``batch_windows``, ``logits_budget`` and ``keep_logits``.
    ``seg_logits`` of a result are computed whenever they are looked at, by test-time augmentation too. Logits of less
    than 32 bits are enlarged in float32.

    Raises:
        UserError: ``test_cfg`` asks for something impossible.
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
        """Labels of ``inputs`` (B, 3, H, W), as ``pred_sem_seg`` (1, H, W) of each sample at its ``ori_shape``.

        Without ``data_samples``, at the size of ``inputs``.
        """
        metas = [s.metainfo for s in data_samples] if data_samples is not None else _plain_metas(inputs)
        config = InferenceConfig.from_test_cfg(self.test_cfg)
        slide = config.mode == 'slide'
        sources = self._slide(inputs, metas, config) if slide else self._whole(inputs, metas)
        if data_samples is None:
            data_samples = [SegDataSample() for _ in sources]
        else:
            sources = [self._at_original_size(s, m) for s, m in zip(sources, metas, strict=True)]
        for sample, source in zip(data_samples, sources, strict=True):
            self._fill(sample, source, config)
        return data_samples

    def slide_inference(self, inputs: Tensor, batch_img_metas: list[dict]) -> Tensor:
        """Logits (B, classes, H, W) averaged over windows, at the size of ``inputs``."""
        config = InferenceConfig.from_test_cfg({**(self.test_cfg or {}), 'mode': 'slide'})
        sources = self._slide(inputs, batch_img_metas, config)
        return torch.stack([full_logits(s, budget=config.budget) for s in sources])

    def _whole(self, inputs: Tensor, metas: list[dict]) -> list[LogitSource]:
        if not self._resizes_alone:
            return [TensorLogits(logits) for logits in self.encode_decode(inputs, metas)]
        return self._enlarged(self._forward(inputs), _whole_size(metas[0]))

    def _slide(self, inputs: Tensor, metas: list[dict], config: InferenceConfig) -> list[LogitSource]:
        """Mean over windows; small maps are kept, maps of window size are summed up in place."""
        grid = WindowGrid((inputs.shape[2], inputs.shape[3]), crop_size=config.crop_size, stride=config.stride)
        cut = (((y, x), inputs[:, :, y : y + grid.size[0], x : x + grid.size[1]]) for y, x in grid)
        kept: list[tuple[int, int, list[LogitSource]]] = []
        total = None
        for (top, left), logits in self.forward_windows(cut, metas, config):
            if total is None and logits[0, 0].numel() * len(grid) >= grid.image[0] * grid.image[1]:
                total = WindowAccumulator(logits, grid, config.window_weights)
            if total is None:
                kept.append((top, left, self._enlarged(logits, grid.size)))
            else:
                if logits.shape[2:] != grid.size:
                    logits = F.interpolate(logits, grid.size, mode='bilinear', align_corners=self.align_corners)
                total.add(top, left, logits)
        if total is not None:
            return [TensorLogits(logits) for logits in total.mean()]
        per_image = ([(top, left, rows[i]) for top, left, rows in kept] for i in range(len(inputs)))
        return [AveragedLogits(windows, grid.image, weights=config.window_weights) for windows in per_image]

    def forward_windows(
        self, windows: Iterable[tuple[Size, Tensor]], metas: list[dict], config: InferenceConfig
    ) -> Iterator[tuple[Size, Tensor]]:
        """Each window's (top, left) and logits (B, classes, h, w), several windows a pass.

        ``windows`` are (top, left) and normalised pixels (B, 3, H, W), all of one size; as many are taken at a time as
        go through the network together. The logits are the head's own map if it would only be resized (to be enlarged
        by :meth:`resize_logits`), else a map of the windows' size.
        """
        waiting = iter(windows)
        together = 1 if config.batch_windows == 'auto' else int(config.batch_windows)
        measure = config.batch_windows == 'auto'
        while batch := list(islice(waiting, together)):
            images = len(batch[0][1])
            crops = torch.cat([pixels for _, pixels in batch])
            if measure and crops.is_cuda:
                logits, used = run_with_peak_memory(lambda: self._window_logits(crops, metas), crops.device)  # noqa: B023
                together, measure = max_windows_in_memory(used, crops.device), False
            else:
                logits = self._window_logits(crops, metas)
            yield from zip((spot for spot, _ in batch), logits.split(images), strict=True)

    def _window_logits(self, crops: Tensor, metas: list[dict]) -> Tensor:
        """Logits of ``crops``: the head's own map if it would only be resized, else a map of the crops' size."""
        if self._resizes_alone:
            return self._forward(crops)
        metas = [{**meta, 'img_shape': crops.shape[2:]} for meta in metas] * (len(crops) // len(metas))
        return self.encode_decode(crops, metas)

    @property
    def _resizes_alone(self) -> bool:
        """Whether testing does no more with the head's output than to resize it."""
        head = type(self.decode_head)
        return (
            getattr(head, 'predict', None) is BaseDecodeHead.predict
            and head.predict_by_feat is BaseDecodeHead.predict_by_feat
            and type(self).encode_decode is EncoderDecoder.encode_decode
        )

    def _enlarged(self, logits: Tensor, size: Size) -> list[LogitSource]:
        """Each image of ``logits`` (B, classes, h, w) at ``size``."""
        logits = logits.contiguous(memory_format=torch.channels_last)
        return [self.resize_logits(TensorLogits(image), size) for image in logits]

    def resize_logits(self, source: LogitSource, size: Size) -> LogitSource:
        """``source`` at ``size``, as the decode head would enlarge it."""
        return source if source.size == size else ResizedLogits(source, size, align_corners=self.align_corners)

    def _at_original_size(self, source: LogitSource, meta: dict) -> LogitSource:
        """Without padding, flipped back, at ``ori_shape``."""
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

    def _fill(self, sample: SegDataSample, source: LogitSource, config: InferenceConfig) -> None:
        """Put labels and logits into ``sample``."""
        binary = source.channels == 1
        if config.keep_logits:
            source = TensorLogits(full_logits(source, budget=config.budget))
        threshold = self.decode_head.threshold if binary else None
        labels = compute_labels(source, budget=config.budget, threshold=threshold)
        logits: PixelData = LazyLogits(source, budget=config.budget, sigmoid=binary)
        if config.keep_logits:
            logits = logits.new()
        sample.set_data({'seg_logits': logits, 'pred_sem_seg': PixelData(data=labels)})


def _plain_metas(inputs: Tensor) -> list[dict]:
    size = inputs.shape[2:]
    return [{'ori_shape': size, 'img_shape': size, 'pad_shape': size} for _ in inputs]


def _whole_size(meta: dict) -> Size:
    """The size to which a decode head resizes the logits of a whole image."""
    plain = isinstance(meta['img_shape'], torch.Size)
    height, width = (meta['img_shape'] if plain else meta.get('pad_shape', meta['img_shape']))[:2]
    return height, width


def max_windows_in_memory(bytes_per_window: int, device: torch.device) -> int:
    """Number of windows that fit into half of the free memory of a GPU, in 1..``MAX_WINDOWS``."""
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return max(1, min(MAX_WINDOWS, free // 2 // max(bytes_per_window, 1)))


def run_with_peak_memory(run: Callable[[], Tensor], device: torch.device) -> tuple[Tensor, int]:
    """The result of ``run()`` and the peak of the bytes that it allocated on the GPU ``device``."""
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    result = run()
    return result, torch.cuda.max_memory_allocated(device) - before
