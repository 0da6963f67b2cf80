"""The VOLO backbone, and folding of batch normalisation for inference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmcv.cnn import build_norm_layer, fuse_conv_bn
from mmengine.logging import print_log
from mmengine.model import BaseModule
from mmseg.registry import MODELS
from torch import Tensor, nn

from volo_seg.checkpoints import load_pretrained
from volo_seg.layers.volo import VOLOFeatures, check_out_indices, find_arch


@MODELS.register_module()
class VOLO(VOLOFeatures, BaseModule):
    """Vision Outlooker: outlookers at stride 8, transformers at stride 16, a LayerNorm for each output.

    Parameter names are those of the released checkpoints, except the output norms ``norm0`` to ``norm3``; ``norm3``
    loads the released final ``norm``.

    Args:
        arch: A key of ``volo_seg.checkpoints.VARIANTS``, or a mapping with the fields of ``Architecture`` there.
        img_size: Training crop in pixels, one side or (H, W). It only sets the size of the learned position embedding,
            one entry for 16 x 16 pixels; for images of another size the embedding is resized.
        out_indices: Stages to return, of 0..3, in ascending order.
        drop_path_rate: Largest stochastic depth rate, in [0, 1).
        drop_path_rule: ``'official'`` (block i of n drops with ``rate * i / (n - 1)``, outlookers never, as in the
            released code) or ``'linear'`` (the same for outlookers too).
        with_cp: Recompute each block in the backward pass: less memory, more time, equal gradients.
        norm_cfg: Normalisation of the stem's convolutions.
        frozen_stages: -1 freezes nothing; 0 freezes the stem; s in 1..4 also freezes stages 1..s (the position
            embedding and the downsampling belong to stage 2).
        init_cfg: ``dict(type='Pretrained', checkpoint=...)`` takes a path, a URL or a name such as
            ``volo_d1_224``; see :mod:`volo_seg.checkpoints`.

    Shapes: (B, 3, H, W) of any H and W; output i is (B, C_i, ceil(H / s_i), ceil(W / s_i)), s = (8, 16, 16, 16),
    contiguous.

    Raises:
        ValueError: An argument is outside the values above.

    Source: arXiv 2106.13112.
    """

    def __init__(
        self,
        arch: str | Mapping[str, Any] = 'd1',
        *,
        img_size: int | Sequence[int] = 224,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        drop_path_rate: float = 0.0,
        drop_path_rule: str = 'official',
        with_cp: bool = False,
        norm_cfg: Mapping[str, Any] | None = None,
        frozen_stages: int = -1,
        init_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        norm = dict(norm_cfg or {'type': 'BN'})
        super().__init__(
            arch,
            img_size=img_size,
            out_indices=out_indices,
            drop_path_rate=drop_path_rate,
            drop_path_rule=drop_path_rule,
            with_cp=with_cp,
            norm_layer=lambda channels: build_norm_layer(norm, channels)[1],
            frozen_stages=frozen_stages,
        )
        self.init_cfg = dict(init_cfg) if init_cfg else None

    @staticmethod
    def out_channels_of(config: Mapping[str, Any]) -> tuple[int, ...]:
        """Channels of the outputs of the backbone that ``config`` describes, without building it."""
        dims = find_arch(config.get('arch', 'd1'))[1].embed_dims
        return tuple(dims[i] for i in check_out_indices(config.get('out_indices', range(4))))

    def init_weights(self) -> None:
        """Load the pretrained weights of ``init_cfg``; without any, keep the random initialisation."""
        if not self.init_cfg or self.init_cfg.get('type') != 'Pretrained':
            super().init_weights()
            return
        source = self.init_cfg['checkpoint']
        loaded = load_pretrained(self.state_dict(), source, model_name=f'volo_{self.arch_name}')
        self.load_state_dict(loaded.state_dict)
        print_log(f'backbone volo_{self.arch_name} initialised from {source}: {loaded.summary()}', 'current')
        self._is_init = True


def fuse(model: nn.Module) -> nn.Module:
    """Fold each batch normalisation that follows a convolution into it, for inference; in place.

    Outputs change by rounding errors only. The folded layers leave the state dict, so load weights before: loading a
    state dict that has them raises RuntimeError.

    Raises:
        ValueError: ``model`` is in training mode.
    """
    if model.training:
        raise ValueError('fuse() needs a model in evaluation mode: call model.eval() first')
    names = set(model.state_dict())
    fused = fuse_conv_bn(model)
    fused.register_load_state_dict_pre_hook(_RefuseNormalisation(sorted(names - set(fused.state_dict()))))
    return fused


class _RefuseNormalisation:
    """A hook of ``load_state_dict`` that refuses weights of batch normalisations that were folded."""

    def __init__(self, folded: list[str]) -> None:
        self.folded = folded

    def __call__(self, module: nn.Module, state_dict: Mapping[str, Tensor], prefix: str, *_: Any) -> None:
        found = next((prefix + name for name in self.folded if prefix + name in state_dict), None)
        if found is not None:
            raise RuntimeError(
                f'the state dict has {found!r}, but fuse() has folded this batch normalisation into a convolution; '
                'load the weights into a new model, then call fuse()'
            )
