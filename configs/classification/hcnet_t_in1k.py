_base_ = [
    '../_base_/models/classifier.py',
    '../_base_/datasets/imagenet_swin_224.py',
    '../_base_/schedules/in1k_300e.py',
    '../_base_/runtime/mmpretrain.py',
]

model = dict(
    backbone=dict(type='mmhcnet.HcNet', arch='tiny', drop_path_rate=0.2), head=dict(in_channels=512)
)
