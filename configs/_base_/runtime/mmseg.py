_base_ = './common.py'

default_scope = 'mmseg'
# To the parts of a config that is inherited as 'mmhcnet::...' mmengine would write the scope
# mmhcnet, which knows no segmentor; not to those of one that has a type and a scope as a whole.
type, _scope_ = 'config', default_scope
default_hooks = dict(
    logger=dict(log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=16000),
    visualization=dict(type='SegVisualizationHook'),
)
visualizer = dict(
    type='SegLocalVisualizer',
    name='visualizer',
    vis_backends=[dict(type='mmhcnet.LocalVisBackend')],
)
log_processor = dict(by_epoch=False)

# Multi-scale and flip testing: tools/test.py CONFIG CKPT --tta
tta_model = dict(type='SegTTAModel')
tta_pipeline = [
    dict(type='LoadImageFromFile', backend_args=None),
    dict(
        type='TestTimeAug',
        transforms=[
            [
                dict(type='Resize', scale_factor=ratio, keep_ratio=True)
                for ratio in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
            ],
            [dict(type='RandomFlip', prob=prob, direction='horizontal') for prob in (0.0, 1.0)],
            [dict(type='LoadAnnotations')],
            [dict(type='PackSegInputs')],
        ],
    ),
]
