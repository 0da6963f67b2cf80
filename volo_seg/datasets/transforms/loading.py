"""Reading labels as MMSegmentation does, with an error where it would read wrong labels."""

from __future__ import annotations

from typing import Any

from mmengine import fileio
from mmseg.datasets.transforms import LoadAnnotations
from mmseg.registry import TRANSFORMS

from volo_seg.datasets.masks import decode_mask, label_lookup
from volo_seg.errors import UserError


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
