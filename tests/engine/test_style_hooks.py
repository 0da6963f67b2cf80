"""Mixing of styles within a batch: Fourier amplitudes of images, statistics of features; strong colours and blur."""

from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from mmseg.registry import TRANSFORMS
from torch import nn

from volo_seg.engine.hooks import FourierMixHook, MixStyleHook
from volo_seg.engine.hooks.fourier_mix_hook import mix_amplitudes
from volo_seg.errors import UserError
from volo_seg.seeding import seed_generators


def images(count=2, size=(40, 56)):
    generator = torch.Generator().manual_seed(3)
    smooth = torch.rand(count, 3, 5, 7, generator=generator)
    large = nn.functional.interpolate(smooth, size, mode='bicubic')
    return (60 + 120 * large + 10 * torch.rand(count, 3, *size, generator=generator)).clamp(0, 255)


def reference(image, other, share, beta):
    """FDA as its authors write it, with the amplitude of the centre mixed instead of replaced."""
    (h, w), most = image.shape[1:], int(beta * min(image.shape[1:]))
    spectra = [np.fft.fftshift(np.fft.fft2(one.numpy(), axes=(1, 2)), axes=(1, 2)) for one in (image, other)]
    amplitudes, phase = [np.abs(s) for s in spectra], np.angle(spectra[0])
    box = (slice(None), slice(h // 2 - most, h // 2 + most + 1), slice(w // 2 - most, w // 2 + most + 1))
    amplitudes[0][box] = (1 - share) * amplitudes[0][box] + share * amplitudes[1][box]
    mixed = np.fft.ifft2(np.fft.ifftshift(amplitudes[0] * np.exp(1j * phase), axes=(1, 2)), axes=(1, 2))
    return torch.from_numpy(np.clip(mixed.real, 0, 255)).float()


@pytest.mark.parametrize('size', [(40, 56), (41, 57)])
@pytest.mark.parametrize('beta', [0.01, 0.08, 0.3])
def test_amplitudes_are_mixed_as_in_the_paper(size, beta):
    one, other = images(size=size)
    found = mix_amplitudes(one, other, share=0.7, beta=beta)
    torch.testing.assert_close(found, reference(one, other, 0.7, beta), atol=2e-3, rtol=0)
    assert (found - one).abs().max() > 1
    whole = mix_amplitudes(one.round().to(torch.uint8), other.round().to(torch.uint8), share=0.7, beta=beta)
    assert whole.dtype == torch.uint8 and (whole.float() - found).abs().max() < 3
    torch.testing.assert_close(mix_amplitudes(one, other, share=0.0, beta=beta), one, atol=2e-3, rtol=0)


@pytest.mark.parametrize('stacked', [True, False])
def test_fourier_mix_hook_changes_the_batch(stacked):
    before = images(8).to(torch.uint8)
    batch = {'inputs': before.clone() if stacked else list(before)}
    torch.manual_seed(1)
    FourierMixHook(prob=0.5).before_train_iter(None, 0, batch)
    assert isinstance(batch['inputs'], torch.Tensor) is stacked
    changed = [not torch.equal(one, other) for one, other in zip(batch['inputs'], before, strict=True)]
    assert 1 < sum(changed) < 7
    again = {'inputs': list(before)}
    torch.manual_seed(1)
    FourierMixHook(prob=0.5).before_train_iter(None, 0, again)
    assert all(torch.equal(one, other) for one, other in zip(batch['inputs'], again['inputs'], strict=True))
    sizes = {'inputs': [before[0], before[1][:, :20]]}
    FourierMixHook(prob=1.0).before_train_iter(None, 0, sizes)
    assert torch.equal(sizes['inputs'][1], before[1][:, :20])


def mixed(x, seed=0, channels_last=True, **options):
    model = nn.Sequential(nn.Identity(), nn.Flatten())
    hook = MixStyleHook(modules=['0'], channels_last=channels_last, **{'prob': 1.0, **options})
    hook.before_train(SimpleNamespace(model=model))
    torch.manual_seed(seed)
    found = model[0](x)
    model.eval()
    assert model[0](x) is x
    model.train()
    hook.after_train(None)
    assert model[0](x) is x
    return found


@pytest.mark.parametrize('channels_last', [True, False])
def test_mix_style_is_that_of_the_paper(channels_last):
    x = (torch.randn(6, 7, 8, 5) * torch.rand(6, 1, 1, 5) * 4 + torch.randn(6, 1, 1, 5)).requires_grad_()
    given = x if channels_last else x.permute(0, 3, 1, 2)
    found = mixed(given, channels_last=channels_last)
    found = found if channels_last else found.permute(0, 2, 3, 1)
    torch.manual_seed(0)
    torch.rand(())
    share = torch.distributions.Beta(0.1, 0.1).sample((6, 1, 1, 1))
    order = torch.randperm(6)
    mean, deviation = x.mean((1, 2), keepdim=True).detach(), x.var((1, 2), keepdim=True).detach().add(1e-6).sqrt()
    wanted = (x - mean) / deviation * (share * deviation + (1 - share) * deviation[order])
    wanted = wanted + share * mean + (1 - share) * mean[order]
    torch.testing.assert_close(found, wanted)
    (gradient,) = torch.autograd.grad(found.sum(), x)
    torch.testing.assert_close(
        gradient[:, 0, 0], ((share * deviation + (1 - share) * deviation[order]) / deviation)[:, 0, 0]
    )
    assert mixed(x[:1]).equal(x[:1]) and mixed(x, prob=0.0).equal(x)


def test_mistakes():
    with pytest.raises(UserError, match='FourierMixHook: prob=0.5, beta=0.7'):
        FourierMixHook(beta=0.7)
    with pytest.raises(UserError, match='alpha=0 is not above 0'):
        MixStyleHook(modules=['a'], alpha=0)
    with pytest.raises(UserError, match="MixStyleHook: the model has no module 'stem'; name one"):
        MixStyleHook(modules=['stem']).before_train(SimpleNamespace(model=nn.Identity()))
    with pytest.raises(ValueError, match='prob=3'):
        TRANSFORMS.build(dict(type='StrongColourAndBlur', prob=3))


def test_strong_colours_change_the_image_alone_and_by_the_seed():
    image = images(1)[0].permute(1, 2, 0).numpy().astype(np.uint8)
    labels = np.zeros(image.shape[:2], np.uint8)
    step = TRANSFORMS.build(dict(type='StrongColourAndBlur'))
    found = []
    for seed in range(40):
        seed_generators(seed)
        results = step(dict(img=image.copy(), gt_seg_map=labels))
        assert results['img'].dtype == np.uint8 and results['img'].shape == image.shape
        assert results['gt_seg_map'] is labels
        found.append(results['img'].astype(float))
    untouched = sum(np.array_equal(one, image) for one in found)
    assert 2 <= untouched <= 16
    assert np.std([one.mean() for one in found]) > 15
    assert any(np.abs(np.diff(one, axis=2)).mean() < 8 for one in found), 'none is grey'
    seed_generators(5)
    assert np.array_equal(step(dict(img=image.copy()))['img'], found[5])
    seed_generators(5)
    floating = step(dict(img=image.astype(np.float32)))['img']
    assert floating.dtype == np.float32 and np.abs(floating - found[5]).max() <= 0.51
    seed_generators(5)
    same = TRANSFORMS.build(dict(type='StrongColourAndBlur', strength=0.0, sigma=0.0, noise=0.0, prob=1.0))
    assert np.array_equal(same(dict(img=image.copy()))['img'], image)


def test_training_with_all_of_them_is_resumed_to_the_bit(data, tmp_path):
    """With the shipped seeding of iterations and samples."""
    (data / 'style.py').write_text(
        "_base_ = './tiny.py'\n"
        'train_pipeline = [*_base_.train_pipeline[:-1], dict(type="StrongColourAndBlur"), _base_.train_pipeline[-1]]\n'
        'train_dataloader = dict(dataset=dict(dataset=dict(pipeline=train_pipeline)))\n'
        'custom_hooks = [*_base_.custom_hooks, dict(type="FourierMixHook", beta=0.1),\n'
        '                dict(type="MixStyleHook", modules=["backbone.patch_embed"])]\n'
    )
    whole = tiny.train(data, tmp_path / 'whole', config='style.py')
    resumed = tiny.train(data, tmp_path / 'rest', '--resume', tmp_path / 'whole' / 'iter_3.pth', config='style.py')
    assert resumed == whole[3:]
    assert whole != tiny.train(data, tmp_path / 'plain')
