# Fine-tuning: the learning rate falls from the head to the stem, by 0.75 a block. Start from a
# checkpoint: tools/train.py CONFIG --pretrained CKPT
_base_ = './hcnet_digits.py'

optim_wrapper = dict(
    constructor='mmhcnet.LearningRateDecayOptimizerConstructor',
    paramwise_cfg=dict(decay_rate=0.75),
)
