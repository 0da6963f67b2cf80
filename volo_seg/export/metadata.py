"""The metadata of an ONNX file, from the test pipeline and ``test_cfg`` of a config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mmcv.transforms import Resize as MmcvResize

from volo_seg.errors import UserError
from volo_seg.inference.loaded_model import LoadedModel
from volo_seg.inference.onnx_metadata import InputSpec, OnnxMetadata, OutputSpec, ResizeSpec, WindowSpec
from volo_seg.windows import InferenceConfig, window_profile


def make_metadata(network: LoadedModel, *, normalize: bool, argmax: bool, source: Mapping[str, Any]) -> OnnxMetadata:
    """Make the metadata for the ONNX file of ``network``; see :class:`OnnxMetadata`.

    Raises:
        UserError: The test pipeline does something other than resize images.
    """
    model: Any = network.model
    one_channel = model.decode_head.out_channels == 1
    return OnnxMetadata(
        network.classes,
        tuple(map(tuple, np.asarray(network.palette).tolist())),
        reading=network.reading,
        input=_input(model.data_preprocessor, normalize=normalize),
        resize=_resize(network.pipeline.transforms),
        windows=None if argmax else _windows(model.test_cfg),
        output=OutputSpec(
            'labels' if argmax else 'logits',
            'labels' if argmax else 'logits',
            align_corners=bool(model.align_corners),
            threshold=float(model.decode_head.threshold) if one_channel else None,
        ),
        source=dict(source),
    )


def _input(preprocessor: Any, *, normalize: bool) -> InputSpec:
    if normalize:
        return InputSpec(channels='BGR', dtype='uint8')
    channels = 'RGB' if preprocessor._channel_conversion else 'BGR'
    if not preprocessor._enable_normalize:
        return InputSpec(channels=channels)
    mean, std = (tuple(values.flatten().tolist()) for values in (preprocessor.mean, preprocessor.std))
    return InputSpec(channels=channels, mean=mean, std=std)


def _resize(steps: Sequence[Any]) -> ResizeSpec | None:
    """The resizing in ``steps``, a test pipeline whose first step takes an image in memory."""
    from mmseg.datasets.transforms import PackSegInputs  # loaded already: the pipeline was built from it

    if getattr(steps[0], 'to_float32', False):
        raise UserError('LoadImageFromFile with to_float32=True cannot be exported: remove it from the test pipeline')
    rules = [step for step in steps[1:] if not isinstance(step, PackSegInputs)]
    for step in rules:
        if not isinstance(step, MmcvResize) or len(rules) > 1:
            raise UserError(
                f'{type(step).__name__} of the test pipeline cannot be exported: an ONNX file holds at most one Resize'
            )
        if step.interpolation != 'bilinear' or step.backend != 'cv2':
            raise UserError(
                f'Resize with interpolation={step.interpolation!r}, backend={step.backend!r} cannot be exported: '
                "the test pipeline must resize with 'bilinear' of 'cv2'"
            )
    if not rules:
        return None
    step = rules[0]
    if step.scale:
        return ResizeSpec(scale=(int(step.scale[0]), int(step.scale[1])), keep_ratio=step.keep_ratio)
    across, down = map(float, step.scale_factor)
    return ResizeSpec(scale_factor=(across, down), keep_ratio=step.keep_ratio)


def _windows(test_cfg: Mapping[str, Any] | None) -> WindowSpec | None:
    config = InferenceConfig.from_test_cfg(test_cfg)
    if config.mode != 'slide':
        return None
    if config.window_weights == 'uniform':
        return WindowSpec(config.crop_size, config.stride)
    down, across = (window_profile(config.window_weights, side) for side in config.crop_size)
    return WindowSpec(config.crop_size, config.stride, down, across)
