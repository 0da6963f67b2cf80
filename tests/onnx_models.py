"""Small segmentors for the tests of ONNX files: one of two convolutions, and VOLO with one block a stage."""

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import nn

import volo_seg.models  # noqa: F401
from volo_seg.config.load import load_config
from volo_seg.inference.loaded_model import load_model

from mmseg.registry import MODELS  # isort: skip

TINY = {'depths': (1, 1, 1, 1), 'embed_dims': (16, 32, 32, 32), 'num_heads': (2, 2, 2, 2)}
CLASSES = ('road', 'tree', 'sky')


class Doubled(nn.Module):
    """Whose exported form is wrong on purpose, with ``lie``."""

    def __init__(self, lie):
        super().__init__()
        self.lie = lie

    def forward(self, x):
        return 3 * x if self.lie and torch.compiler.is_exporting() else 2 * x


@MODELS.register_module()
class TwoConvs(nn.Module):
    def __init__(self, lie=False):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, 2, 1)
        self.doubled = Doubled(lie)
        self.second = nn.Conv2d(8, 8, 3, 2, 1)

    def forward(self, x):
        return (self.second(self.doubled(self.first(x)).relu()),)


def config_of(*, classes=3, lie=False, resize=None, test_cfg=None, head=()):
    """A config with a data set of ``classes`` classes and the network of two convolutions."""
    config = load_config('volo-nano_upernet_1xb4-1200_toyscapes-256x256')
    dataset = config.test_dataloader.dataset
    dataset.metainfo = {
        'classes': ('a',) if classes == 1 else CLASSES,
        'palette': [[9, 8, 7], [1, 2, 3], [4, 5, 6]][:classes],
    }
    dataset.type = 'BaseSegDataset'
    resize = [] if resize is None else [{'type': 'Resize', **resize}]
    dataset.pipeline = [{'type': 'LoadImageFromFile'}, *resize, {'type': 'PackSegInputs'}]
    config.model = {
        'type': 'VOLOSegmentor',
        'data_preprocessor': config.model.data_preprocessor.to_dict(),
        'backbone': {'type': 'TwoConvs', 'lie': lie},
        'decode_head': {
            'type': 'FCNHead',
            'in_channels': 8,
            'in_index': 0,
            'channels': 8,
            'num_convs': 1,
            'concat_input': False,
            'num_classes': 2 if classes == 1 else classes,
            'norm_cfg': {'type': 'BN'},
            **dict(head),
        },
        'test_cfg': test_cfg or {'mode': 'whole'},
    }
    return Config(config.to_dict())


def volo_config():
    """A config with VOLO of one block a stage, the pyramid and our head, 19 classes."""
    config = load_config('volo-nano_upernet_1xb4-1200_toyscapes-256x256')
    arch = {**TINY, 'mlp_ratio': 2, 'stem_channels': 8}
    config.model.backbone = {'type': 'VOLO', 'arch': arch, 'img_size': (64, 64), 'norm_cfg': config.norm_cfg}
    config.model.neck = {'type': 'VOLOPyramid', 'in_channels': [16, 32, 32, 32]}
    config.model.decode_head.update(in_channels=[16, 32, 32, 32], in_index=[0, 1, 2, 3], channels=16, pool_scales=(2,))
    config.model.pop('auxiliary_head')
    return config


def network_of(config):
    """The network of ``config`` with random weights, its normalisations away from the identity."""
    init_default_scope('mmseg')
    network = load_model(config, 'none')
    generator = torch.Generator().manual_seed(1)
    for module in network.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                tensor.data.uniform_(0.5, 1.5, generator=generator)
    return network
