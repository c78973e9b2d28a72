# AdamW without weight decay on norms, stencil weights and the learned conduction rate.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', betas=(0.9, 0.999)),
    paramwise_cfg=dict(
        norm_decay_mult=0.,
        custom_keys={
            'conduction.w': dict(decay_mult=0.),
            'conduction.k': dict(decay_mult=0.),
        }))
val_cfg = dict()
test_cfg = dict()
