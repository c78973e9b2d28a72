# ResNet-50 with vHeat's heat conduction operator after the 3x3 convolutions of the last two
# stages. As it stands it downloads nothing and trains from scratch. From ImageNet weights:
#   --cfg-options model.backbone.init_cfg.type=Pretrained \
#       model.backbone.init_cfg.checkpoint=torchvision://resnet50 \
#       model.backbone.frozen_stages=1 model.backbone.norm_eval=True
_base_ = [
    '../_base_/models/mask_rcnn_fpn.py',
    '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/coco_1x.py',
    '../_base_/runtime/mmdet.py',
]

model = dict(
    backbone=dict(
        type='ResNet',
        depth=50,
        out_indices=(0, 1, 2, 3),
        norm_eval=False,
        plugins=[
            dict(
                cfg=dict(type='mmhcnet.HeatConductionOperator'),
                stages=(False, False, True, True),
                position='after_conv2',
            ),
        ],
    ),
    neck=dict(in_channels=[256, 512, 1024, 2048]),
)
