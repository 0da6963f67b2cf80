"""Read images by the rules of this package, and labels with an error where MMSegmentation would read wrong ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mmcv.transforms
import numpy as np
from mmengine import fileio
from mmseg.datasets.transforms import LoadAnnotations
from mmseg.registry import TRANSFORMS

from volo_seg import registry
from volo_seg.config.validation import find_type
from volo_seg.datasets.masks import decode_mask, label_lookup
from volo_seg.errors import UserError
from volo_seg.imageio import Reading, check_range, decode_image


@registry.TRANSFORMS.register_module()
class LoadImageFromFile(mmcv.transforms.LoadImageFromFile):
    """MMCV's ``LoadImageFromFile`` with the rules of :func:`volo_seg.imageio.read_image`, which prediction has as well.

    A config selects it with ``dict(type='LoadImageFromFile', _scope_='volo_seg')``.

    Args:
        range: (black, white), the values that become 0 and 255 in images of more than 8 bits per channel; see
            :func:`volo_seg.imageio.to_8_bits`. Stored with the model.
        to_float32, ignore_empty, backend_args: As in MMCV.

    Raises:
        UserError: The range is not one, or an image cannot be read.
    """

    def __init__(
        self,
        *,
        range: Sequence[float] | None = None,
        to_float32: bool = False,
        ignore_empty: bool = False,
        backend_args: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(to_float32, ignore_empty=ignore_empty, backend_args=backend_args)
        self.reading = Reading(check_range(range))

    def transform(self, results: dict[str, Any]) -> dict[str, Any] | None:
        path = results['img_path']
        try:
            content = fileio.get(path, backend_args=self.backend_args)
            image = decode_image(content, name=str(path), reading=self.reading)
        except Exception:
            if self.ignore_empty:
                return None
            raise
        results['img'] = image.astype(np.float32) if self.to_float32 else image
        results['img_shape'] = results['ori_shape'] = image.shape[:2]
        return results

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(range={self.reading.value_range}, to_float32={self.to_float32}, '
            f'ignore_empty={self.ignore_empty}, backend_args={self.backend_args})'
        )


def reading_of(step: Mapping[str, Any]) -> Reading | None:
    """How ``step`` of a pipeline reads image files; None if it is neither our ``LoadImageFromFile`` nor MMCV's.

    Raises:
        UserError: The range is not one.
    """
    kind = find_type(step['type'], step.get('_scope_') or 'mmseg')
    if kind is LoadImageFromFile:
        return Reading(check_range(step.get('range')))
    if kind is mmcv.transforms.LoadImageFromFile:
        return Reading(None, step.get('color_type', 'color'), step.get('imdecode_backend', 'cv2'))
    return None


@TRANSFORMS.register_module()
class LoadLabels(LoadAnnotations):
    """MMSegmentation's ``LoadAnnotations`` that refuses colour and 16-bit masks, and reads masks by a colour table.

    The data set gives the table (``colours`` of :class:`.FolderDataset`). An image without ``seg_map_path``, as in
    inference, passes without labels.

    Args:
        reduce_zero_label, backend_args, imdecode_backend: As in ``LoadAnnotations``; always decoded by Pillow.

    Raises:
        UserError: A label image that cannot be read as labels.
    """

    def __init__(
        self,
        *,
        reduce_zero_label: bool | None = None,
        backend_args: dict[str, Any] | None = None,
        imdecode_backend: str = 'pillow',
    ) -> None:
        super().__init__(reduce_zero_label, backend_args, imdecode_backend)

    def _load_seg_map(self, results: dict[str, Any]) -> None:
        path = results.get('seg_map_path')
        if path is None:
            return
        reduce = results['reduce_zero_label']
        if self.reduce_zero_label not in (None, reduce):
            raise UserError(
                f'LoadLabels has reduce_zero_label={self.reduce_zero_label} and the data set {reduce}; '
                'set it in the data set alone'
            )
        content = fileio.get(path, backend_args=self.backend_args)
        labels = decode_mask(content, where=str(path), table=results.get('colour_table'))
        if reduce or results.get('label_map'):
            labels = label_lookup(reduce_zero_label=reduce, label_map=results.get('label_map'))[labels]
        results['gt_seg_map'] = labels
        results['seg_fields'].append('gt_seg_map')
