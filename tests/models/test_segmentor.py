"""The segmentor against MMSegmentation's own: the same labels and logits, whatever the sizes, with less memory."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memory import peak_bytes
from mmengine.structures import PixelData
from torch import nn

from volo_seg.errors import UserError
from volo_seg.models.resize.logit_source import (
    AveragedLogits,
    CroppedLogits,
    FlippedLogits,
    ResizedLogits,
    TensorLogits,
    compute_labels,
    full_logits,
    row_chunks,
)
from volo_seg.models.segmentors import lazy_logits
from volo_seg.models.segmentors.volo_segmentor import max_windows_in_memory
from volo_seg.windows import MAX_WINDOWS, InferenceConfig, window_starts

from mmseg.models.decode_heads import FCNHead  # isort: skip
from mmseg.models.segmentors import EncoderDecoder, SegTTAModel  # isort: skip
from mmseg.registry import MODELS  # isort: skip
from mmseg.structures import SegDataSample  # isort: skip


@MODELS.register_module()
class PatchBackbone(nn.Module):
    """One convolution of stride ``stride``; sides round up."""

    def __init__(self, channels=6, stride=8):
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 3, stride, 1)
        self.batches = []

    def forward(self, x):
        self.batches.append(len(x))
        return (self.conv(x),)


@MODELS.register_module()
class ScaledFCNHead(FCNHead):
    """A head that does more to its map than to resize it, and looks at the description of each image."""

    def predict_by_feat(self, seg_logits, batch_img_metas):
        assert len(batch_img_metas) == len(seg_logits)
        offset = torch.tensor(batch_img_metas[0]['img_shape']).prod() / 1000
        return offset * super().predict_by_feat(seg_logits, batch_img_metas)


def head(classes=5, align_corners=False, kind='FCNHead', **others):
    return {
        'type': kind,
        'in_channels': 6,
        'in_index': 0,
        'channels': 6,
        'num_convs': 0,
        'concat_input': False,
        'num_classes': classes,
        'align_corners': align_corners,
        **others,
    }


def pair(test_cfg, *, ours=None, stride=8, dtype=torch.float64, **head_options):
    """MMSegmentation's segmentor and ours with the same weights."""
    from mmengine.config import ConfigDict

    backbone = {'type': 'PatchBackbone', 'stride': stride}
    models = [
        MODELS.build(
            {
                'type': kind,
                'backbone': backbone,
                'decode_head': head(**head_options),
                'test_cfg': ConfigDict({**test_cfg, **extra}),
            }
        )
        for kind, extra in (('EncoderDecoder', {}), ('VOLOSegmentor', ours or {}))
    ]
    for model in models:
        generator = torch.Generator().manual_seed(1)
        for parameter in model.parameters():
            nn.init.normal_(parameter, generator=generator)
    models[1].load_state_dict(models[0].state_dict(), strict=True)
    return [model.to(dtype).eval() for model in models]


def sample(ori_shape, **meta):
    data = SegDataSample()
    data.set_metainfo({'ori_shape': ori_shape, 'img_path': 'street.png', **meta})
    return data


def predictions(models, inputs, samples):
    with torch.no_grad():
        return [model.predict(inputs.clone(), copy.deepcopy(samples)) for model in models]


def assert_same(theirs, ours, tolerance=1e-10):
    assert len(theirs) == len(ours)
    for a, b in zip(theirs, ours, strict=True):
        assert b.seg_logits.shape == a.seg_logits.shape
        torch.testing.assert_close(b.seg_logits.data, a.seg_logits.data, rtol=tolerance, atol=tolerance)
        assert b.pred_sem_seg.data.dtype == a.pred_sem_seg.data.dtype
        differ = a.pred_sem_seg.data != b.pred_sem_seg.data
        if differ.any():
            best = a.seg_logits.data.topk(2, dim=0).values
            assert float((best[0] - best[1])[differ[0]].max()) <= tolerance, 'labels differ away from a tie'


SLIDE = {'mode': 'slide', 'crop_size': (32, 40), 'stride': (20, 25)}


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(9, 90), st.integers(9, 90)),
    ori=st.none() | st.tuples(st.integers(5, 120), st.integers(5, 120)),
    padding=st.tuples(*[st.integers(0, 3)] * 4),
    flip=st.sampled_from([None, 'horizontal', 'vertical']),
    align_corners=st.booleans(),
    classes=st.sampled_from([1, 5]),
    slide=st.booleans(),
    images=st.integers(1, 2),
    budget=st.sampled_from([0.001, 0.01, 64]),
)
def test_predict_equals_mmseg(size, ori, padding, flip, align_corners, classes, slide, images, budget):
    """Any size, original size, padding, flip, binary or not, whole or slide: in float64 to 1e-10."""
    height, width = size[0] + padding[2] + padding[3], size[1] + padding[0] + padding[1]
    options = {'out_channels': 1, 'threshold': 0.4, 'classes': 2} if classes == 1 else {'classes': classes}
    config = SLIDE if slide else {'mode': 'whole'}
    models = pair(config, ours={'logits_budget': budget}, align_corners=align_corners, **options)
    meta = {'img_shape': size, 'pad_shape': (height, width), 'padding_size': padding}
    meta |= {'flip': flip is not None, 'flip_direction': flip}
    samples = [sample(ori or size, **meta) for _ in range(images)]
    assert_same(*predictions(models, torch.randn(images, 3, height, width, dtype=torch.float64), samples))


@pytest.mark.parametrize('config', [SLIDE, {'mode': 'whole'}])
def test_float32_equals_mmseg(config):
    models = pair(config, dtype=torch.float32)
    samples = [sample((150, 201), img_shape=(77, 99), pad_shape=(77, 99))]
    assert_same(*predictions(models, torch.randn(1, 3, 77, 99), samples), tolerance=1e-4)


@pytest.mark.parametrize('config', [SLIDE, {'mode': 'whole'}])
def test_predict_without_samples(config):
    models = pair(config)
    assert_same(*predictions(models, torch.randn(2, 3, 50, 61, dtype=torch.float64), None))


def test_test_time_padding_of_the_preprocessor():
    """``img_padding_size`` of the data preprocessor goes before ``padding_size`` of the pipeline."""
    models = pair({'mode': 'whole'})
    meta = {'img_shape': (60, 60), 'pad_shape': torch.Size([64, 72])}
    samples = [sample((60, 60), img_padding_size=(0, 12, 0, 4), padding_size=(1, 1, 1, 1), **meta)]
    theirs, ours = predictions(models, torch.randn(1, 3, 64, 72, dtype=torch.float64), samples)
    assert ours[0].pred_sem_seg.shape == (60, 60)
    assert_same(theirs, ours)


@pytest.mark.parametrize('batch_windows', [1, 2, 5, 100])
def test_windows_in_batches(batch_windows):
    """Batches split the windows as asked, and change nothing."""
    models = pair(SLIDE, ours={'batch_windows': batch_windows})
    samples = [sample((75, 90), img_shape=(75, 90), pad_shape=(75, 90)) for _ in range(2)]
    assert_same(*predictions(models, torch.randn(2, 3, 75, 90, dtype=torch.float64), samples))
    theirs, ours = (model.backbone.batches for model in models)
    assert sum(ours) == sum(theirs) == 2 * len(window_starts(75, 32, 20)) * len(window_starts(90, 40, 25))
    assert max(ours) == 2 * min(batch_windows, sum(theirs) // 2)


@pytest.mark.parametrize('config', [SLIDE, {'mode': 'whole'}])
def test_heads_with_a_prediction_of_their_own(config):
    models = pair(config, ours={'batch_windows': 3}, kind='ScaledFCNHead')
    samples = [sample((75, 90), img_shape=(75, 90), pad_shape=(75, 90))]
    assert_same(*predictions(models, torch.randn(1, 3, 75, 90, dtype=torch.float64), samples))


def test_maps_of_image_size_are_summed_in_place():
    """A head whose map is as large as the window: one sum at image size instead of all windows' maps."""
    models = pair({**SLIDE, 'stride': (8, 10)}, ours={'logits_budget': 0.1}, stride=1, classes=40)
    samples = [sample((75, 90), img_shape=(75, 90), pad_shape=(75, 90))]
    inputs = torch.randn(1, 3, 75, 90, dtype=torch.float64)
    assert_same(*predictions(models, inputs, samples))
    with torch.no_grad():
        used = [peak_bytes(lambda m=m: m.predict(inputs, copy.deepcopy(samples))) for m in models]
    assert used[1] < 0.7 * used[0], used


def test_one_window_is_the_whole_image():
    slide, whole = (pair(config)[1] for config in ({**SLIDE, 'crop_size': (64, 64)}, {'mode': 'whole'}))
    slide.load_state_dict(whole.state_dict())
    inputs = torch.randn(1, 3, 48, 64, dtype=torch.float64)
    assert_same(*(m.predict(inputs, [sample((48, 64), img_shape=(48, 64))]) for m in (whole, slide)))


def test_slide_inference_equals_mmseg():
    models = pair(SLIDE)
    inputs = torch.randn(2, 3, 75, 90, dtype=torch.float64)
    with torch.no_grad():
        theirs, ours = (m.slide_inference(inputs, [{'img_shape': (75, 90)} for _ in range(2)]) for m in models)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_loss_and_tensor_mode_are_mmsegs():
    models = pair({'mode': 'whole'}, dropout_ratio=0)
    inputs = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    truth = sample((32, 32), img_shape=(32, 32))
    truth.gt_sem_seg = PixelData(data=torch.randint(0, 5, (1, 32, 32)))
    losses = [m(inputs, [copy.deepcopy(truth) for _ in range(2)], mode='loss') for m in models]
    assert {k: v.item() for k, v in losses[0].items()} == {k: v.item() for k, v in losses[1].items()}
    assert torch.equal(models[0](inputs), models[1](inputs))


def test_test_time_augmentation_equals_mmseg():
    """MMSegmentation's own ``SegTTAModel`` works on top, unchanged."""
    preprocess = {'type': 'SegDataPreProcessor', 'mean': [100] * 3, 'std': [50] * 3}
    results = []
    for model in pair(SLIDE, dtype=torch.float32):
        tta = SegTTAModel(module=model)
        model.data_preprocessor = MODELS.build(preprocess)
        images, views = torch.randint(0, 256, (3, 77, 90), generator=torch.Generator().manual_seed(3)), []
        for scale, flip in ((1, False), (1, True), (0.6, False), (0.6, True)):
            view = nn.functional.interpolate(images[None].float(), scale_factor=scale)[0].byte()
            view = view.flip(2) if flip else view
            meta = {'img_shape': view.shape[1:], 'flip': flip, 'flip_direction': 'horizontal' if flip else None}
            views.append(([view], [sample((77, 90), **{**meta, 'img_shape': tuple(view.shape[1:])})]))
        data = {'inputs': [v for v, _ in views], 'data_samples': [s for _, s in views]}
        with torch.no_grad():
            results.append(tta.test_step(data)[0].pred_sem_seg.data)
    assert (results[0] != results[1]).float().mean() < 1e-3


def predicted(**ours):
    model = pair({'mode': 'whole'}, ours=ours)[1]
    inputs = torch.randn(1, 3, 40, 56, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return model.predict(inputs, [sample((40, 56), img_shape=(40, 56))])[0]


def test_logits_are_computed_when_looked_at():
    result = predicted()
    assert result.seg_logits.shape == (40, 56) and 'data' in result.seg_logits
    assert result.seg_logits.data.shape == (5, 40, 56)
    assert torch.equal(result.seg_logits.data.argmax(0, keepdim=True), result.pred_sem_seg.data)
    for copied in (result.seg_logits.clone(), result.seg_logits.cpu(), result.cpu().seg_logits):
        assert type(copied) is PixelData
        assert torch.equal(copied.data, result.seg_logits.data)


def test_dictionaries_of_results_compute_no_logits(monkeypatch):
    """Evaluators turn every result into a dictionary; that must not cost a map at image size."""
    expected, result = predicted().seg_logits.data, predicted()
    calls = []
    monkeypatch.setattr(lazy_logits, 'full_logits', lambda *a, **k: calls.append(1) or full_logits(*a, **k))
    entry = result.to_dict()['seg_logits']
    assert list(entry) == ['data'] and len(entry) == 1 and 'data' in entry and entry and result.seg_logits.shape
    assert not calls
    assert torch.equal(entry['data'], expected) and entry['data'] is result.seg_logits.data
    assert len(calls) == 1
    with pytest.raises(KeyError):
        entry['scores']


def test_kept_logits():
    result = predicted(keep_logits=True)
    assert type(result.seg_logits) is PixelData
    assert torch.equal(result.to_dict()['seg_logits']['data'], predicted().seg_logits.data)


def test_low_precision_is_resized_in_float32():
    """bfloat16 logits are enlarged without further rounding, so their labels equal those of the exact enlargement."""
    logits = torch.randn(4, 5, 6).bfloat16()
    source = ResizedLogits(TensorLogits(logits), (40, 48), align_corners=False)
    exact = nn.functional.interpolate(logits[None].float(), (40, 48), mode='bilinear')[0]
    torch.testing.assert_close(full_logits(source, budget=2**20), exact, rtol=1e-6, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(
    source=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    target=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    align_corners=st.booleans(),
    start=st.integers(0, 89),
)
def test_resized_rows_equal_interpolate(source, target, align_corners, start):
    logits = torch.randn(3, *source, dtype=torch.float64)
    whole = nn.functional.interpolate(logits[None], target, mode='bilinear', align_corners=align_corners)[0]
    start = min(start, target[0] - 1)
    rows = ResizedLogits(TensorLogits(logits), target, align_corners=align_corners).rows(start, target[0])
    torch.testing.assert_close(rows.permute(2, 0, 1), whole[:, start:], rtol=1e-11, atol=1e-11)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.integers(1, 120), st.integers(1, 120))
def test_windows_cover_the_axis(length, window, stride):
    starts, window = window_starts(length, min(window, length), min(stride, window)), min(window, length)
    covered = {pixel for start in starts for pixel in range(start, start + window)}
    assert covered == set(range(length))
    assert len(set(starts)) == len(starts)


def stacked(budget_mib, weights='uniform'):
    """Windows, padding, flip and a second size: every kind of source at once."""
    logits = torch.randn(2, 150, 8, 16).contiguous(memory_format=torch.channels_last)
    windows = [
        (0, left, ResizedLogits(TensorLogits(part), (64, 128), align_corners=False))
        for part, left in zip(logits, (0, 64), strict=True)
    ]
    averaged = AveragedLogits(windows, (64, 192), weights=weights)
    flipped = FlippedLogits(CroppedLogits(averaged, top=0, bottom=60, left=0, right=180), horizontal=True)
    return ResizedLogits(flipped, (128, 384), align_corners=False), int(budget_mib * 2**20)


@pytest.mark.parametrize(('budget', 'weights'), [(1, 'uniform'), (2, 'uniform'), (4, 'uniform'), (1, 'hann')])
def test_labels_stay_within_their_budget(budget, weights):
    source, allowed = stacked(budget, weights)
    used = peak_bytes(lambda: compute_labels(source, budget=allowed))
    labels, small = 8 * source.size[0] * source.size[1], 2**17
    assert used - labels <= allowed + small
    assert source.row_bytes(source.size[0]) > 6 * allowed  # the whole map would not have fit
    assert len(list(row_chunks(source, allowed))) > 1


@pytest.mark.parametrize('config', [{**SLIDE, 'crop_size': (128, 128), 'stride': (96, 96)}, {'mode': 'whole'}])
def test_predict_takes_a_fraction_of_mmsegs_memory(config):
    models = pair(config, dtype=torch.float32, classes=150)
    inputs = torch.randn(1, 3, 256, 320)
    used = []
    for model in models:
        with torch.no_grad():
            used.append(peak_bytes(lambda m=model: m.predict(inputs, [sample((256, 320), img_shape=(256, 320))])))
    assert used[1] < 0.3 * used[0], used


def test_as_many_windows_as_fit(monkeypatch):
    """Half of what is free, one at least, no more than are of use."""
    monkeypatch.setattr(torch.cuda, 'mem_get_info', lambda device: (600, 1000))
    monkeypatch.setattr(torch.cuda, 'memory_reserved', lambda device: 300)
    monkeypatch.setattr(torch.cuda, 'memory_allocated', lambda device: 100)
    device = torch.device('cuda')
    assert max_windows_in_memory(100, device) == 4
    assert max_windows_in_memory(5000, device) == 1
    assert max_windows_in_memory(1, device) == MAX_WINDOWS


ERRORS = [
    ({'mode': 'sliding'}, "test_cfg.mode='sliding' is not known; choose 'whole' or 'slide'"),
    ({'mode': 'slide'}, "test_cfg.crop_size=None must be (height, width) in pixels for test_cfg.mode='slide'"),
    (
        {'mode': 'slide', 'crop_size': (64, 64)},
        "test_cfg.stride=None must be (height, width) in pixels for test_cfg.mode='slide'",
    ),
    ({'mode': 'slide', 'crop_size': 64, 'stride': (32, 32)}, 'test_cfg.crop_size=64 must be (height, width)'),
    ({**SLIDE, 'stride': (0, 25)}, 'test_cfg.stride=(0, 25) must be (height, width)'),
    ({**SLIDE, 'stride': (20.0, 25)}, 'test_cfg.stride=(20.0, 25) must be (height, width)'),
    (
        {**SLIDE, 'stride': (33, 25)},
        'test_cfg.stride=(33, 25) is larger than test_cfg.crop_size=(32, 40) and leaves pixels between windows; '
        'make it smaller',
    ),
    ({'window_weights': 'hamming'}, "test_cfg.window_weights='hamming' is not known; choose 'uniform', 'hann' or"),
    ({'window_weights': None}, 'test_cfg.window_weights=None is not known'),
    ({'batch_windows': 0}, "test_cfg.batch_windows=0 must be a number of windows, 1 or more, or 'auto'"),
    ({'batch_windows': 'many'}, "test_cfg.batch_windows='many' must be a number of windows, 1 or more, or 'auto'"),
    ({'logits_budget': 0}, 'test_cfg.logits_budget=0 must be a number of MiB above 0'),
    ({'logits_budget': '64MB'}, "test_cfg.logits_budget='64MB' must be a number of MiB above 0"),
]


@pytest.mark.parametrize(('config', 'message'), ERRORS)
def test_errors_of_test_cfg(config, message):
    with pytest.raises(UserError) as error:
        InferenceConfig.from_test_cfg(config)
    assert message in str(error.value)


def test_a_wrong_test_cfg_stops_the_build():
    with pytest.raises(ValueError, match="test_cfg.mode='sliding' is not known"):
        pair({'mode': 'whole'}, ours={'mode': 'sliding'})


def test_a_flip_that_cannot_be_undone():
    model = pair({'mode': 'whole'})[1]
    flipped = sample((40, 56), img_shape=(40, 56), flip=True, flip_direction='diagonal')
    message = "flip_direction='diagonal' of street.png cannot be undone when testing; flip 'horizontal' or 'vertical'"
    with pytest.raises(UserError) as error, torch.no_grad():
        model.predict(torch.randn(1, 3, 40, 56, dtype=torch.float64), [flipped])
    assert str(error.value) == message


def test_no_test_cfg_means_whole():
    assert InferenceConfig.from_test_cfg(None) == InferenceConfig(mode='whole')


def test_the_class_is_a_segmentor_of_mmseg():
    assert issubclass(MODELS.get('VOLOSegmentor'), EncoderDecoder)
