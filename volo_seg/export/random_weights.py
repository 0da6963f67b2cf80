"""A network with random weights, for trying the way of a model before there is one."""

from __future__ import annotations

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS

from volo_seg.checkpoints import load_file
from volo_seg.config.checks import check_config, fill_class_count
from volo_seg.inference.network import Network, build_network, describe_dataset, forget_initial_weights

NONE = 'none'
"""The word that stands for no checkpoint."""


def load_network(config: Config, checkpoint: str) -> Network:
    """The network of ``config`` with the weights of ``checkpoint``; random ones, always the same, for ``NONE``.

    Raises:
        UserError: No such checkpoint, or it does not fit.
    """
    if checkpoint != NONE:
        return build_network(config, load_file(checkpoint), name=checkpoint)
    return build_network(config, {'state_dict': _random_weights(config.copy())}, name='a network of random weights')


def _random_weights(config: Config) -> dict[str, torch.Tensor]:
    init_default_scope('mmseg')
    check_config(config, ('test',))
    fill_class_count(config, describe_dataset(config.test_dataloader.dataset)['classes'])
    forget_initial_weights(config.model)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MODELS.build(config.model).state_dict()
