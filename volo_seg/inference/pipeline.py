"""The test pipeline of a config: how it reads files, and its steps for images in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mmcv
from mmcv.transforms import LoadAnnotations, Resize
from mmengine.dataset import Compose

from volo_seg.config.validation import find_type
from volo_seg.datasets.transforms.loading import reading_of
from volo_seg.errors import UserError
from volo_seg.imageio import BACKENDS, COLOR_TYPES, Reading
from volo_seg.inference.resizing import fitted_size


class FittedResize(Resize):
    """MMCV's ``Resize``, except that no side becomes shorter than one pixel; see :func:`.fitted_size`."""

    def _resize_img(self, results: dict[str, Any]) -> None:
        height, width = results['img'].shape[:2]
        across, down = (max(1, side) for side in results['scale'])
        size = fitted_size((height, width), (down, across)) if self.keep_ratio else (down, across)
        results['img'] = mmcv.imresize(
            results['img'], size[::-1], interpolation=self.interpolation, backend=self.backend
        )
        results['img_shape'] = size
        results['scale_factor'] = (size[1] / width, size[0] / height)
        results['keep_ratio'] = self.keep_ratio


def image_pipeline(steps: Sequence[Mapping[str, Any]]) -> tuple[Reading, Compose]:
    """Split the test pipeline ``steps`` into the reading of files, and a pipeline for an image in memory.

    The pipeline takes (H, W, 3) BGR, and does not load labels.

    Raises:
        UserError: The first step is not ``LoadImageFromFile``, or it does not read colour images.
    """
    kinds: list[Any] = [find_type(step['type'], step.get('_scope_') or 'mmseg') for step in steps]
    reading = reading_of(steps[0]) if steps else None
    if reading is None:
        raise UserError('the test pipeline of the config does not start with LoadImageFromFile; put it first')
    for key, value, known in (
        ('color_type', reading.color_type, (None, *COLOR_TYPES)),
        ('imdecode_backend', reading.backend, BACKENDS),
    ):
        if value not in known:
            names = ' or '.join(repr(word) for word in known if word)
            raise UserError(f'the test pipeline reads images with {key}={value!r}; only {names} can be predicted')
    found: list[Any] = [{'type': 'LoadImageFromNDArray', 'to_float32': steps[0].get('to_float32', False)}]
    for step, kind in zip(steps[1:], kinds[1:], strict=True):
        if isinstance(kind, type) and issubclass(kind, LoadAnnotations):
            continue
        # MMSegmentation's Resize inherits the method, and differs for labels only
        same = isinstance(kind, type) and issubclass(kind, Resize) and kind._resize_img is Resize._resize_img  # type: ignore[attr-defined]
        found.append({**step, 'type': FittedResize} if same else step)
    return reading, Compose(found)
