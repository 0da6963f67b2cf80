"""The peers that benchmarks of whole networks are measured against, built from timm and mmseg as they are."""

import os
import warnings

import torch
from torch import Tensor, nn

os.environ.setdefault('NO_ALBUMENTATIONS_UPDATE', '1')
warnings.filterwarnings('ignore')
if torch.version.cuda is None and not torch.cuda.is_available():
    # a torchvision built for CUDA, which timm imports, lacks these two beside a torch without CUDA
    _torchvision = torch.library.Library('torchvision', 'DEF')
    for _name in ('nms', 'qnms'):
        _torchvision.define(f'{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')

import timm  # noqa: E402

import volo_seg.models  # noqa: E402, F401


class TimmVOLO(nn.Module):
    """timm's VOLO as a dense backbone for one image size: the four stages as NCHW maps, without output norms.

    Its outlook attention is the published one (unfold, matmul, fold). With ``naive``, its self-attention is too
    (softmax of a matrix that is kept), which makes it the published code; without, it is scaled-dot-product attention.
    """

    def __init__(self, arch: str, size: tuple[int, int], *, naive: bool) -> None:
        super().__init__()
        model = timm.create_model(f'volo_{arch}_224', img_size=size)
        self.patch_embed, self.network, self.pos_embed = model.patch_embed, model.network, model.pos_embed
        for module in self.modules():
            if hasattr(module, 'fused_attn'):
                module.fused_attn = not naive

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Encode ``image`` (B, 3, H, W) of the one size."""
        x = self.patch_embed(image).permute(0, 2, 3, 1)
        maps = []
        for index, block in enumerate(self.network):
            if index == 2:
                x = x + self.pos_embed
            x = block(x)
            if index != 1:
                maps.append(x.permute(0, 3, 1, 2))
        return tuple(maps)


def copy_weights(ours: nn.Module, theirs: TimmVOLO) -> None:
    """Give our backbone the weights of timm's; only the output norms stay as they are."""
    missing, unexpected = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert not unexpected
    assert all(name.startswith('norm') for name in missing)


def training_step(model: nn.Module, image: Tensor) -> None:
    """Forward and backward through a sum of squares of every output."""
    model.zero_grad(set_to_none=True)
    outputs = model(image)
    outputs = outputs if isinstance(outputs, (tuple, list)) else [outputs]
    torch.stack([output.float().square().mean() for output in outputs]).sum().backward()
