"""What users of MMSegmentation do with a segmentor and its results, done with ``EncoderDecoder`` and with ours."""

import copy
import pickle

import numpy as np
import pytest
import torch
from mmengine.structures import BaseDataElement, PixelData
from test_segmentor import SLIDE, assert_same, pair, predictions, sample

from volo_seg.errors import UserError

from mmseg.registry import MODELS  # isort: skip


def results(classes=5, **options):
    """One result of ``EncoderDecoder`` and one of ours."""
    if classes == 1:
        options = {'out_channels': 1, 'threshold': 0.4, 'classes': 2}
    inputs = torch.randn(1, 3, 40, 56, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return [
            model.predict(inputs, [sample((40, 56), img_shape=(40, 56))])[0]
            for model in pair({'mode': 'whole'}, **options)
        ]


def plain(value):
    """``value`` without what differs between two runs: addresses, and types of dictionaries and their views."""
    if isinstance(value, BaseDataElement):
        fields = plain(dict(value.all_items()))  # a field that was not read yet is of a subclass until now
        return type(value).__name__, sorted(value.metainfo_keys()), fields
    if isinstance(value, torch.Tensor):
        return 'tensor', str(value.dtype), value.requires_grad, plain(value.detach().numpy())
    if isinstance(value, np.ndarray):
        return 'array', value.shape, np.round(value.astype(float), 8).tolist()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (str, bytes)):
        return value.split(' at 0x')[0]
    if isinstance(value, (list, tuple)) or type(value).__name__ in ('dict_keys', 'dict_values', 'dict_items'):
        return [plain(item) for item in value]
    if hasattr(value, '__iter__') and hasattr(value, '__len__'):
        return [plain(item) for item in value]
    return value


def outcome(operation, target):
    """What ``operation`` returns and leaves behind, or the type of what it raises."""
    try:
        returned = operation(target)
    except Exception as error:
        returned = type(error).__name__
    return plain(returned), plain(target)


def and_itself(change):
    """``change`` a field, and return it."""

    def run(target):
        change(target)
        return target

    return run


def in_place(target):
    target.data[0] += 1
    target.data.clamp_(max=0.5)
    return target.data


FIELD = {
    'data': lambda f: f.data,
    'data twice is one tensor': lambda f: f.data is f.data,
    'shape': lambda f: f.shape,
    'slice': lambda f: f[10:20, 5:50],
    'slice of one pixel': lambda f: f[10, 20],
    'slice rows': lambda f: f[:, 3:9].data,
    'slice by one number': lambda f: f[3],
    'key as an item': lambda f: f['data'],
    'set': and_itself(lambda f: setattr(f, 'data', f.data.softmax(0))),
    'set unread': and_itself(lambda f: setattr(f, 'data', torch.ones(2, 40, 56))),
    'set another size': lambda f: setattr(f, 'data', torch.ones(2, 4, 5)),
    'set two axes': and_itself(lambda f: setattr(f, 'data', torch.ones(40, 56))),
    'set a list': lambda f: setattr(f, 'data', [1]),
    'set another field': and_itself(lambda f: setattr(f, 'mask', torch.ones(1, 40, 56))),
    'set another field of another size': lambda f: setattr(f, 'mask', torch.ones(1, 4, 5)),
    'set_field': and_itself(lambda f: f.set_field(torch.ones(1, 40, 56), 'data')),
    'set_field by name': and_itself(lambda f: f.set_field(name='data', value=torch.ones(1, 40, 56))),
    'set_data': and_itself(lambda f: f.set_data({'data': f.data * 2})),
    'set_metainfo': and_itself(lambda f: f.set_metainfo({'scale': 2})),
    'metainfo named data': lambda f: f.set_metainfo({'data': 2}),
    'del': and_itself(lambda f: delattr(f, 'data')),
    'del item': and_itself(lambda f: f.__delitem__('data')),
    'del unknown': lambda f: delattr(f, 'scores'),
    'get after del': lambda f: (delattr(f, 'data'), f.get('data'), 'data' in f, f.shape)[1:],
    'pop': lambda f: f.pop('data'),
    'pop twice': lambda f: (f.pop('data'), f.pop('data', None)),
    'pop unknown': lambda f: f.pop('scores'),
    'get': lambda f: f.get('data'),
    'get unknown': lambda f: (f.get('scores'), f.get('scores', 3)),
    'attribute unknown': lambda f: f.scores,
    'hasattr': lambda f: (hasattr(f, 'data'), hasattr(f, 'scores')),
    'in': lambda f: ('data' in f, 'scores' in f),
    'len': lambda f: len(f),
    'bool': lambda f: bool(f),
    'iter': lambda f: list(f.items()),
    'keys': lambda f: f.keys(),
    'values': lambda f: f.values(),
    'all': lambda f: (f.all_keys(), f.all_values(), list(f.all_items()), f.metainfo),
    'new': lambda f: f.new(),
    'new with': lambda f: f.new(metainfo={'a': 1}, data=torch.zeros(1, 2, 3)),
    'clone': lambda f: f.clone(),
    'clone is apart': lambda f: (setattr(f.clone(), 'data', f.data * 0), f.data)[1],
    'copy': lambda f: copy.copy(f),
    'copy shares': lambda f: copy.copy(f).data is f.data,
    'deepcopy': lambda f: copy.deepcopy(f),
    'deepcopy is apart': lambda f: (in_place(copy.deepcopy(f)), f.data),
    'pickle': lambda f: pickle.loads(pickle.dumps(f)),
    'to_dict': lambda f: f.to_dict(),
    'in place': in_place,
    'in place by operator': and_itself(lambda f: setattr(f, 'data', f.data.__iadd__(1))),
    'in place, then everything': lambda f: (in_place(f), f.clone(), f.to_dict(), f[0:3, 0:3], copy.deepcopy(f)),
    'to': lambda f: f.to(torch.float32),
    'cpu': lambda f: f.cpu(),
    'detach': lambda f: f.detach(),
    'numpy': lambda f: f.numpy(),
    'numpy and back': lambda f: f.numpy().to_tensor(),
    'update': and_itself(lambda f: f.update(PixelData(data=torch.ones(1, 40, 56)))),
    'update another': lambda f: (lambda other: (other.update(f), other))(PixelData())[1],
    'repr': lambda f: repr(f),
    'type once read': lambda f: (f.data, type(f).__name__)[1],
    'equality': lambda f: (f == f, f == f.clone(), hash(f) == hash(f)),
}
MAPPING = {
    'item': lambda d: d['data'],
    'unknown item': lambda d: d['scores'],
    'get': lambda d: (d.get('data'), d.get('scores'), d.get('scores', 4)),
    'in': lambda d: ('data' in d, 'scores' in d),
    'len': len,
    'bool': bool,
    'keys': lambda d: d.keys(),
    'values': lambda d: d.values(),
    'items': lambda d: d.items(),
    'list': list,
    'reversed': lambda d: list(reversed(d)),
    'dict': dict,
    'unpack': lambda d: {**d},
    'as arguments': lambda d: dict(**d),
    'or': lambda d: d | {'a': 1},
    'or from the right': lambda d: {'a': 1} | d,
    'or in place': and_itself(lambda d: d.__ior__({'a': 1})),
    'update': and_itself(lambda d: d.update(a=1)),
    'update another': lambda d: (lambda other: (other.update(d), other))({})[1],
    'set': and_itself(lambda d: d.__setitem__('data', 1)),
    'set another': and_itself(lambda d: d.__setitem__('a', 1)),
    'del': and_itself(lambda d: d.__delitem__('data')),
    'pop': lambda d: d.pop('data'),
    'pop unknown': lambda d: d.pop('scores'),
    'popitem': lambda d: d.popitem(),
    'popitem of a longer one': and_itself(lambda d: (d.update(a=1), d.popitem())),
    'popitem of none': lambda d: (d.clear(), d.popitem()),
    'pop with default': lambda d: (d.pop('scores', 2), d.pop('data', 2)),
    'setdefault': lambda d: (d.setdefault('data', 1), d.setdefault('a', 1)),
    'clear': and_itself(lambda d: d.clear()),
    'copy': lambda d: d.copy(),
    'copy.copy': lambda d: copy.copy(d),
    'deepcopy': lambda d: copy.deepcopy(d),
    'pickle': lambda d: pickle.loads(pickle.dumps(d)),
    'repr': repr,
    'is a dict': lambda d: isinstance(d, dict),
    'equal': lambda d: (d == {}, d != {}, d == dict(d), d != dict(d)),
    'in place': lambda d: (d['data'].add_(1), d['data'])[1],
    'match': lambda d: [key for key in d if d[key] is d[key]],
}


@pytest.mark.filterwarnings('ignore:The shape of value will convert')
@pytest.mark.parametrize('classes', [5, 1])
@pytest.mark.parametrize('field', ['seg_logits', 'pred_sem_seg'])
@pytest.mark.parametrize('name', FIELD)
def test_fields_of_a_result(name, field, classes):
    theirs, ours = results(classes)
    assert outcome(FIELD[name], ours.get(field)) == outcome(FIELD[name], theirs.get(field))


@pytest.mark.parametrize('name', MAPPING)
def test_dictionaries_of_a_result(name):
    theirs, ours = (result.to_dict()['seg_logits'] for result in results())
    assert outcome(MAPPING[name], ours) == outcome(MAPPING[name], theirs)


def test_edits_reach_the_dictionary():
    """The dictionary and the field share one tensor; a new tensor of the field does not enter the dictionary."""
    for result in results():
        entry = result.to_dict()['seg_logits']
        result.seg_logits.data[0] = 7
        assert (entry['data'][0] == 7).all()
        result.seg_logits.data = result.seg_logits.data * 0
        assert (entry['data'][0] == 7).all()


SAMPLE = {
    'to_dict': lambda r: r.to_dict(),
    'copy': lambda r: copy.copy(r),
    'deepcopy': lambda r: copy.deepcopy(r),
    'pickle': lambda r: pickle.loads(pickle.dumps(r)),
    'cpu': lambda r: r.cpu(),
    'numpy': lambda r: r.numpy(),
    'clone': lambda r: r.clone(),
    'new': lambda r: r.new(),
    'del': and_itself(lambda r: delattr(r, 'seg_logits')),
    'in': lambda r: ('seg_logits' in r, r.keys() and sorted(r.keys())),
    'repr': repr,
}


@pytest.mark.parametrize('name', SAMPLE)
def test_samples(name):
    theirs, ours = results()
    assert outcome(SAMPLE[name], ours) == outcome(SAMPLE[name], theirs)


class OwnInference:
    def inference(self, inputs, batch_img_metas):
        return super().inference(inputs, batch_img_metas) * torch.arange(-2.0, 3.0)[:, None, None]


class OwnWholeInference:
    def whole_inference(self, inputs, batch_img_metas):
        return super().whole_inference(inputs, batch_img_metas) + torch.arange(5.0)[:, None, None]


class OwnSlideInference:
    def slide_inference(self, inputs, batch_img_metas):
        return super().slide_inference(inputs, batch_img_metas).flip(1)


class OwnEncodeDecode:
    def encode_decode(self, inputs, batch_img_metas):
        return super().encode_decode(inputs, batch_img_metas).flip(1)


class OwnPostprocessing:
    def postprocess_result(self, seg_logits, data_samples=None):
        return super().postprocess_result(seg_logits.flip(1), data_samples)


class OwnFeatures:
    def extract_feat(self, inputs):
        return [-x for x in super().extract_feat(inputs)]


class OwnForward:
    """Of the mode 'tensor', which a prediction does not use."""

    def _forward(self, inputs, data_samples=None):
        return super()._forward(inputs, data_samples) * 0


class OwnPredict:
    def predict(self, inputs, data_samples=None):
        return super().predict(-inputs, data_samples)


def of_class(*parts):
    """Give a model the class ``parts``, each in front of its class."""

    def change(model):
        for part in parts:
            model.__class__ = type(f'{part.__name__}Segmentor', (part, type(model)), {})

    return change


def in_the_object(name):
    """Replace a method of the object alone, by one that reverses the channels."""

    def change(model):
        stock = getattr(model, name)
        setattr(model, name, lambda *args: stock(*args).flip(1))

    return change


def own_head_method(model):
    stock = model.decode_head.predict
    model.decode_head.predict = lambda *args: stock(*args).flip(1)


CHANGES = {
    part.__name__: of_class(part)
    for part in (
        OwnInference,
        OwnWholeInference,
        OwnSlideInference,
        OwnEncodeDecode,
        OwnPostprocessing,
        OwnFeatures,
        OwnForward,
        OwnPredict,
    )
}
CHANGES['a subclass of a subclass'] = of_class(OwnEncodeDecode, OwnForward)
CHANGES |= {name: in_the_object(name) for name in ('inference', 'whole_inference', 'slide_inference', 'encode_decode')}
CHANGES['predict of the head'] = own_head_method


@pytest.mark.parametrize('config', [SLIDE, {'mode': 'whole'}], ids=['slide', 'whole'])
@pytest.mark.parametrize('change', CHANGES)
def test_overridden_methods_take_effect(change, config):
    """The result is that of ``EncoderDecoder`` with the same override, with samples and without."""
    models = pair(config, dtype=torch.float32)
    inputs = torch.randn(2, 3, 75, 90)
    samples = [sample((80, 70), img_shape=(75, 90), pad_shape=(75, 90)) for _ in range(2)]
    with torch.no_grad():
        before = models[1].predict(inputs, copy.deepcopy(samples))[0].pred_sem_seg.data
    for model in models:
        CHANGES[change](model)
    found = [predictions(models, inputs, given) for given in (samples, None)]
    for theirs, ours in found:
        assert_same(theirs, ours, tolerance=1e-4)
    unused = {'slide': ('OwnForward', 'OwnWholeInference', 'whole_inference')}
    unused = unused.get(config['mode'], ('OwnForward', 'OwnSlideInference', 'slide_inference'))
    assert torch.equal(found[0][1][0].pred_sem_seg.data, before) == (change in unused)


def test_overridden_methods_are_not_ignored_by_rasters_and_exports():
    """Where a method cannot be called, one sentence names it."""
    from volo_seg.export.whole_image import WholeImage
    from volo_seg.inference.raster.plan import window_config

    for change, method in (('OwnInference', 'inference'), ('OwnPostprocessing', 'postprocess_result')):
        model = pair(SLIDE)[1]
        CHANGES[change](model)
        with pytest.raises(UserError, match=rf'{change}Segmentor overrides {method}\(\), which rasters do not call'):
            window_config(model)
        with pytest.raises(UserError, match=f'a {change}Segmentor cannot be exported'):
            WholeImage(model)
    model = pair(SLIDE)[1]
    CHANGES['OwnEncodeDecode'](model)
    assert window_config(model).crop_size == SLIDE['crop_size']


PREPROCESSING = {'type': 'SegDataPreProcessor', 'mean': [100.0] * 3, 'std': [50.0] * 3, 'bgr_to_rgb': True}


@pytest.mark.parametrize('config', [SLIDE, {'mode': 'whole'}], ids=['slide', 'whole'])
@pytest.mark.parametrize('padding', [None, {'size_divisor': 16}], ids=str)
@pytest.mark.parametrize('step', ['val_step', 'test_step'])
def test_batches_of_unequal_sizes(step, padding, config):
    """Each image gets what ``EncoderDecoder`` gives it alone; images of equal size still go together."""
    models = pair(config, dtype=torch.float32)
    sizes = [(48, 64), (75, 90), (48, 64)]
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in sizes]
    samples = [sample(size, img_shape=size, pad_shape=size) for size in sizes]
    for model in models:
        model.data_preprocessor = MODELS.build({**PREPROCESSING, 'test_cfg': padding})
    run = [getattr(model, step) for model in models]
    with torch.no_grad():
        alone = [
            run[0]({'inputs': [image], 'data_samples': [copy.deepcopy(of)]})[0]
            for image, of in zip(images, samples, strict=True)
        ]
        together = run[1]({'inputs': images, 'data_samples': copy.deepcopy(samples)})
        assert [result.pred_sem_seg.shape for result in together] == sizes
        assert_same(alone, together, tolerance=1e-4)
        if config['mode'] == 'whole':
            models[1].backbone.batches.clear()
            run[1]({'inputs': [images[0], images[2]], 'data_samples': copy.deepcopy(samples[::2])})
            assert models[1].backbone.batches == [2]
