# A small UperNet on the embedded digit scenes, for 2 CPU cores.
_base_ = [
    '../_base_/models/upernet.py',
    '../_base_/datasets/digits_semantic.py',
    '../_base_/schedules/digits_iters.py',
    '../_base_/runtime/mmseg.py',
]

# More than four fifths of the pixels are background.
loss_decode = dict(class_weight=[0.1] + [1.0] * 10)

data_preprocessor = dict(mean=[127.5] * 3, std=[60.0] * 3, size=(128, 128))
model = dict(
    data_preprocessor=data_preprocessor,
    backbone=dict(
        type='mmhcnet.HcNet',
        arch=dict(embed_dims=[32, 64, 96, 128], depths=[1, 1, 2, 1]),
        # As in classification/hcnet_digits.py.
        init_cfg=dict(type='Kaiming', layer='Conv2d', mode='fan_in'),
    ),
    # The map that is pooled has 4x4 pixels.
    decode_head=dict(
        in_channels=[32, 64, 96, 128],
        channels=32,
        pool_scales=(1, 2),
        num_classes=11,
        loss_decode=loss_decode,
    ),
    auxiliary_head=dict(in_channels=96, channels=32, num_classes=11, loss_decode=loss_decode),
)

# The backbone comes from the classifier, the rest is new.
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.2))))
