_base_ = '../hcnet_b_in1k.py'

model = dict(backbone=dict(k='learnable'))
