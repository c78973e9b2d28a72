# Fine-tuning: the learning rate falls from the head to the stem, by 0.8 a block. Start from a
# classifier: tools/train.py CONFIG --pretrained CKPT
_base_ = './mask_rcnn_hcnet_digits.py'

optim_wrapper = dict(
    constructor='mmhcnet.LearningRateDecayOptimizerConstructor',
    # Instead of one smaller rate for the whole backbone.
    paramwise_cfg=dict(decay_rate=0.8, custom_keys=dict(backbone=dict(lr_mult=1.0))),
)
