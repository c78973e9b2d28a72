import pytest
from mmengine.hooks import Hook

from mmhcnet.cli.errors import explain
from mmhcnet.errors import UserError
from mmhcnet.training.tolerant_data import DataFaultHook

from ..toy import ToyDataset, toy_runner
from .test_loops import Kill, Killed, same, state_of


class Broken(ToyDataset):
    """Some of its files cannot be read."""

    def __init__(self, bad):
        super().__init__()
        self.bad = bad

    def __getitem__(self, index):
        if index in self.bad:
            raise OSError(f'image file is truncated\n(index {index})')
        return super().__getitem__(index)

    def get_data_info(self, index):
        return dict(img_path=f'images/{index}.png')


def run(folder, bad, workers=0, resume=False, **hook):
    runner = toy_runner(
        folder, dict(max_epochs=2), dataset=Broken(bad), workers=workers, resume=resume
    )
    lines = []
    runner.logger.error = runner.logger.warning = lines.append
    runner.register_hook(DataFaultHook(**hook))
    return runner, lines


@pytest.mark.parametrize('workers', [0, 2])
def test_goes_on_past_a_bad_sample(tmp_path, workers):
    runner, lines = run(tmp_path, {5}, workers)
    runner.train()
    named = [line for line in lines if 'Cannot read' in line]
    assert len(named) >= 2
    assert all(
        line == 'Cannot read images/5.png: OSError: image file is truncated (index 5). '
        'Another sample takes its place.'
        for line in named
    )
    counts = [int(line.split()[0]) for line in lines if 'samples of this epoch' in line]
    assert len(counts) == 2 and sum(counts) == len(named)


def test_the_sample_in_its_place_is_the_same_after_a_kill(tmp_path):
    whole, _ = run(tmp_path / 'a', {5, 6})
    whole.train()
    killed, _ = run(tmp_path / 'b', {5, 6})
    killed.register_hook(Kill(9))
    with pytest.raises(Killed):
        killed.train()
    run(tmp_path / 'b', {5, 6}, resume=True)[0].train()
    assert same(state_of(tmp_path / 'a'), state_of(tmp_path / 'b'))


def test_good_data_is_not_changed(tmp_path):
    run(tmp_path / 'a', set())[0].train()
    toy_runner(tmp_path / 'b', dict(max_epochs=2)).train()
    assert same(state_of(tmp_path / 'a'), state_of(tmp_path / 'b'))


def test_too_many_end_the_run(tmp_path):
    runner, _ = run(tmp_path, range(12), max_share=0.2, patience=16)
    with pytest.raises(UserError, match=r'\d+ of \d+ samples could not be read, more than .* 0.2'):
        runner.train()
    assert 4 <= runner.iter + 1 <= 12


@pytest.mark.parametrize('workers', [0, 1])
def test_nothing_can_be_read(tmp_path, workers):
    with pytest.raises(UserError) as caught:
        run(tmp_path, range(24), workers)[0].train()
    line = explain(caught.value)
    assert line.startswith('20 samples in a row could not be read, the last one images/')
    assert line.endswith('Check the data set') and 'Traceback' not in line


def test_a_bad_sample_ends_a_validation(tmp_path):
    """Without it the metric would be another one."""
    from ..test_checkpoints.test_hook import validated

    runner = validated(tmp_path, [0.1])
    runner._val_dataloader['dataset'] = Broken({3})
    with pytest.raises(OSError, match='truncated'):
        runner.train()


@pytest.mark.parametrize('workers', [0, 1])
def test_nothing_is_replaced_where_nobody_listens(tmp_path, workers):
    """Our loops resume exactly; passing over bad samples is the hook's part."""
    runner = toy_runner(tmp_path, dict(max_epochs=2), dataset=Broken({5}), workers=workers)
    with pytest.raises(OSError, match='image file is truncated'):
        runner.train()


class Pairs(Broken):
    """Its samples are no dicts."""

    def __init__(self, bad=(), make=tuple):
        super().__init__(bad)
        self.make = make

    def __getitem__(self, index):
        sample = super().__getitem__(index)
        return self.make((sample['inputs'], sample['labels']))


@pytest.mark.parametrize('workers', [0, 1])
@pytest.mark.parametrize('collate', ['pseudo_collate', 'default_collate'])
@pytest.mark.parametrize('make', [tuple, list])
@pytest.mark.parametrize('length', [dict(max_epochs=1), dict(max_iters=6)])
def test_batches_that_are_no_dicts(tmp_path, length, make, collate, workers):
    if workers and (collate, make) != ('pseudo_collate', list):
        pytest.skip('workers do not depend on it')
    seen, lines = [], []
    runner = toy_runner(tmp_path, length, dataset=Pairs({5}, make), workers=workers)
    runner._train_dataloader['collate_fn'] = dict(type=collate)
    runner.logger.error = lines.append
    runner.register_hook(DataFaultHook(max_share=1))

    class See(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            seen.append(data_batch)

    runner.register_hook(See())
    runner.train()
    assert len(seen) == 6 and all(len(batch) == 2 for batch in seen)
    assert [line for line in lines if line.startswith('Cannot read images/5.png: ')] == lines != []


def test_share():
    with pytest.raises(ValueError, match='between 0 and 1'):
        DataFaultHook(max_share=2)
