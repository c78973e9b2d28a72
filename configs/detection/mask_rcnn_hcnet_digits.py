# A small Mask R-CNN on the embedded digit scenes, for 2 CPU cores.
_base_ = [
    '../_base_/models/mask_rcnn_fpn.py',
    '../_base_/datasets/digits_instance.py',
    '../_base_/schedules/digits.py',
    '../_base_/runtime/mmdet.py',
]

model = dict(
    data_preprocessor=dict(mean=[127.5] * 3, std=[60.0] * 3),
    backbone=dict(
        type='mmhcnet.HcNet',
        arch=dict(embed_dims=[32, 64, 96, 128], depths=[1, 1, 2, 1]),
        # As in classification/hcnet_digits.py.
        init_cfg=dict(type='Kaiming', layer='Conv2d', mode='fan_in'),
    ),
    neck=dict(in_channels=[32, 64, 96, 128], out_channels=48, num_outs=4),
    # Anchors of 16 to 128 pixels: the scenes have 128.
    rpn_head=dict(
        in_channels=48, feat_channels=48, anchor_generator=dict(scales=[4], strides=[4, 8, 16, 32])
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=48, roi_layer=dict(sampling_ratio=1)),
        # One box regression and one mask for all classes: they see ten times as many digits.
        bbox_head=dict(
            in_channels=48, fc_out_channels=192, num_classes=10, reg_class_agnostic=True
        ),
        mask_roi_extractor=dict(out_channels=48, roi_layer=dict(sampling_ratio=1)),
        mask_head=dict(
            in_channels=48, conv_out_channels=48, num_convs=2, num_classes=10, class_agnostic=True
        ),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)),
        rpn_proposal=dict(nms_pre=250, max_per_img=100),
        rcnn=dict(sampler=dict(num=32)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=200, max_per_img=100), rcnn=dict(max_per_img=20)),
)

# The backbone comes from the classifier, the rest is new.
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.5))))
