# Single handwritten digits of 32x32, shown at 48x48.
dataset_type = 'CustomDataset'
data_root = 'data/digits/classification'
data_help = 'tools/dataset_converters/make_digits.py, which makes it in seconds'
data_preprocessor = dict(num_classes=10, mean=[127.5] * 3, std=[60.0] * 3, to_rgb=True)

# No flip: digits are not mirror-symmetric.
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Rotate', angle=10.0, prob=0.5),
    dict(type='RandomResizedCrop', scale=48, crop_ratio_range=(0.7, 1.0)),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=48),
    dict(type='PackInputs'),
]

train_dataloader = dict(
    batch_size=64,
    num_workers=1,
    persistent_workers=True,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type=dataset_type, data_root=data_root, data_prefix='train', pipeline=train_pipeline
    ),
)
val_dataloader = dict(
    batch_size=100,
    num_workers=1,
    persistent_workers=True,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type=dataset_type, data_root=data_root, data_prefix='val', pipeline=test_pipeline),
)
val_evaluator = dict(type='Accuracy', topk=1)
test_dataloader = val_dataloader
test_evaluator = val_evaluator
