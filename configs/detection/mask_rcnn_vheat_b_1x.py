_base_ = './mask_rcnn_vheat_t_1x.py'

model = dict(
    backbone=dict(arch='base', drop_path_rate=0.5), neck=dict(in_channels=[128, 256, 512, 1024])
)
