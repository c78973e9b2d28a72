_base_ = './mask_rcnn_vheat_t_1x.py'

model = dict(backbone=dict(arch='small', drop_path_rate=0.4))
