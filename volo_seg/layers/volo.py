"""VOLO as one torch module that gives feature maps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, no_type_check

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from volo_seg.layers.blocks import Outlooker, Transformer
from volo_seg.layers.embedding import Downsample, PatchEmbed, resample_pos_embed, resize_pos_embed
from volo_seg.layers.variants import VARIANTS, Architecture
from volo_seg.ops import exporting, why_plain

STRIDES = (8, 16, 16, 16)
"""Stride of each stage in pixels."""


class VOLOFeatures(nn.Module):
    """Vision Outlooker: outlookers at stride 8, transformers at stride 16, a LayerNorm for each output.

    Parameter names are those of the released checkpoints, except the output norms ``norm0`` to ``norm3``; ``norm3``
    loads the released final ``norm``. It needs torch alone; ``volo_seg.models.VOLO`` is the same network in
    MMSegmentation.

    Args:
        arch: A key of ``VARIANTS``, or a mapping with the fields of ``Architecture``.
        img_size: See ``volo_seg.models.VOLO``, as for all arguments below.
        out_indices: Stages to return, of 0..3, in ascending order.
        drop_path_rate: Largest stochastic depth rate, in [0, 1).
        drop_path_rule: ``'official'`` or ``'linear'``.
        with_cp: Recompute each block in the backward pass.
        norm_layer: Builds the normalisation of the stem from its number of channels.
        frozen_stages: -1 (nothing) to 4.

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
        norm_layer: Callable[[int], nn.Module] = nn.BatchNorm2d,
        frozen_stages: int = -1,
    ) -> None:
        super().__init__()
        self.arch_name, self.arch = find_arch(arch)
        self.out_indices = check_out_indices(out_indices)
        if not -1 <= frozen_stages <= 4:
            raise ValueError(f'frozen_stages={frozen_stages} is not one of -1 (none), 0 (stem), 1..4 (stages)')
        self.frozen_stages = frozen_stages
        self.with_cp = with_cp

        depths, dims, _, _, stem_channels = self.arch
        self.patch_embed = PatchEmbed(stem_channels, dims[0], norm_layer=norm_layer)
        rates = drop_path_rates(depths, drop_path_rate, drop_path_rule)
        stages = [self._build_stage(i, rates[sum(depths[:i]) : sum(depths[: i + 1])]) for i in range(4)]
        self.network = nn.ModuleList([stages[0], Downsample(dims[0], dims[1]), *stages[1:]])
        grid = [-(-side // 16) for side in ([img_size] * 2 if isinstance(img_size, int) else img_size)]
        self.pos_embed = nn.Parameter(torch.zeros(1, *grid, dims[1]))
        for i in self.out_indices:
            self.add_module(f'norm{i}', nn.LayerNorm(dims[i]))
        self._reset_parameters()
        self._freeze()

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

    def train(self, mode: bool = True) -> VOLOFeatures:
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
    def __init__(self, model: VOLOFeatures) -> None:
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
    """Stochastic depth rate of each block in order; see ``drop_path_rule`` of ``volo_seg.models.VOLO``."""
    if rule not in ('official', 'linear'):
        raise ValueError(f"drop_path_rule={rule!r} is not 'official' or 'linear'")
    if not 0.0 <= rate < 1.0:
        raise ValueError(f'drop_path_rate={rate} is not in [0, 1)')
    total = sum(depths)
    rates = [rate * i / (total - 1) for i in range(total)]
    return rates if rule == 'linear' else [0.0] * depths[0] + rates[depths[0] :]


def find_arch(arch: str | Mapping[str, Any]) -> tuple[str, Architecture]:
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
