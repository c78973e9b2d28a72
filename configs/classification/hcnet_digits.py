# A small HcNet on the embedded digits, for 2 CPU cores.
_base_ = [
    '../_base_/models/classifier.py',
    '../_base_/datasets/digits_classification.py',
    '../_base_/schedules/digits.py',
    '../_base_/runtime/mmpretrain.py',
]

model = dict(
    backbone=dict(
        type='mmhcnet.HcNet',
        arch=dict(embed_dims=[32, 64, 96, 128], depths=[1, 1, 2, 1]),
        # A deviation of 0.02 is for hundreds of channels: with 32 the blocks would stay close to
        # the identity for most of these few epochs.
        init_cfg=dict(type='Kaiming', layer='Conv2d', mode='fan_in'),
    ),
    head=dict(
        num_classes=10,
        in_channels=128,
        topk=(1,),
        loss=dict(_delete_=True, type='CrossEntropyLoss'),
    ),
    train_cfg=None,
)

optim_wrapper = dict(optimizer=dict(lr=3e-3))
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=0.01,
        by_epoch=True,
        begin=0,
        end=2,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingLR',
        eta_min=1e-5,
        by_epoch=True,
        begin=2,
        end=7,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=7, val_interval=7)
