# A small Mask R-CNN with vHeat on the embedded digit scenes, for 2 CPU cores.
_base_ = './mask_rcnn_hcnet_digits.py'

model = dict(
    backbone=dict(
        type='mmhcnet.VHeat',
        img_size=128,
        arch=dict(post_norm=False, layer_scale=None),
        # As in classification/vheat_digits.py.
        init_cfg=dict(layer=['Conv2d', 'Linear']),
    )
)
