import collections
import datetime

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer

from mmhcnet.checkpoints.formats import TORCH_IS_SOUND
from mmhcnet.checkpoints.plain import plain, with_logs
from mmhcnet.checkpoints.reader import load_local

from ..toy import toy_runner


def test_plain():
    weights = collections.OrderedDict(a=torch.ones(1))
    weights._metadata = dict(version=1)
    value = dict(
        a=np.float32(0.5),
        b=np.arange(3),
        c=ConfigDict(x=dict(y=(1, np.int64(2)))),
        d=collections.defaultdict(list, {np.int64(1): {np.str_('x')}}),
        e=weights,
        f=collections.Counter({8: 1}),
        g=collections.deque([1, 2]),
        h=None,
        i=b'x',
        j=torch.Size([1]),
        k=np.array(['p', 'q']),
        l=True,
        m=np.bool_(True),
        n={(1, 'a'): 2},
    )
    found, objects = plain(value)
    assert objects == []
    assert found == dict(
        a=0.5,
        b=[0, 1, 2],
        c=dict(x=dict(y=(1, 2))),
        d={1: {'x'}},
        e=weights,
        f=collections.Counter({8: 1}),
        g=[1, 2],
        h=None,
        i=b'x',
        j=torch.Size([1]),
        k=['p', 'q'],
        l=True,
        m=True,
        n={(1, 'a'): 2},
    )
    assert type(found['c']['x']) is dict and type(found['d']) is dict
    assert type(found['c']['x']['y'][1]) is int and type(found['m']) is bool
    assert type(found['e']) is collections.OrderedDict and found['e']._metadata == dict(version=1)
    assert found['e']['a'] is weights['a']


def test_what_is_not_plain_is_named():
    day = datetime.date(2020, 1, 1)
    found, objects = plain(dict(meta=[1, dict(day=day)], day=day))
    assert found == dict(meta=[1, dict(day=day)], day=day)
    assert objects == ['meta.1.day: date', 'day: date']


def test_logs_come_back(tmp_path):
    log = HistoryBuffer(max_length=100)
    for number in (1.0, 0.1, float('nan')):
        log.update(number, count=2)
    found, _ = plain(dict(loss=log, other=1))
    torch.save(found, tmp_path / 'a.pth')
    back = with_logs(torch.load(tmp_path / 'a.pth', weights_only=True))
    assert type(back['loss']) is HistoryBuffer and back['other'] == 1
    for ours, theirs in zip(back['loss'].data, log.data):
        assert np.array_equal(ours, theirs, equal_nan=True) and ours.dtype == theirs.dtype
    assert back['loss'].max_length == 100
    back['loss'].update(3.0)
    assert back['loss'].current() == 3


def test_any_program_reads_a_runs_checkpoints(tmp_path):
    settings = dict(
        custom_hooks=[dict(type='EMAHook')],
        param_scheduler=[
            dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=3),
            dict(type='MultiStepLR', milestones=[1, 2]),
        ],
    )
    if not TORCH_IS_SOUND:
        # Milestones are a Counter, which weights_only of torch 2.1 refuses.
        settings['param_scheduler'].pop()
    toy_runner(tmp_path, train_cfg=dict(max_epochs=2), **settings).train()
    loaded = torch.load(tmp_path / 'epoch_2.pth', weights_only=True)
    assert set(loaded) >= {
        'meta',
        'state_dict',
        'ema_state_dict',
        'optimizer',
        'message_hub',
        'param_schedulers',
    }
    resumed = toy_runner(tmp_path, train_cfg=dict(max_epochs=3), resume=True, **settings)
    resumed.train()
    log = resumed.message_hub.get_scalar('train/loss')
    assert type(log) is HistoryBuffer and len(log.data[0]) == 18


class Odd(Hook):
    def before_save_checkpoint(self, runner, checkpoint):
        checkpoint['meta']['day'] = datetime.date(2020, 1, 1)


def test_an_object_of_a_users_hook_is_kept_and_warned_of(tmp_path):
    runner = toy_runner(tmp_path, train_cfg=dict(max_epochs=2), custom_hooks=[dict(type=Odd)])
    warned = []
    runner.logger.warning = warned.append
    runner.train()
    assert len([line for line in warned if 'meta.day: date' in line]) == 1
    loaded = load_local(str(tmp_path / 'epoch_2.pth'), trust=True)
    assert loaded['meta']['day'] == datetime.date(2020, 1, 1)
