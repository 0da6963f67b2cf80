"""Random resizing by a factor of each image's own size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mmcv.transforms

from volo_seg import registry


@registry.TRANSFORMS.register_module()
class RandomResize(mmcv.transforms.RandomResize):
    """MMCV's ``RandomResize``; without ``scale``, the factor applies to the size of each image.

    A config selects it with ``dict(type='RandomResize', _scope_='volo_seg')``.

    Args:
        scale: (width, height) in pixels that the factor applies to; None stands for the size of the image.
        ratio_range: Smallest and largest factor.
        keep_ratio: As in MMCV.
    """

    def __init__(
        self,
        *,
        scale: Sequence[int] | None = None,
        ratio_range: tuple[float, float] = (0.5, 2.0),
        keep_ratio: bool = True,
    ) -> None:
        super().__init__(None if scale is None else tuple(scale), ratio_range, keep_ratio=keep_ratio)
        self.own_size = scale is None

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        if self.own_size:
            height, width = results['img'].shape[:2]
            self.scale = width, height
        return super().transform(results)
