# 4 epochs of the 800 scenes in batches of 4; minutes on 2 CPU cores.
_base_ = './adamw.py'

# With 0.999 AdamW's mean of squared gradients would be that of the first steps for most of the few
# hundred that there are.
optim_wrapper = dict(
    optimizer=dict(lr=2.5e-3, betas=(0.9, 0.98), weight_decay=0.05), clip_grad=dict(max_norm=5.0)
)
# A long warm-up, so that new heads are of some use before a pretrained backbone moves far.
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=0.01,
        by_epoch=True,
        begin=0,
        end=1,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingLR',
        eta_min=1e-5,
        by_epoch=True,
        begin=1,
        end=4,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(type='mmhcnet.EpochTrainLoop', max_epochs=4, val_interval=4)
