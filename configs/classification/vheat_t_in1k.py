_base_ = [
    '../_base_/models/classifier.py',
    '../_base_/datasets/imagenet_swin_224.py',
    '../_base_/schedules/in1k_300e.py',
    '../_base_/runtime/mmpretrain.py',
]

model = dict(
    backbone=dict(type='mmhcnet.VHeat', arch='tiny', drop_path_rate=0.1), head=dict(in_channels=768)
)

# 128 images per GPU on 8 GPUs: total batch 1024, lr 5e-4 per 512 images.
train_dataloader = dict(batch_size=128)
optim_wrapper = dict(optimizer=dict(lr=1e-3, weight_decay=0.08))
auto_scale_lr = dict(base_batch_size=1024)
custom_hooks = [dict(type='EMAHook', momentum=1e-4, priority='ABOVE_NORMAL')]
