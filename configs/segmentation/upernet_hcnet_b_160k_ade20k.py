_base_ = './upernet_hcnet_t_160k_ade20k.py'

model = dict(
    backbone=dict(arch='base'),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
