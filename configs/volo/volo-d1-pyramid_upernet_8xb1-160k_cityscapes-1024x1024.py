_base_ = './volo-d1_upernet_8xb1-160k_cityscapes-1024x1024.py'
model = _base_.variants.pyramid
