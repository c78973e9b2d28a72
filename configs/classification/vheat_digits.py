# A small vHeat on the embedded digits, for 2 CPU cores.
_base_ = './hcnet_digits.py'

model = dict(
    backbone=dict(
        type='mmhcnet.VHeat',
        img_size=48,
        arch=dict(post_norm=False, layer_scale=None),
        # Most of vHeat's layers are linear.
        init_cfg=dict(layer=['Conv2d', 'Linear']),
    )
)

# With 4e-3 vHeat is far behind after the first epochs.
optim_wrapper = dict(optimizer=dict(lr=2e-3))
