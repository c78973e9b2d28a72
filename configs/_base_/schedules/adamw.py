# AdamW without weight decay on norms, stencil weights, the learned conduction rate, frequency
# embeddings and layer scale.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', betas=(0.9, 0.999)),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        custom_keys={
            'conduction.w': dict(decay_mult=0.0),
            'conduction.k': dict(decay_mult=0.0),
            'freq_embed': dict(decay_mult=0.0),
            'gamma': dict(decay_mult=0.0),
        },
    ),
)
val_cfg = dict()
test_cfg = dict()
