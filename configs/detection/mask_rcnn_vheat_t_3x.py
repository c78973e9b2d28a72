_base_ = [
    '../_base_/models/mask_rcnn_fpn.py',
    '../_base_/datasets/coco_instance_multiscale.py',
    '../_base_/schedules/coco_3x.py',
    '../_base_/runtime/mmdet.py',
]

model = dict(
    backbone=dict(type='mmhcnet.VHeat', arch='tiny', drop_path_rate=0.3),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
