"""Weights of sliding windows against a plain loop: positive everywhere, no seam where windows meet."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.config import ConfigDict
from torch import nn

from volo_seg.models.resize.logit_source import window_coverage
from volo_seg.windows import WINDOW_WEIGHTS, InferenceConfig, WindowGrid, window_profile, window_starts

from mmseg.registry import MODELS  # isort: skip

KINDS = tuple(WINDOW_WEIGHTS)
SMOOTH = [kind for kind in KINDS if kind != 'uniform']


@MODELS.register_module()
class PlacedBackbone(nn.Module):
    """One convolution of stride ``stride`` plus ``slope`` times the place across the window: seams where windows meet.

    ``constant`` gives the same value everywhere instead.
    """

    def __init__(self, stride=8, slope=0.0, constant=None):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, stride, 1)
        self.slope, self.constant = slope, constant

    def forward(self, x):
        x = self.conv(x)
        if self.constant is not None:
            return (torch.full_like(x, self.constant),)
        return (x + self.slope * torch.linspace(-1, 1, x.shape[-1], dtype=x.dtype),)


def segmentor(kind='VOLOSegmentor', **test_cfg):
    """A toy in float64, always of the same weights; with stride 1 whole maps are summed, with 8 small ones kept."""
    backbone = {key: test_cfg.pop(key) for key in ('stride_of_head', 'slope', 'constant') if key in test_cfg}
    if 'stride_of_head' in backbone:
        backbone['stride'] = backbone.pop('stride_of_head')
    head = {'in_channels': 6, 'in_index': 0, 'channels': 6, 'num_convs': 0, 'concat_input': False, 'num_classes': 5}
    model = MODELS.build(
        {
            'type': kind,
            'backbone': {'type': 'PlacedBackbone', **backbone},
            'decode_head': {'type': 'FCNHead', **head},
            'test_cfg': ConfigDict(test_cfg),
        }
    )
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        nn.init.normal_(parameter, generator=generator)
    return model.double().eval()


def logits_of(model, inputs):
    with torch.no_grad():
        return model.slide_inference(inputs, [{'img_shape': tuple(inputs.shape[2:])}] * len(inputs))


def profile_of(kind, length):
    return torch.tensor(window_profile(kind, length), dtype=torch.float64)


def reference_mean(model, inputs, config):
    """The weighted mean, window after window, each at image size."""
    total = weights = 0
    grid = WindowGrid(tuple(inputs.shape[2:]), crop_size=config.crop_size, stride=config.stride)
    height, width = grid.size
    down, across = (profile_of(config.window_weights, side) for side in grid.size)
    weight = down[:, None] * across
    for top, left in grid:
        with torch.no_grad():
            logits = model.encode_decode(
                inputs[:, :, top : top + height, left : left + width], [{'img_shape': (height, width)}] * len(inputs)
            )
        around = (left, grid.image[1] - left - width, top, grid.image[0] - top - height)
        total = total + F.pad(logits * weight, around)
        weights = weights + F.pad(weight, around)
    return total / weights


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    stride_of_head=st.sampled_from([1, 8]),
    size=st.tuples(st.integers(9, 80), st.integers(9, 80)),
    crop=st.tuples(st.integers(8, 48), st.integers(8, 48)),
    share=st.floats(0.3, 1),
    images=st.integers(1, 2),
    together=st.integers(1, 3),
)
def test_logits_are_the_weighted_mean(kind, stride_of_head, size, crop, share, images, together):
    stride = tuple(max(1, int(share * side)) for side in crop)
    test_cfg = {'mode': 'slide', 'crop_size': crop, 'stride': stride, 'window_weights': kind}
    model = segmentor(stride_of_head=stride_of_head, batch_windows=together, **test_cfg)
    inputs = torch.randn(images, 3, *size, dtype=torch.float64)
    expected = reference_mean(model, inputs, InferenceConfig.from_test_cfg(test_cfg))
    torch.testing.assert_close(logits_of(model, inputs), expected, rtol=1e-10, atol=1e-10)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    length=st.integers(1, 5000),
    window=st.integers(1, 2048),
    share=st.floats(0.01, 1),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_weights_are_positive_everywhere(kind, length, window, share, dtype):
    """At borders, in windows of one pixel, in images smaller than a window; their product does not vanish either."""
    window = min(window, length)
    starts = set(window_starts(length, window, max(1, int(share * window))))
    weight = window_coverage(starts, profile_of(kind, window).to(dtype), length)
    assert weight.shape == (length,)
    assert bool((weight > 0).all()) and bool(weight.isfinite().all())
    assert float(weight.min() ** 2) >= torch.finfo(dtype).tiny


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('length', [1, 2, 7, 512])
def test_profiles_are_symmetric_and_highest_in_the_middle(kind, length):
    profile = profile_of(kind, length)
    torch.testing.assert_close(profile, profile.flip(0))
    assert profile.argmax() in ((length - 1) // 2, 0 if kind == 'uniform' else length // 2)
    assert profile.max() <= 1


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('stride_of_head', [1, 8])
def test_one_window_is_the_whole_image(kind, stride_of_head):
    model = segmentor(crop_size=(64, 64), stride=(64, 64), window_weights=kind, stride_of_head=stride_of_head)
    inputs = torch.randn(1, 3, 48, 64, dtype=torch.float64)
    whole = model.encode_decode(inputs, [{'img_shape': (48, 64)}]).detach()
    torch.testing.assert_close(logits_of(model, inputs), whole, rtol=1e-12, atol=1e-12)
    assert torch.equal(logits_of(model, inputs).argmax(1), whole.argmax(1))


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('stride_of_head', [1, 8])
def test_constant_logits_stay_constant(kind, stride_of_head):
    model = segmentor(
        crop_size=(32, 40), stride=(20, 25), window_weights=kind, stride_of_head=stride_of_head, constant=1.5
    )
    logits = logits_of(model, torch.randn(1, 3, 77, 91, dtype=torch.float64))
    torch.testing.assert_close(logits, logits[:, :, :1, :1].expand_as(logits), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('explicit', [{}, {'window_weights': 'uniform'}])
def test_uniform_is_the_default_and_equals_mmseg(explicit):
    test_cfg = {'mode': 'slide', 'crop_size': (32, 40), 'stride': (20, 25)}
    theirs, ours = segmentor('EncoderDecoder', **test_cfg, slope=3), segmentor(**test_cfg, **explicit, slope=3)
    inputs = torch.randn(2, 3, 75, 90, dtype=torch.float64)
    torch.testing.assert_close(logits_of(ours, inputs), logits_of(theirs, inputs), rtol=1e-10, atol=1e-10)


def steepest(kind, stride_of_head):
    """The largest step between neighbours across, of logits that depend on the place in the window."""
    model = segmentor(
        crop_size=(64, 64), stride=(64, 32), window_weights=kind, stride_of_head=stride_of_head, slope=1.0
    )
    inputs = torch.zeros(1, 3, 64, 256, dtype=torch.float64)
    nn.init.zeros_(model.backbone.conv.weight)
    inner = logits_of(model, inputs)[..., 32:-32]
    return float(inner.diff(dim=-1).abs().max())


@pytest.mark.parametrize('kind', SMOOTH)
@pytest.mark.parametrize('stride_of_head', [1, 8])
def test_smooth_weights_lower_the_seam(kind, stride_of_head):
    """The plain mean jumps where a window begins or ends; smooth weights go over in many small steps."""
    assert steepest(kind, stride_of_head) < 0.2 * steepest('uniform', stride_of_head)
