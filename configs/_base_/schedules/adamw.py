# AdamW without weight decay on norms. The constructor leaves out what the backbone's layers ask it
# to, too: stencil weights, learned conduction rates, frequency embeddings and layer scale. It stays
# so with custom_keys such as backbone=dict(lr_mult=0.1).
optim_wrapper = dict(
    type='OptimWrapper',
    constructor='mmhcnet.OptimWrapperConstructor',
    optimizer=dict(type='AdamW', betas=(0.9, 0.999)),
    paramwise_cfg=dict(norm_decay_mult=0.0),
)
val_cfg = dict()
test_cfg = dict()
