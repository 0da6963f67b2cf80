"""The VOLO backbone, and folding of batch normalisation for inference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, no_type_check

import torch
import torch.nn.functional as F
from mmcv.cnn import build_norm_layer, fuse_conv_bn
from mmengine.logging import print_log
from mmengine.model import BaseModule
from mmseg.registry import MODELS
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from volo_seg.checkpoints import VARIANTS, Architecture, load_pretrained
from volo_seg.layers import Downsample, Outlooker, PatchEmbed, Transformer, resample_pos_embed, resize_pos_embed
from volo_seg.models.resize.matrices import exporting
from volo_seg.ops import why_plain

STRIDES = (8, 16, 16, 16)
"""Stride of each stage in pixels."""


@MODELS.register_module()
class VOLO(BaseModule):
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
        super().__init__(init_cfg=dict(init_cfg) if init_cfg else None)
        self.arch_name, self.arch = _find_arch(arch)
        self.out_indices = check_out_indices(out_indices)
        if not -1 <= frozen_stages <= 4:
            raise ValueError(f'frozen_stages={frozen_stages} is not one of -1 (none), 0 (stem), 1..4 (stages)')
        self.frozen_stages = frozen_stages
        self.with_cp = with_cp

        depths, dims, _, _, stem_channels = self.arch
        norm = dict(norm_cfg or {'type': 'BN'})
        self.patch_embed = PatchEmbed(
            stem_channels, dims[0], norm_layer=lambda channels: build_norm_layer(norm, channels)[1]
        )
        rates = drop_path_rates(depths, drop_path_rate, drop_path_rule)
        stages = [self._build_stage(i, rates[sum(depths[:i]) : sum(depths[: i + 1])]) for i in range(4)]
        self.network = nn.ModuleList([stages[0], Downsample(dims[0], dims[1]), *stages[1:]])
        grid = [-(-side // 16) for side in ([img_size] * 2 if isinstance(img_size, int) else img_size)]
        self.pos_embed = nn.Parameter(torch.zeros(1, *grid, dims[1]))
        for i in self.out_indices:
            self.add_module(f'norm{i}', nn.LayerNorm(dims[i]))
        self._reset_parameters()
        self._freeze()

    @staticmethod
    def out_channels_of(config: Mapping[str, Any]) -> tuple[int, ...]:
        """Channels of the outputs of the backbone that ``config`` describes, without building it."""
        dims = _find_arch(config.get('arch', 'd1'))[1].embed_dims
        return tuple(dims[i] for i in check_out_indices(config.get('out_indices', range(4))))

    def _build_stage(self, index: int, rates: Sequence[float]) -> nn.Sequential:
        block = Outlooker if index == 0 else Transformer
        dim, num_heads = self.arch.embed_dims[index], self.arch.num_heads[index]
        return nn.Sequential(*(block(dim, num_heads, mlp_ratio=self.arch.mlp_ratio, drop_path=rate) for rate in rates))

    def _reset_parameters(self) -> None:
        # the truncation of the released code, at 100 standard deviations, changes nothing
        nn.init.normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

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

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """The outputs of the stages ``out_indices`` for images ``x`` (B, 3, H, W), NCHW."""
        height, width = x.shape[-2:]
        if _any_size(x) or height % 16 or width % 16:
            # written without dividing negative numbers, which exported graphs round towards zero
            x = F.pad(x, (0, (width + 15) // 16 * 16 - width, 0, (height + 15) // 16 * 16 - height))
        maps = []
        for index, tokens in enumerate(self.stages(x)):
            if index in self.out_indices:
                stride = STRIDES[index]
                tokens = tokens[:, : (height + stride - 1) // stride, : (width + stride - 1) // stride]
                maps.append(getattr(self, f'norm{index}')(tokens).permute(0, 3, 1, 2).contiguous())
        return tuple(maps)

    def stages(self, x: Tensor) -> list[Tensor]:
        """Tokens (B, H, W, C) of the four stages before the output norms; sides of ``x`` are multiples of 16."""
        outlookers, downsample, *transformers = self.network
        x = self._run(outlookers, self.patch_embed(x))
        outputs = [x]
        x = downsample(x)
        # resized in each call: cheap beside the network, and a stored grid could outlive the weights it came from
        resize = resample_pos_embed if _any_size(x) else resize_pos_embed
        x = x + resize(self.pos_embed, (x.shape[1], x.shape[2]))
        for stage in transformers:
            x = self._run(stage, x)
            outputs.append(x)
        return outputs

    def _run(self, stage: nn.Module, x: Tensor) -> Tensor:
        for block in stage.children():
            recompute = self.with_cp and self.training and torch.is_grad_enabled()
            x = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
        return x

    def __prepare_scriptable__(self) -> nn.Module:
        """What ``torch.jit.script`` compiles in place of this module: its trace, for any batch and image size."""
        if self.training:
            raise ValueError('torch.jit.script needs VOLO in evaluation mode: call model.eval() first')
        return _Traced(self)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Set ``with_cp``; the name is timm's."""
        self.with_cp = enable

    def train(self, mode: bool = True) -> VOLO:
        """Set the mode; frozen modules stay in evaluation mode."""
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        return self

    def _frozen_modules(self) -> list[nn.Module]:
        if self.frozen_stages < 0:
            return []
        # stages 1 to 4 end with network[0], network[2] (network[1] is the downsampling), network[3], network[4]
        count = 0 if self.frozen_stages == 0 else 1 if self.frozen_stages == 1 else self.frozen_stages + 1
        return [self.patch_embed, *self.network[:count]]

    def _freeze(self) -> None:
        for module in self._frozen_modules():
            module.requires_grad_(False)
        if self.frozen_stages >= 2:
            self.pos_embed.requires_grad_(False)


class _Traced(nn.Module):
    def __init__(self, model: VOLO) -> None:
        super().__init__()
        rows, columns = model.pos_embed.shape[1:3]
        with torch.no_grad():
            self.traced = torch.jit.trace(model, model.pos_embed.new_zeros(1, 3, 16 * rows, 16 * columns))

    @no_type_check  # TorchScript knows no tuple of any length
    def forward(self, x: Tensor):
        return self.traced(x)


def _any_size(x: Tensor) -> bool:
    """Whether the operations on ``x`` are recorded for images of other sizes too."""
    return exporting() or bool(why_plain(x))


def drop_path_rates(depths: Sequence[int], rate: float, rule: str) -> list[float]:
    """Stochastic depth rate of each block in order; see ``drop_path_rule`` of :class:`VOLO`."""
    if rule not in ('official', 'linear'):
        raise ValueError(f"drop_path_rule={rule!r} is not 'official' or 'linear'")
    if not 0.0 <= rate < 1.0:
        raise ValueError(f'drop_path_rate={rate} is not in [0, 1)')
    total = sum(depths)
    rates = [rate * i / (total - 1) for i in range(total)]
    return rates if rule == 'linear' else [0.0] * depths[0] + rates[depths[0] :]


def _find_arch(arch: str | Mapping[str, Any]) -> tuple[str, Architecture]:
    if isinstance(arch, str):
        if arch not in VARIANTS:
            raise ValueError(f'arch={arch!r} is not one of {", ".join(VARIANTS)}')
        return arch, VARIANTS[arch]
    if set(arch) != set(Architecture._fields):
        raise ValueError(f'arch has the fields {sorted(arch)}; it needs {sorted(Architecture._fields)}')
    fields: dict[str, Any] = {key: tuple(v) if isinstance(v, Sequence) else v for key, v in arch.items()}
    return 'custom', Architecture(**fields)


def check_out_indices(out_indices: Sequence[int]) -> tuple[int, ...]:
    indices = tuple(out_indices)
    if not indices or not set(indices) <= {0, 1, 2, 3} or list(indices) != sorted(set(indices)):
        raise ValueError(f'out_indices={indices} must be stages of 0, 1, 2, 3 in ascending order')
    return indices


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
