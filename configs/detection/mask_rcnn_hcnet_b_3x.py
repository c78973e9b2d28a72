_base_ = './mask_rcnn_hcnet_t_3x.py'

model = dict(backbone=dict(arch='base'), neck=dict(in_channels=[96, 192, 384, 768]))
