# Fine-tuning: the learning rate falls from the head to the stem, by 0.7 a stage. Start from a
# classifier: tools/train.py CONFIG --pretrained CKPT
_base_ = './upernet_hcnet_digits.py'

optim_wrapper = dict(
    constructor='mmhcnet.LearningRateDecayOptimizerConstructor',
    # Instead of one smaller rate for the whole backbone.
    paramwise_cfg=dict(
        decay_rate=0.7, decay_type='stage_wise', custom_keys=dict(backbone=dict(lr_mult=1.0))
    ),
)
