"""A module that has run answers with its present parameters, however these were changed: nothing derived is kept."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from volo_seg.engine.hooks.compile_hook import compile_backbone
from volo_seg.models import VOLO, VOLOPyramid, VOLOUPerHead, fuse

from mmseg.registry import MODELS  # isort: skip

CHANNELS = [16, 32, 32, 32]
ARCH = {'depths': (1, 1, 1, 1), 'embed_dims': CHANNELS, 'num_heads': (1, 2, 2, 2), 'mlp_ratio': 2, 'stem_channels': 8}
HEAD = {'in_channels': CHANNELS, 'in_index': [0, 1, 2, 3], 'channels': 16, 'num_classes': 5, 'align_corners': False}


def maps(seed=0):
    generator = torch.Generator().manual_seed(seed)
    sizes = zip(CHANNELS, [(24, 32), (12, 16), (12, 16), (12, 16)], strict=True)
    return [torch.randn(2, channels, *size, generator=generator) for channels, size in sizes]


def image(*size):
    return torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))


class Prediction(nn.Module):
    """``predict`` of a segmentor as a call."""

    def __init__(self, test_cfg):
        super().__init__()
        model = {'type': 'VOLOSegmentor', 'backbone': {'type': 'VOLO', 'arch': ARCH, 'img_size': 64}}
        self.model = MODELS.build({**model, 'decode_head': {'type': 'VOLOUPerHead', **HEAD}, 'test_cfg': test_cfg})

    def forward(self, x):
        return self.model.predict(x)[0].seg_logits.data


SLIDE = {'mode': 'slide', 'crop_size': (64, 80), 'stride': (32, 40)}
# kind -> how to build it, its input
KINDS = {
    'backbone': (lambda: VOLO(ARCH, img_size=64), image(64, 96)),
    'folded backbone': (lambda: fuse(VOLO(ARCH, img_size=64).eval()), image(64, 96)),
    'neck': (lambda: VOLOPyramid(CHANNELS), maps()),
    'head': (lambda: VOLOUPerHead(**HEAD), maps()),
    'segmentor': (lambda: Prediction({'mode': 'whole'}), image(96, 80)),
    'sliding segmentor': (lambda: Prediction(SLIDE), image(96, 80)),
}


def by_loading(model, other):
    model.load_state_dict(other.state_dict())
    return model


def by_assigning(model, other):
    model.load_state_dict(other.state_dict(), assign=True)
    return model


def of_a_copy(model, other):
    return by_loading(copy.deepcopy(model), other)


def of_a_pickled_copy(model, other):
    return by_loading(pickle.loads(pickle.dumps(model)), other)


def by_a_functional_call(model, other):
    return lambda x: functional_call(model, other.state_dict(), (x,))


def by_data(model, other):
    for name, tensor in other.state_dict().items():
        (dict(model.named_parameters()) | dict(model.named_buffers()))[name].data = tensor.clone()
    return model


def by_a_vector(model, other):
    with torch.no_grad():
        for mine, theirs in zip(model.buffers(), other.buffers(), strict=True):
            mine.copy_(theirs)
    vector_to_parameters(parameters_to_vector(other.parameters()), model.parameters())
    return model


def in_place(model, other):
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(other.state_dict()[name])
    return model


def by_new_parameters(model, other):
    for name, module in model.named_modules():
        for key, parameter in other.get_submodule(name).named_parameters(recurse=False):
            setattr(module, key, nn.Parameter(parameter.detach().clone()))
        for key, buffer in other.get_submodule(name).named_buffers(recurse=False):
            setattr(module, key, buffer.clone())
    return model


def by_swapping(model, other):
    given = copy.deepcopy(other)
    for mine, theirs in zip(
        (*model.parameters(), *model.buffers()), (*given.parameters(), *given.buffers()), strict=True
    ):
        torch.utils.swap_tensors(mine, theirs)
    return model


WAYS = [
    by_loading,
    by_assigning,
    of_a_copy,
    of_a_pickled_copy,
    by_a_functional_call,
    by_data,
    by_a_vector,
    in_place,
    by_new_parameters,
    by_swapping,
]


def built(kind, seed):
    torch.manual_seed(seed)
    model = KINDS[kind][0]().eval()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.5, 1.5) if name.endswith('running_var') else nn.init.normal_(tensor, std=0.2)
    return model


def outputs(model, x):
    out = model(x)
    return list(out) if isinstance(out, tuple) else [out]


@pytest.mark.parametrize('mode', [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize('change', WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize('kind', KINDS)
def test_changed_parameters_take_effect(kind, change, mode):
    """What a new model with these parameters gives, and another result than before."""
    x = KINDS[kind][1]
    model, other = built(kind, 1), built(kind, 2)
    fresh = KINDS[kind][0]().eval()
    fresh.load_state_dict(other.state_dict())
    with mode():
        before = [out.clone() for out in outputs(model, x)]
        outputs(model, x)
    changed = change(model, other)
    with mode():
        got, wanted = outputs(changed, x), outputs(fresh, x)
    for index, (now, right) in enumerate(zip(got, wanted, strict=True)):
        scale = float(right.abs().max())
        torch.testing.assert_close(now, right, rtol=1e-5, atol=1e-6 * scale)  # parameters at other addresses round anew
        assert (kind == 'neck' and index >= 2) or float((now - before[index]).abs().max()) > 0.01 * scale


@pytest.mark.parametrize('change', [by_loading, by_assigning, of_a_copy, by_data, by_new_parameters, by_swapping])
def test_changed_parameters_of_a_compiled_backbone(change):
    x = image(64, 96)
    model, other = (nn.ModuleDict({'backbone': built('backbone', seed)}) for seed in (1, 2))
    compile_backbone(type('Model', (), {'backbone': model['backbone']}), backend='aot_eager')
    with torch.no_grad():
        model['backbone'](x)
        wanted = other['backbone'](x)
        got = change(model, other)['backbone'](x)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
