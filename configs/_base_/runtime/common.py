default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='mmhcnet.CheckpointHook', interval=1, max_keep_ckpts=3),
    data_faults=dict(type='mmhcnet.DataFaultHook', max_share=0.01),
    finite=dict(type='mmhcnet.FiniteHook', max_in_a_row=10),
    preemption=dict(type='mmhcnet.PreemptionHook'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
)
env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)
log_level = 'INFO'
load_from = None
resume = False
