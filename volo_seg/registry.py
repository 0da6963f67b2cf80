"""The scope ``volo_seg`` of MMEngine's registries, below mmseg's, so that inferencers find the shipped configs by name.

Everything here registers with mmseg itself; with the scope, ``MMSegInferencer(NAME, CHECKPOINT, scope='volo_seg')``
works as it does for mmseg's own names. MMEngine imports this module by its name.
"""

from mmengine.config.utils import MODULE2PACKAGE
from mmengine.registry import Registry
from mmseg import registry

MODULE2PACKAGE['volo_seg'] = 'volo-seg'
for _parent in list(vars(registry).values()):
    if isinstance(_parent, Registry) and _parent.scope == 'mmseg':
        Registry(_parent.name, parent=_parent, scope='volo_seg', locations=['volo_seg.models'])
