"""tools/train.py asks the check of the data before its first iteration."""

from ..scenes import write_config, write_scenes

ORDER = '''
meta = dict(classes=('blue', 'green', 'red'))
train_dataloader = dict(dataset=dict(metainfo=meta))
val_dataloader = dict(dataset=dict(metainfo=meta))
test_dataloader = val_dataloader
'''


def test_training_stops_with_one_line_or_is_told_to_go_on(tool, tmp_path):
    write_scenes(tmp_path / 'data')
    config = write_config(tmp_path / 'mine.py', 'det', tmp_path / 'data', ORDER)
    args = [config, '--work-dir', tmp_path / 'work']
    for trial in ([], ['--trial', '1']):
        last = tool('train.py', *args, *trial, fails=True).stderr.strip().splitlines()[-1]
        assert last.startswith(f'Error: {tmp_path}/data/det/train.json: ')
        assert "so that 'red' is called 'blue'" in last
        assert 'train_dataloader.dataset.metainfo.classes' in last
    done = tool('train.py', *args, '--no-data-check')
    assert 'coco/bbox_mAP' in done.stdout + done.stderr


def test_an_error_of_the_first_validation_is_one_line(tool, tmp_path):
    write_scenes(tmp_path / 'data')
    config = write_config(
        tmp_path / 'mine.py',
        'in1k',
        tmp_path / 'data',
        """
train_dataloader = dict(dataset=dict(_delete_=True, type='CustomDataset', data_prefix='train',
    data_root=DATA, pipeline={{_base_.train_pipeline}}))
val_dataloader = dict(dataset=dict(_delete_=True, type='CustomDataset', data_prefix='val',
    data_root=DATA, pipeline={{_base_.test_pipeline}}))
test_dataloader = val_dataloader
data_preprocessor = dict(num_classes=3)
""".replace('DATA', repr(str(tmp_path / 'data/cls'))),
    )
    done = tool('train.py', config, '--work-dir', tmp_path / 'work', '--no-data-check', fails=True)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith('Error: Top-5 accuracy is unavailable')
    assert 'Traceback' not in done.stderr
