_base_ = './volo-d1_upernet_8xb2-160k_ade20k-512x512.py'
model = _base_.variants.d5
