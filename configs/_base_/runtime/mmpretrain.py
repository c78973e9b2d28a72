_base_ = './common.py'

default_scope = 'mmpretrain'
# To the parts of a config that is inherited as 'mmhcnet::...' mmengine would write the scope
# mmhcnet, which knows no classifier; not to those of one that has a type and a scope as a whole.
type, _scope_ = 'config', default_scope
default_hooks = dict(visualization=dict(type='VisualizationHook', enable=False))
visualizer = dict(type='UniversalVisualizer', vis_backends=[dict(type='mmhcnet.LocalVisBackend')])
