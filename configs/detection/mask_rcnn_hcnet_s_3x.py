_base_ = './mask_rcnn_hcnet_t_3x.py'

model = dict(backbone=dict(arch='small'), neck=dict(in_channels=[64, 192, 384, 768]))
