# 2000 iterations of batches of 4, two and a half times the 3200 scenes; minutes on 2 CPU cores.
_base_ = './digits.py'

optim_wrapper = dict(optimizer=dict(lr=1e-2), clip_grad=dict(max_norm=1.0))
# The warm-up is long for the reason given in digits.py.
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=200),
    dict(type='PolyLR', eta_min=0.0, power=1.0, by_epoch=False, begin=200, end=2000),
]
train_cfg = dict(_delete_=True, type='mmhcnet.IterTrainLoop', max_iters=2000, val_interval=2000)
