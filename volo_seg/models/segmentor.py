"""Encoder and decoder, with sliding windows in batches and labels in chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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

from .logit_rows import Averaged, Cropped, Flipped, Held, Resized, Rows, cover, labels_of, whole_map
from .logits_on_demand import LogitsOnDemand
from .windows import InferenceConfig, Size, measured_on_gpu, window_starts, windows_that_fit

Config = dict[str, Any]


@MODELS.register_module()
class VOLOSegmentor(EncoderDecoder):
    """``EncoderDecoder`` of MMSegmentation: the same arguments, parameters, losses and labels; testing takes less.

    The head's small map is enlarged, averaged over windows, cropped, flipped and enlarged again in chunks of rows that
    end in labels, so the map of all classes at image size never exists. Windows go through the network in batches.
    ``test_cfg`` is read by :class:`volo_seg.models.windows.InferenceConfig`: ``mode``, ``crop_size`` and ``stride`` as
    ever, and ``batch_windows``, ``logits_budget`` and ``keep_logits``. ``seg_logits`` of a result are computed whenever
    they are looked at, by test-time augmentation too. Logits of less than 32 bits are enlarged in float32.

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
        InferenceConfig.of(test_cfg)
        super().__init__(
            backbone, decode_head, neck, auxiliary_head, train_cfg, test_cfg, data_preprocessor, pretrained, init_cfg
        )

    def predict(self, inputs: Tensor, data_samples: list[SegDataSample] | None = None) -> list[SegDataSample]:
        """Labels of ``inputs`` (B, 3, H, W), as ``pred_sem_seg`` (1, H, W) of each sample at its ``ori_shape``.

        Without ``data_samples``, at the size of ``inputs``.
        """
        metas = [s.metainfo for s in data_samples] if data_samples is not None else _plain_metas(inputs)
        config = InferenceConfig.of(self.test_cfg)
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
        config = InferenceConfig.of({**(self.test_cfg or {}), 'mode': 'slide'})
        sources = self._slide(inputs, batch_img_metas, config)
        return torch.stack([whole_map(s, budget=config.budget) for s in sources])

    def _whole(self, inputs: Tensor, metas: list[dict]) -> list[Rows]:
        if not self._resizes_alone:
            return [Held(logits) for logits in self.encode_decode(inputs, metas)]
        return self._enlarged(self._forward(inputs), _whole_size(metas[0]))

    def _slide(self, inputs: Tensor, metas: list[dict], config: InferenceConfig) -> list[Rows]:
        """Mean over windows; small maps are kept, maps of window size are summed up in place."""
        height, width = inputs.shape[2:]
        size = (min(config.crop_size[0], height), min(config.crop_size[1], width))
        downs, acrosses = (window_starts(*axis) for axis in zip((height, width), size, config.stride, strict=True))
        spots = [(top, left) for top in downs for left in acrosses]
        kept: list[tuple[int, int, list[Rows]]] = []
        total = None
        for (top, left), logits in self._through_windows(inputs, metas, spots, size, config):
            if total is None and logits[0, 0].numel() * len(spots) >= height * width:
                dtype = torch.promote_types(logits.dtype, torch.float32)
                total = logits.new_zeros((*logits.shape[:2], height, width), dtype=dtype)
            if total is None:
                kept.append((top, left, self._enlarged(logits, size)))
            else:
                if logits.shape[2:] != size:
                    logits = F.interpolate(logits, size, mode='bilinear', align_corners=self.align_corners)
                total[:, :, top : top + size[0], left : left + size[1]] += logits
        if total is None:
            per_image = ([(top, left, rows[i]) for top, left, rows in kept] for i in range(len(inputs)))
            return [Averaged(windows, (height, width)) for windows in per_image]
        down = cover(set(downs), size[0], height, like=total)
        total /= down[:, None] * cover(set(acrosses), size[1], width, like=total)
        return [Held(logits) for logits in total]

    def _through_windows(
        self, inputs: Tensor, metas: list[dict], spots: Sequence[Size], size: Size, config: InferenceConfig
    ) -> Iterator[tuple[Size, Tensor]]:
        """Each window's (top, left) and logits (B, classes, h, w), several windows a pass."""
        together = 1 if config.batch_windows == 'auto' else int(config.batch_windows)
        measure = config.batch_windows == 'auto' and inputs.is_cuda
        left_over = list(spots)
        while left_over:
            batch, left_over = left_over[:together], left_over[together:]
            crops = torch.cat([inputs[:, :, y : y + size[0], x : x + size[1]] for y, x in batch])
            if measure:
                logits, used = measured_on_gpu(lambda: self._window_logits(crops, metas), inputs.device)  # noqa: B023
                together, measure = windows_that_fit(used, inputs.device), False
            else:
                logits = self._window_logits(crops, metas)
            yield from zip(batch, logits.split(len(inputs)), strict=True)

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

    def _enlarged(self, logits: Tensor, size: Size) -> list[Rows]:
        """Each image of ``logits`` (B, classes, h, w) at ``size``."""
        logits = logits.contiguous(memory_format=torch.channels_last)
        return [self._resized(Held(image), size) for image in logits]

    def _resized(self, source: Rows, size: Size) -> Rows:
        return source if source.size == size else Resized(source, size, align_corners=self.align_corners)

    def _at_original_size(self, source: Rows, meta: dict) -> Rows:
        """Without padding, flipped back, at ``ori_shape``."""
        padding = meta.get('img_padding_size', meta.get('padding_size', (0, 0, 0, 0)))
        left, right, top, bottom = (int(pixels) for pixels in padding)
        height, width = source.size
        if any((left, right, top, bottom)):
            source = Cropped(source, top=top, bottom=height - bottom, left=left, right=width - right)
        if meta.get('flip'):
            direction = meta.get('flip_direction')
            if direction not in ('horizontal', 'vertical'):
                raise UserError(
                    f'flip_direction={direction!r} of {meta.get("img_path", "an image")} cannot be undone when '
                    "testing; flip 'horizontal' or 'vertical'"
                )
            source = Flipped(source, horizontal=direction == 'horizontal')
        return self._resized(source, tuple(meta['ori_shape'][:2]))

    def _fill(self, sample: SegDataSample, source: Rows, config: InferenceConfig) -> None:
        """Put labels and logits into ``sample``."""
        binary = source.channels == 1
        if config.keep_logits:
            source = Held(whole_map(source, budget=config.budget))
        threshold = self.decode_head.threshold if binary else None
        labels = labels_of(source, budget=config.budget, threshold=threshold)
        logits: PixelData = LogitsOnDemand(source, budget=config.budget, sigmoid=binary)
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
