_base_ = [
    '../_base_/models/mask_rcnn_fpn.py',
    '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/coco_1x.py',
    '../_base_/runtime/mmdet.py',
]

model = dict(
    backbone=dict(type='mmhcnet.HcNet', arch='tiny', drop_path_rate=0.2),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
