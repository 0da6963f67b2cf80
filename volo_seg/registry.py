"""The scope ``volo_seg`` of MMEngine's registries, below mmseg's, so that inferencers find the shipped configs by name.

Everything here registers with mmseg itself, except for types that have the name of one of MMCV's. With the scope,
``MMSegInferencer(NAME, CHECKPOINT, scope='volo_seg')`` works as it does for mmseg's own names. MMEngine imports this
module by its name.
"""

from mmengine.config.utils import MODULE2PACKAGE
from mmengine.registry import Registry
from mmseg import registry

MODULE2PACKAGE['volo_seg'] = 'volo-seg'
_SCOPE = {
    parent.name: Registry(
        parent.name, parent=parent, scope='volo_seg', locations=['volo_seg.models', 'volo_seg.datasets.transforms']
    )
    for parent in list(vars(registry).values())
    if isinstance(parent, Registry) and parent.scope == 'mmseg'
}
TRANSFORMS = _SCOPE[registry.TRANSFORMS.name]
