"""From a config and a checkpoint to labels: what MMSegmentation gives, at any size, by any way in."""

import socket

import cv2
import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from PIL import Image

import volo_seg.models  # noqa: F401
from volo_seg.checkpoints import save_file
from volo_seg.config.load import load_config
from volo_seg.errors import UserError
from volo_seg.inference import Predictor, load_predictor
from volo_seg.inference.exported_predictor import resize_image
from volo_seg.inference.loaded_model import forget_initial_weights
from volo_seg.inference.onnx_metadata import ResizeSpec
from volo_seg.inference.pipeline import FittedResize, image_pipeline
from volo_seg.inference.resizing import fitted_size
from volo_seg.visualization import default_palette

NANO = 'volo-nano_upernet_1xb4-1200_toyscapes-256x256'
D1 = 'volo-d1_upernet_8xb2-160k_ade20k-512x512'
PLAIN = {'mode': 'whole'}


def tiny_config(**model):
    """The nano config with the smallest VOLO, images of at most 64 x 128; keys of ``model`` are dotted."""
    config = tiny.use_volo(load_config(NANO))
    config.merge_from_dict({f'model.{key}': value for key, value in model.items()})
    config.test_dataloader.dataset.pipeline[1].scale = (128, 64)
    return config


def random_model(config, *, seed=0):
    """The model of ``config`` with weights that give several classes, batch statistics included."""
    init_default_scope('mmseg')
    torch.manual_seed(seed)
    model = MODELS.build({**config.model, 'backbone': {**config.model.backbone, 'init_cfg': None}})
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith('running_var'):
                value.uniform_(0.5, 2)
            elif value.is_floating_point() and value.ndim < 2:
                value.add_(0.2 * torch.randn_like(value))
            elif 'conv_seg.weight' in name:
                value.normal_(std=0.3)
    return model


def write_checkpoint(path, config, **meta):
    model = random_model(config)
    classes = tuple(f'class {i}' for i in range(19))
    described = {'classes': classes, 'palette': default_palette(19).tolist()}
    text = Config(config.to_dict(), format_python_code=False).pretty_text
    content = {'meta': {'cfg': text, 'dataset_meta': described, **meta}, 'state_dict': model.state_dict()}
    torch.save(content, path)
    return path


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('predictor')


@pytest.fixture(scope='module')
def checkpoint(folder):
    return write_checkpoint(folder / 'nano.pth', tiny_config())


@pytest.fixture(scope='module')
def predictor(checkpoint):
    return Predictor(tiny_config(), checkpoint, device='cpu', confidence=True, probabilities=True)


def noise(height, width, seed=0):
    """Coloured blobs, and some noise."""
    generator = np.random.default_rng(seed)
    blobs = generator.integers(0, 256, (-(-height // 12) + 1, -(-width // 12) + 1, 3), dtype=np.uint8)
    image = cv2.resize(blobs, (width, height), interpolation=cv2.INTER_CUBIC).reshape(height, width, 3)
    return np.clip(image + generator.normal(0, 8, image.shape), 0, 255).astype(np.uint8)


def check(result, image):
    """What holds for every result with confidence and probabilities."""
    classes = len(result.classes)
    assert result.labels.shape == result.confidence.shape == image.shape[:2]
    assert result.labels.dtype == np.uint8 and result.labels.max() < classes
    assert result.probabilities.shape == (classes, *image.shape[:2])
    assert result.confidence.dtype == result.probabilities.dtype == np.float32
    np.testing.assert_allclose(result.probabilities.sum(0), 1, atol=1e-5)
    of_label = np.take_along_axis(result.probabilities, result.labels[None].astype(int), 0)[0]
    np.testing.assert_allclose(result.confidence, of_label, atol=1e-6)
    np.testing.assert_array_equal(result.image, image)


def test_three_lines(folder, monkeypatch):
    """A shipped name and its weights; those it would start training from are not fetched."""
    config = load_config(D1)
    assert config.model.backbone.init_cfg.checkpoint == 'volo_d1_384'
    save_file(random_model(config).state_dict(), folder / 'd1.safetensors')
    monkeypatch.setattr(socket, 'create_connection', lambda *_, **__: pytest.fail('connects'))
    monkeypatch.setattr(socket.socket, 'connect', lambda *_: pytest.fail('connects'))
    monkeypatch.setattr(torch.hub, 'load_state_dict_from_url', lambda *_, **__: pytest.fail('downloads'))
    predictor = Predictor(D1, folder / 'd1.safetensors', device='auto', confidence=True)
    assert len(predictor.classes) == 150 and predictor.palette.shape == (150, 3)
    cv2.imwrite(str(folder / 'strip.png'), noise(1, 10000))
    result = predictor(folder / 'strip.png')
    assert result.labels.shape == result.confidence.shape == (1, 10000)
    assert result.probabilities is None


def test_equals_mmseg(predictor, folder):
    """Labels are those of MMSegmentation's own inference, which reads the file itself."""
    from mmseg.apis import inference_model

    cv2.imwrite(str(folder / 'image.png'), noise(75, 130))
    config = tiny_config()
    config.test_pipeline = config.test_dataloader.dataset.pipeline
    predictor.model.cfg = config
    sample = inference_model(predictor.model, str(folder / 'image.png'))
    result = predictor(folder / 'image.png')
    np.testing.assert_array_equal(result.labels, sample.pred_sem_seg.data[0].numpy())
    np.testing.assert_array_equal(result.labels, sample.seg_logits.data.argmax(0).numpy())
    assert len(np.unique(result.labels)) > 3
    check(result, noise(75, 130))


@settings(max_examples=12, deadline=None, database=None)
@given(
    st.lists(st.sampled_from([(40, 70), (64, 128), (32, 64), (128, 256), (1, 1), (17, 90)]), min_size=1, max_size=7),
    st.integers(1, 4),
)
def test_the_same_whatever_it_is_batched_with(predictor, sizes, batch_size):
    """Batches of one give the same bits. In larger ones matrix products of another shape add up in another order:

    logits of up to 10 then differ by some units in the last place (up to 1e-5), probabilities by less than 1e-4, and
    a label only where the two best classes are that close.
    """
    images = [noise(*size, seed=number) for number, size in enumerate(sizes)]
    alone = [predictor(image) for image in images]
    together = list(predictor.stream(images, batch_size=batch_size))
    for image, one, other in zip(images, alone, together, strict=True):
        check(other, image)
        np.testing.assert_allclose(other.probabilities, one.probabilities, atol=1e-4)
        best = np.sort(one.probabilities, 0)[-2:]
        clear = best[1] - best[0] > 2e-4
        np.testing.assert_array_equal(other.labels[clear], one.labels[clear])
        if batch_size == 1:
            np.testing.assert_array_equal(other.probabilities, one.probabilities)
            np.testing.assert_array_equal(other.labels, one.labels)


def test_confidence_alone_makes_no_whole_map(predictor, monkeypatch):
    """Labels and confidence are computed in stripes of rows; a map of all classes at image size never exists."""
    from volo_seg.models.resize import logit_source
    from volo_seg.models.segmentors import lazy_logits

    stripes = []
    rows = lazy_logits.LazyLogits.rows
    for module in (logit_source, lazy_logits):
        monkeypatch.setattr(module, 'full_logits', lambda *_, **__: pytest.fail('whole map'))
    monkeypatch.setattr(
        lazy_logits.LazyLogits,
        'rows',
        lambda self: (stripes.append(part[2].shape) or part for part in rows(self)),
    )
    monkeypatch.setattr(logit_source, 'CPU_CHUNK', 2**18)
    result = next(predictor.stream([noise(600, 1200)], confidence=True, probabilities=False))
    assert result.probabilities is None and result.confidence.shape == (600, 1200)
    assert sum(shape[0] for shape in stripes) == 600 and max(shape[0] for shape in stripes) < 60


def test_images_of_equal_network_size_share_a_batch(predictor, monkeypatch):
    """32 x 64, 64 x 128 and 128 x 256 all become 64 x 128."""
    sizes = []
    whole = predictor.model.test_step
    monkeypatch.setattr(predictor.model, 'test_step', lambda data: sizes.append(len(data['inputs'])) or whole(data))
    images = [noise(32, 64), noise(40, 70), noise(64, 128), noise(128, 256)]
    results = list(predictor.stream(images, batch_size=3))
    assert sorted(sizes) == [1, 3]
    for result, image in zip(results, images, strict=True):
        check(result, image)


@pytest.mark.parametrize('size', [(1, 1), (1, 10000), (10000, 1), (2, 3), (15, 17), (3000, 7)])
@pytest.mark.parametrize('mode', ['whole', 'slide'])
def test_extreme_sizes(checkpoint, size, mode):
    test_cfg = {'mode': mode, 'crop_size': (48, 48), 'stride': (32, 32)}
    predictor = Predictor(tiny_config(test_cfg=test_cfg), checkpoint, device='cpu', confidence=True, probabilities=True)
    image = noise(*size)
    check(predictor(image), image)


def test_extreme_sizes_as_they_are(checkpoint):
    """Without a step that resizes them."""
    config = tiny_config()
    del config.test_dataloader.dataset.pipeline[1]
    predictor = Predictor(config, checkpoint, device='cpu', confidence=True, probabilities=True)
    for size in ((1, 1), (1, 3000), (3000, 1)):
        check(predictor(noise(*size)), noise(*size))


@pytest.mark.parametrize('orientation', range(1, 9))
def test_a_turned_image_gets_turned_labels(predictor, folder, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = np.ascontiguousarray(noise(40, 64)[..., ::-1])
    back = {2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}.get(orientation)
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    stored = Image.fromarray(upright)
    if back is not None:
        stored = stored.transpose(turns[back])
    stored.save(folder / 'turned.png', exif=exif)
    result = predictor(folder / 'turned.png')
    np.testing.assert_array_equal(result.labels, predictor(upright[..., ::-1]).labels)


def test_plain_encoder_decoder(predictor, checkpoint, folder):
    """MMSegmentation's own segmentor, whose logits are there as a whole."""
    plain = Predictor(tiny_config(type='EncoderDecoder'), checkpoint, device='cpu', confidence=True, probabilities=True)
    assert type(plain.model).__name__ == 'EncoderDecoder'
    for size in ((40, 70), (1, 300), (150, 64)):
        ours, theirs = (p(noise(*size)) for p in (predictor, plain))
        check(theirs, noise(*size))
        np.testing.assert_array_equal(ours.labels, theirs.labels)
        np.testing.assert_allclose(ours.probabilities, theirs.probabilities, atol=1e-5)


@pytest.mark.parametrize('kind', ['VOLOSegmentor', 'EncoderDecoder'])
@pytest.mark.parametrize('keep', [False, True])
def test_one_channel(folder, kind, keep):
    """A head that tells one class from the rest: the second class is where the sigmoid exceeds the threshold."""
    loss = {'type': 'CrossEntropyLoss', 'use_sigmoid': True}
    head = {'num_classes': 2, 'out_channels': 1, 'threshold': 0.3, 'loss_decode': loss}
    model = {f'decode_head.{key}': value for key, value in head.items()}
    model |= {f'auxiliary_head.{key}': value for key, value in head.items()}
    test_cfg = {'mode': 'whole'} | ({'keep_logits': True} if keep and kind == 'VOLOSegmentor' else {})
    config = tiny_config(type=kind, test_cfg=test_cfg, **model)
    described = {'classes': ('ground', 'tree'), 'palette': [[1, 2, 3], [4, 5, 6]]}
    path = write_checkpoint(folder / 'binary.pth', config, dataset_meta=described)
    predictor = Predictor(config, path, device='cpu', confidence=True, probabilities=True)
    image = noise(40, 70)
    result = predictor(image)
    check(result, image)
    np.testing.assert_array_equal(result.labels, result.probabilities[1] > np.float32(0.3))
    assert 0 < result.labels.mean() < 1 and result.classes == ('ground', 'tree')
    alone = write_checkpoint(folder / 'one.pth', config, dataset_meta={'classes': ('tree',), 'palette': [[4, 5, 6]]})
    predictor = Predictor(config, alone, device='cpu')
    assert predictor.classes == ('background', 'tree') and predictor.palette.tolist() == [[0, 0, 0], [4, 5, 6]]
    np.testing.assert_array_equal(predictor(image).labels, result.labels)


def test_many_classes_need_wider_labels(folder):
    config = tiny_config(**{'decode_head.num_classes': 300, 'auxiliary_head.num_classes': 300})
    described = {'classes': tuple(map(str, range(300))), 'palette': None}
    path = write_checkpoint(folder / 'many.pth', config, dataset_meta=described)
    result = Predictor(config, path, device='cpu')(noise(20, 30))
    assert result.labels.dtype == np.int32 and result.palette.shape == (300, 3)
    assert result.colour().shape == (20, 30, 3)


def test_from_checkpoint(predictor, checkpoint):
    alone = Predictor.from_checkpoint(checkpoint, device='cpu')
    opened = load_predictor(checkpoint, device='cpu', confidence=True)
    shipped = write_checkpoint(checkpoint.with_name('shipped.pth'), load_config(NANO))
    given = load_predictor(str(shipped), config=NANO, device='cpu')
    image = noise(64, 128)
    expected = predictor(image)
    assert alone.classes == opened.classes == predictor.classes
    np.testing.assert_array_equal(alone(image).labels, expected.labels)
    np.testing.assert_array_equal(opened(image).confidence, expected.confidence)
    assert given(image).labels.shape == (64, 128)


@pytest.mark.parametrize(
    ('change', 'reason'),
    [
        ({'cfg': ''}, 'contains no config: also give the config with which it was trained'),
        ({'cfg': 'import os\nmodel = 1'}, 'which is not a plain value'),
        ({'cfg': 'model = dict(type="os.system")'}, 'has no test_dataloader'),
        ({'dataset_meta': {}}, 'names no classes'),
        ({'dataset_meta': {'classes': 'abc'}}, 'names no classes'),
        ({'dataset_meta': {'classes': ('a', 'b')}}, 'names 2 classes, but its model has 19'),
    ],
)
def test_checkpoints_that_are_not_enough(folder, change, reason):
    path = write_checkpoint(folder / 'lacks.pth', tiny_config(), **change)
    with pytest.raises(UserError, match=reason):
        Predictor.from_checkpoint(path, device='cpu')


def test_a_config_in_a_checkpoint_runs_nothing(folder):
    mark = folder / 'mark'
    config = tiny_config()
    config.model.backbone.type = 'subprocess.getoutput'
    config.model.backbone.cmd = f'touch {mark}'
    path = write_text_only(folder / 'evil.pth', config)
    with pytest.raises(UserError, match=r"model\.backbone\.type='subprocess\.getoutput'.*refused"):
        Predictor.from_checkpoint(path, device='cpu')
    assert not mark.exists()


def write_text_only(path, config):
    text = Config(config.to_dict(), format_python_code=False).pretty_text
    torch.save({'meta': {'cfg': text, 'dataset_meta': {'classes': ('a', 'b')}}, 'state_dict': {}}, path)
    return path


def test_a_config_is_not_changed(checkpoint):
    config = tiny_config()
    config.model.backbone.init_cfg = {'type': 'Pretrained', 'checkpoint': 'nowhere'}
    before = config.to_dict()
    Predictor(config, checkpoint, device='cpu', cfg_options=['model.test_cfg.logits_budget=32'])
    assert config.to_dict() == before


def test_options_change_a_loaded_config(checkpoint):
    predictor = Predictor(tiny_config(), checkpoint, device='cpu', cfg_options=['model.test_cfg.logits_budget=32'])
    assert predictor.model.test_cfg.logits_budget == 32


def test_nothing_to_start_from():
    """Also for a network of someone else that fetches weights unless told not to."""
    described = {
        'type': 'EncoderDecoder',
        'pretrained': 'open-mmlab://resnet50',
        'backbone': {'type': 'TIMMBackbone', 'model_name': 'resnet18'},
        'neck': {'type': 'FPN', 'init_cfg': [{'type': 'Pretrained', 'checkpoint': 'x'}]},
    }
    model = Config({'model': described}).model
    forget_initial_weights(model)
    assert model.pretrained is None and model.neck.init_cfg is None
    assert model.backbone.pretrained is False


def test_memory_that_does_not_suffice(predictor, monkeypatch):
    def full(_):
        raise torch.OutOfMemoryError('CUDA out of memory')

    monkeypatch.setattr(predictor.model, 'test_step', full)
    with pytest.raises(
        UserError, match=r'1 image\(s\) of 64x128 pixels do not fit into the memory of cpu; predict in windows'
    ):
        predictor(noise(64, 128))
    monkeypatch.setattr(predictor.model, 'test_step', lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        predictor(noise(64, 128))


@pytest.mark.parametrize('device', ['tpu9', 'cuda:99'])
def test_unknown_devices(checkpoint, device):
    with pytest.raises(UserError, match=f"device '{device}' is not"):
        Predictor(NANO, checkpoint, device=device)


@pytest.mark.parametrize('image', [torch.zeros(3, 8, 8), torch.zeros(8, 8, 3, dtype=torch.uint8), b'bytes'])
@pytest.mark.parametrize('several', [False, True])
def test_tensors_are_refused_at_once(predictor, image, several):
    with pytest.raises(UserError, match=f'an image is a path, .* and this is of type {type(image).__name__}'):
        predictor([image] if several else image)


def test_what_cannot_be_opened(folder, checkpoint):
    for missing in (folder / 'missing.pth', 'runs/missing.safetensors'):
        with pytest.raises(UserError, match='checkpoint .*missing.* does not exist'):
            load_predictor(missing, device='cpu')
    with pytest.raises(UserError, match='is neither a folder nor a hub id'):
        load_predictor(folder / 'missing', device='cpu')
    with pytest.raises(UserError, match="'x.onnx' needs no config, and 'y' was given"):
        load_predictor('x.onnx', config='y')
    with pytest.raises(UserError, match='no weights file'):
        Predictor(NANO, folder / 'missing.pth')


def test_saving(predictor, folder):
    cv2.imwrite(str(folder / 'street.png'), noise(20, 30))
    result = predictor(folder / 'street.png')
    written = result.save(folder / 'out')
    assert sorted(path.name for path in written) == ['street.jpg', 'street.png']
    with pytest.raises(UserError, match=r'needs a name: save\(folder, name=\.\.\.\)'):
        predictor(noise(20, 30)).save(folder / 'out')
    with pytest.raises(UserError, match='leads out of'):
        result.save(folder / 'out', name='../../x')


# the rule of resizing


@settings(max_examples=200, deadline=None, database=None)
@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 600), st.integers(1, 600))
def test_fitted_size_is_mmcvs(height, width, across, down):
    from mmcv.image import rescale_size

    theirs = rescale_size((width, height), (across, down))
    assert fitted_size((height, width), (down, across)) == (max(1, theirs[1]), max(1, theirs[0]))


@pytest.mark.parametrize('keep_ratio', [True, False])
def test_resizing_is_mmcvs(keep_ratio):
    from mmcv.transforms import Resize

    image = noise(45, 77)
    options = {'scale': (64, 32), 'keep_ratio': keep_ratio}
    theirs, ours = (kind(**options).transform({'img': image}) for kind in (Resize, FittedResize))
    np.testing.assert_array_equal(ours['img'], theirs['img'])
    assert {key: ours[key] for key in theirs if key != 'img'} == {key: theirs[key] for key in theirs if key != 'img'}
    np.testing.assert_array_equal(resize_image(ResizeSpec(**options), image), theirs['img'])


def test_no_side_of_no_pixels():
    assert FittedResize(scale_factor=0.1, keep_ratio=True).transform({'img': noise(2, 90)})['img'].shape == (1, 9, 3)
    assert FittedResize(scale_factor=0.1).transform({'img': noise(90, 1)})['img'].shape == (9, 1, 3)


def test_pipelines_that_cannot_be_used():
    with pytest.raises(UserError, match='does not start with LoadImageFromFile'):
        image_pipeline([{'type': 'Resize', 'scale': (4, 4)}])
    with pytest.raises(UserError, match='does not start with LoadImageFromFile'):
        image_pipeline([])
    with pytest.raises(UserError, match="color_type='grayscale'; only 'color' or 'color_ignore_orientation' can be"):
        image_pipeline([{'type': 'LoadImageFromFile', 'color_type': 'grayscale'}])


def test_default_palette():
    colours = default_palette(256)
    assert len({tuple(colour) for colour in colours}) == 256
    assert colours[:4].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
