# A small HcNet on the embedded digits, for 2 CPU cores.
_base_ = [
    '../_base_/models/classifier.py',
    '../_base_/datasets/digits_classification.py',
    '../_base_/schedules/digits.py',
    '../_base_/runtime/mmpretrain.py',
]

model = dict(
    backbone=dict(
        type='mmhcnet.HcNet', arch=dict(embed_dims=[32, 64, 96, 128], depths=[1, 1, 2, 1])),
    head=dict(num_classes=10, in_channels=128, topk=(1, )),
    train_cfg=None)
