# The network of the model that ships, and its weights to start from; classification layers of other classes start anew.
_base_ = './volo-nano_upernet_1xb4-20k_folders-256x256.py'
model = dict(
    backbone=_base_.variants.convnano.backbone,
    decode_head=_base_.variants.convnano.decode_head,
    auxiliary_head=_base_.variants.convnano.auxiliary_head,
)
load_from = 'volo-nano_toyscapes'
