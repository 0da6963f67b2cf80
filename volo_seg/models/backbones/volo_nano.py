"""The backbone of the `nano` configs, a small network for CPUs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmcv.cnn import build_norm_layer
from mmengine.logging import print_log
from mmengine.model import BaseModule
from mmseg.registry import MODELS

from volo_seg.checkpoints import load_equal
from volo_seg.layers.volo import check_out_indices
from volo_seg.layers.volo_nano import CHANNELS, VOLONanoFeatures


@MODELS.register_module()
class VOLONano(VOLONanoFeatures, BaseModule):
    """Outlook attention at stride 8 between separable convolutions and inverted residuals.

    The stem and the later stages have the shape of Fast-SCNN's (arXiv 1902.04502); in the stage at stride 8, outlook
    attention follows the convolution. It is made for CPUs and for training from random weights.

    Args:
        num_outlookers: Blocks of outlook attention at stride 8.
        expand_ratio: Hidden channels of the inverted residuals at strides 16 and 32 divided by their input's.
        out_indices: Stages to return, of 0..3, in ascending order.
        norm_cfg: Normalisation of the convolutions.
        frozen_stages: -1 freezes nothing; s in 0..3 freezes stages 0..s.
        init_cfg: ``dict(type='Pretrained', checkpoint=...)`` or None.

    Shapes: (B, 3, H, W) of any H and W; output i is (B, C_i, ceil(H / s_i), ceil(W / s_i)), s = (4, 8, 16, 32),
    C = (48, 64, 64, 128).

    Raises:
        ValueError: An argument is outside the values above.
    """

    def __init__(
        self,
        *,
        num_outlookers: int = 2,
        expand_ratio: int = 6,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        norm_cfg: Mapping[str, Any] | None = None,
        frozen_stages: int = -1,
        init_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        norm = dict(norm_cfg or {'type': 'BN'})
        super().__init__(
            num_outlookers=num_outlookers,
            expand_ratio=expand_ratio,
            out_indices=out_indices,
            norm_layer=lambda channels: build_norm_layer(norm, channels)[1],
            frozen_stages=frozen_stages,
        )
        self.init_cfg = dict(init_cfg) if init_cfg else None

    @staticmethod
    def out_channels_of(config: Mapping[str, Any]) -> tuple[int, ...]:
        """Channels of the outputs of the backbone that ``config`` describes, without building it."""
        return tuple(CHANNELS[i] for i in check_out_indices(config.get('out_indices', range(4))))

    def init_weights(self) -> None:
        """Load the weights of ``init_cfg``, of this backbone or a segmentor with it; without any, keep the random ones.

        Raises:
            UserError: The file lacks one of the tensors, or has one of another shape.
        """
        if not self.init_cfg or self.init_cfg.get('type') != 'Pretrained':
            super().init_weights()
            return
        source = self.init_cfg['checkpoint']
        self.load_state_dict(load_equal(self.state_dict(), source, model_name='VOLONano'))
        print_log(f'backbone VOLONano initialised from {source}', 'current')
        self._is_init = True
