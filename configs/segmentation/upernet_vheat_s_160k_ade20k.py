_base_ = './upernet_vheat_t_160k_ade20k.py'

model = dict(backbone=dict(arch='small', drop_path_rate=0.4))
