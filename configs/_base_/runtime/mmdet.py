_base_ = './common.py'

default_scope = 'mmdet'
# To the parts of a config that is inherited as 'mmhcnet::...' mmengine would write the scope
# mmhcnet, which knows no detector; not to those of one that has a type and a scope as a whole.
type, _scope_ = 'config', default_scope
default_hooks = dict(visualization=dict(type='DetVisualizationHook'))
visualizer = dict(
    type='DetLocalVisualizer',
    name='visualizer',
    vis_backends=[dict(type='mmhcnet.LocalVisBackend')],
)
log_processor = dict(type='LogProcessor', window_size=50, by_epoch=True)
