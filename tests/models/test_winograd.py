"""Winograd's filtering equals the convolution, with gradients, at any size; it is used where it pays."""

import pytest
import torch
import torch.nn.functional as F

from volo_seg.models import winograd
from volo_seg.models.winograd import conv3x3, winograd_conv3x3


@pytest.fixture(params=[2**20, 300])
def chunk(request, monkeypatch):
    monkeypatch.setattr(winograd, 'CHUNK_VALUES', request.param)


def case(batch=2, channels=5, channels_out=4, height=7, width=10, dtype=torch.float64):
    x = torch.randn(batch, channels, height, width, dtype=dtype)
    weight = torch.randn(channels_out, channels, 3, 3, dtype=dtype)
    return x.requires_grad_(), weight.requires_grad_()


@pytest.mark.parametrize('sides', [(1, 1), (7, 10), (12, 9), (22, 4)], ids=str)
def test_equals_the_convolution(chunk, sides):
    inputs = case(height=sides[0], width=sides[1])
    result = winograd_conv3x3(*inputs)
    torch.testing.assert_close(result, F.conv2d(*inputs, padding=1))
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert torch.autograd.gradcheck(winograd_conv3x3, inputs, fast_mode=True)


def test_double_backward_and_single_gradients():
    x, weight = case(1, 2, 2, 3, 4)
    assert torch.autograd.gradgradcheck(winograd_conv3x3, (x, weight))
    assert torch.autograd.gradcheck(lambda x: winograd_conv3x3(x, weight.detach()), x)
    assert torch.autograd.gradcheck(lambda weight: winograd_conv3x3(x.detach(), weight), weight)


def test_float32_is_as_exact_as_the_convolution():
    inputs = case(1, 256, 256, 32, 32, torch.float32)
    exact = F.conv2d(*(tensor.detach().double() for tensor in inputs), padding=1)
    assert float((conv3x3(*inputs).detach() - exact).abs().max() / exact.abs().max()) < 1e-6


@pytest.mark.parametrize(
    ('options', 'used'),
    [
        ({}, True),
        ({'channels': 128}, False),
        ({'channels_out': 128}, False),
        ({'height': 8}, False),
        ({'dtype': torch.bfloat16}, False),
    ],
    ids=str,
)
def test_where_it_pays(options, used, monkeypatch):
    calls = []
    monkeypatch.setattr(winograd, 'winograd_conv3x3', lambda *inputs: calls.append(1) or F.conv2d(*inputs, padding=1))
    inputs = case(**{'batch': 1, 'channels': 256, 'channels_out': 256, 'height': 16, 'width': 16, **options})
    conv3x3(*inputs)
    assert bool(calls) is used
    calls.clear()
    with torch.autocast('cpu', torch.bfloat16):
        conv3x3(inputs[0].detach()[:, :, :2, :2], inputs[1].detach())
    conv3x3(*(tensor.to('meta') for tensor in inputs))
    assert not calls
