"""A small model and data set with all that makes a resumed run differ: shuffling, random
augmentation, dropout, batch norm, momentum, schedulers, a moving average of the weights."""

import itertools

import numpy as np
import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

_NAMES = itertools.count()


class ToyDataset(torch.utils.data.Dataset):
    """Points (4, ) with noise drawn afresh at every visit; class = sign of the first one.

    ``visits`` is a file to which the indices that were loaded are appended.
    """

    metainfo = dict(classes=('a', 'b'))

    def __init__(self, length=24, visits=None):
        self.length = length
        self.visits = visits

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if self.visits:
            with open(self.visits, 'a') as file:
                file.write(f'{int(index)}\n')
        rng = np.random.RandomState(index)
        point = torch.tensor(rng.randn(4), dtype=torch.float32)
        noise = torch.rand(4) + np.random.rand()
        return dict(inputs=point + 0.1 * noise, labels=torch.tensor(float(rng.randn() > 0)))


class ToyModel(BaseModel):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 1)
        )

    def forward(self, inputs, labels, mode='tensor'):
        out = self.body(torch.stack(tuple(inputs)))[:, 0]
        if mode == 'loss':
            labels = torch.stack(tuple(labels))
            return dict(loss=nn.functional.binary_cross_entropy_with_logits(out, labels))
        return out


def toy_runner(
    work_dir, train_cfg=None, checkpoint=None, dataset=None, workers=0, seed=3, **settings
):
    """A Runner of the toy model; ``settings`` go to Runner."""
    train_cfg = dict(train_cfg or dict(max_epochs=3))
    infinite = 'max_iters' in train_cfg
    train_cfg.setdefault('type', f'mmhcnet.{"Iter" if infinite else "Epoch"}TrainLoop')
    settings = (
        dict(
            optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.01)),
            param_scheduler=dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=10),
            randomness=dict(seed=seed),
            log_level='WARNING',
        )
        | settings
    )
    return Runner(
        dict(type=ToyModel),
        str(work_dir),
        train_cfg=train_cfg,
        train_dataloader=dict(
            batch_size=4,
            num_workers=workers,
            timeout=60 if workers else 0,
            persistent_workers=workers > 0,
            sampler=dict(type='InfiniteSampler' if infinite else 'DefaultSampler', shuffle=True),
            dataset=dataset or ToyDataset(),
        ),
        default_hooks=dict(
            checkpoint=dict(
                type='mmhcnet.CheckpointHook', **{**dict(interval=1), **(checkpoint or {})}
            )
        ),
        experiment_name=f'toy{next(_NAMES)}',
        **settings,
    )
