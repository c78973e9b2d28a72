_base_ = '../hcnet_t_in1k.py'

model = dict(backbone=dict(k='learnable'))
