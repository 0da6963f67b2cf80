"""Reading labels for training: as MMSegmentation does, but what it would misread is an error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine import fileio
from mmseg.datasets.transforms import LoadAnnotations
from mmseg.registry import TRANSFORMS

from volo_seg.datasets.masks import ColourTable, decode_mask, label_lookup
from volo_seg.errors import UserError


@TRANSFORMS.register_module()
class LoadLabels(LoadAnnotations):
    """MMSegmentation's ``LoadAnnotations`` that refuses colour and 16-bit masks, or reads them by a colour table.

    Args:
        table: Colours of the classes; without it, masks hold label values.
        reduce_zero_label, backend_args, imdecode_backend: As in ``LoadAnnotations``; always decoded by Pillow.

    Raises:
        UserError: A label image that cannot be read as labels.
    """

    def __init__(
        self,
        *,
        table: ColourTable | None = None,
        reduce_zero_label: bool | None = None,
        backend_args: dict[str, Any] | None = None,
        imdecode_backend: str = 'pillow',
    ) -> None:
        super().__init__(reduce_zero_label, backend_args, imdecode_backend)
        self.table = table

    def _load_seg_map(self, results: dict[str, Any]) -> None:
        path = results['seg_map_path']
        reduce = results['reduce_zero_label']
        if self.reduce_zero_label not in (None, reduce):
            raise UserError(
                f'LoadAnnotations has reduce_zero_label={self.reduce_zero_label} and the data set {reduce}; '
                'set it in the data set alone'
            )
        content = fileio.get(path, backend_args=self.backend_args)
        labels = decode_mask(content, where=str(path), table=self.table)
        if reduce or results.get('label_map'):
            labels = label_lookup(reduce_zero_label=reduce, label_map=results.get('label_map'))[labels]
        results['gt_seg_map'] = labels
        results['seg_fields'].append('gt_seg_map')


def with_own_loading(steps: Sequence[Any], table: ColourTable | None) -> list[Any]:
    """Copy a pipeline with ``LoadLabels`` for every ``LoadAnnotations``, also inside test-time augmentation."""
    return [_replace(step, table) for step in steps]


def _replace(step: Any, table: ColourTable | None) -> Any:
    if isinstance(step, (list, tuple)):
        return [_replace(inner, table) for inner in step]
    if not isinstance(step, dict):
        return step
    if step.get('type') in ('LoadAnnotations', 'mmseg.LoadAnnotations', LoadAnnotations):
        return {**step, 'type': 'LoadLabels', 'table': table}
    return {key: _replace(value, table) if key == 'transforms' else value for key, value in step.items()}
