"""Entry points of ``torch.hub``. Backbones need torch and safetensors, the segmentor needs all that volo-seg needs."""

from typing import Any as _Any

from torch import nn as _nn

dependencies = ['torch', 'safetensors']


def _volo(arch: str, pretrained: bool | str, arguments: dict[str, _Any]) -> _nn.Module:
    from volo_seg.checkpoints import load_pretrained
    from volo_seg.layers import VOLOFeatures

    model = VOLOFeatures(arch, **arguments)
    if pretrained:
        source = f'volo_{arch}_224' if pretrained is True else pretrained
        loaded = load_pretrained(model.state_dict(), source, model_name=f'volo_{arch}')
        model.load_state_dict(loaded.state_dict)
    return model.eval()


def volo_d1(pretrained: bool | str = False, **arguments: _Any) -> _nn.Module:
    """The backbone VOLO-D1: images (B, 3, H, W) to four feature maps at strides 8, 16, 16, 16.

    Args:
        pretrained: Whether to load the official ImageNet weights at 224 pixels (downloaded once), or a weights file.
        arguments: Arguments of ``volo_seg.layers.VOLOFeatures``, such as ``out_indices`` and ``img_size``.
    """
    return _volo('d1', pretrained, arguments)


def volo_d2(pretrained: bool | str = False, **arguments: _Any) -> _nn.Module:
    """The backbone VOLO-D2; arguments as for ``volo_d1``."""
    return _volo('d2', pretrained, arguments)


def volo_d3(pretrained: bool | str = False, **arguments: _Any) -> _nn.Module:
    """The backbone VOLO-D3; arguments as for ``volo_d1``."""
    return _volo('d3', pretrained, arguments)


def volo_d4(pretrained: bool | str = False, **arguments: _Any) -> _nn.Module:
    """The backbone VOLO-D4; arguments as for ``volo_d1``."""
    return _volo('d4', pretrained, arguments)


def volo_d5(pretrained: bool | str = False, **arguments: _Any) -> _nn.Module:
    """The backbone VOLO-D5; arguments as for ``volo_d1``."""
    return _volo('d5', pretrained, arguments)


def volo_nano(pretrained: bool | str = False, **arguments: _Any) -> _nn.Module:
    """The backbone VOLONano: images (B, 3, H, W) to four feature maps at strides 4, 8, 16, 32.

    Args:
        pretrained: Whether to load the backbone of ``volo-nano_toyscapes``, which ships, or a weights file.
        arguments: Arguments of ``volo_seg.layers.VOLONanoFeatures``.
    """
    from volo_seg.checkpoints import load_equal
    from volo_seg.layers import VOLONanoFeatures

    model = VOLONanoFeatures(**arguments)
    if pretrained:
        source = 'volo-nano_toyscapes' if pretrained is True else pretrained
        model.load_state_dict(load_equal(model.state_dict(), source, model_name='VOLONano'))
    return model.eval()


def volo_nano_toyscapes() -> _nn.Module:
    """The segmentor that ships: normalised RGB images (B, 3, H, W) to logits (B, 19, h, w)."""
    return predictor('volo-nano_toyscapes', device='cpu').model


def predictor(name: str = 'volo-nano_toyscapes', **options: _Any) -> _Any:
    """What ``volo_seg.inference.load_predictor`` gives: ``predictor('street.jpg').labels``.

    Args:
        name: Weights that ship, a checkpoint, a published folder, ``OWNER/NAME`` on the Hugging Face hub, or ``.onnx``.
        options: Arguments of ``load_predictor``, such as ``device``.
    """
    from volo_seg.inference import load_predictor

    return load_predictor(name, **options)
