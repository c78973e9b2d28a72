import copy
import json
import pickle

import pytest
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS

from mmhcnet.errors import UserError
from mmhcnet.training.coco_annotations import build_dataset, left_out_of
from mmhcnet.training.sample_rules import sources
from mmhcnet.training.tolerant_data import DataFaultHook

from ..test_checkpoints.test_hook import Scores
from ..toy import ToyDataset, toy_runner

BOXES = [[0, 0, 10, 10], [95, 45, 0, 10], [3, 60, 5, 5]]


class Coco:
    """Stands for pycocotools' reader."""

    parsed = []

    def __init__(self, path):
        self.parsed.append(path)
        with open(path) as file:
            self.dataset = json.load(file)


@DATASETS.register_module()
class ToyCoco(BaseDataset):
    """Reads its file as mmdet's data set does."""

    METAINFO = dict(classes=('a', 'b'))
    COCOAPI = Coco

    def load_data_list(self):
        self.coco = self.COCOAPI(self.ann_file)
        del self.coco
        return [dict(number=i) for i in range(24)]

    def __getitem__(self, index):
        return ToyDataset()[index]


@DATASETS.register_module()
class OtherReader(ToyCoco):
    """Has the attribute and reads in another way."""

    def load_data_list(self):
        return [dict(number=i) for i in range(24)]


@pytest.fixture
def file(tmp_path):
    Coco.parsed.clear()
    content = dict(
        images=[dict(id=1, file_name='a.jpg', width=100, height=50)],
        annotations=[dict(id=i, image_id=1, bbox=box) for i, box in enumerate(BOXES)],
    )
    (tmp_path / 'a.json').write_text(json.dumps(content))
    return str(tmp_path / 'a.json')


def nested(settings):
    return dict(
        type='RepeatDataset',
        times=1,
        dataset=dict(type='ConcatDataset', datasets=[settings, settings]),
    )


@pytest.mark.parametrize('wrap', [lambda settings: settings, nested])
def test_parsed_once_by_the_data_set(file, wrap):
    settings = wrap(dict(type='ToyCoco', ann_file=file))
    before = copy.deepcopy(settings)
    dataset = build_dataset(settings)
    assert settings == before
    inner = list(sources(dataset))
    assert len(inner) == len(Coco.parsed) and all(type(part) is ToyCoco for part in inner)
    for part in inner:
        assert [line.split()[1] for line in left_out_of(part)] == ['1', '2']
        assert part.COCOAPI is Coco and len(part) == 24
    assert len(pickle.loads(pickle.dumps(dataset))) == len(dataset)


def warnings_of_a_run(folder, dataset):
    runner = toy_runner(folder, dict(max_epochs=1), dataset=dataset)
    lines = []
    runner.logger.warning = lines.append
    runner.register_hook(DataFaultHook())
    runner.train()
    return lines


def test_the_hook_names_them_without_a_second_parse(tmp_path, file):
    lines = warnings_of_a_run(tmp_path / 'run', dict(type='ToyCoco', ann_file=file))
    assert Coco.parsed == [file]
    (line,) = lines
    assert line.startswith(
        f'2 boxes of {file} are without area or outside their image, and are '
        'left out: annotation 1 of a.jpg: bbox [95, 45, 0, 10] in an image of'
    )


def test_a_data_set_with_another_reader(tmp_path, file):
    dataset = build_dataset(dict(type='OtherReader', ann_file=file))
    assert left_out_of(dataset) is None
    lines = warnings_of_a_run(tmp_path / 'run', dict(type='OtherReader', ann_file=file))
    assert '2 boxes' in lines[0]


@pytest.mark.parametrize(
    'settings',
    [dict(type='ToyCoco', lazy_init=True), dict(type=ToyDataset), dict(type=ToyDataset, length=3)],
)
def test_any_other_data_set_is_built_as_ever(file, settings):
    if settings['type'] == 'ToyCoco':
        settings['ann_file'] = file
    dataset = build_dataset(settings)
    assert left_out_of(dataset) is None and not Coco.parsed
    assert isinstance(dataset, (ToyCoco, ToyDataset))


def test_errors_are_those_of_the_data_set(tmp_path):
    (tmp_path / 'a.json').write_text('{')
    with pytest.raises(json.JSONDecodeError):
        build_dataset(dict(type='ToyCoco', ann_file=str(tmp_path / 'a.json')))
    with pytest.raises(KeyError, match='ToyCocoo is not in the'):
        build_dataset(dict(type='ToyCocoo', ann_file='a.json'))


@pytest.fixture
def absurd(file):
    with open(file) as opened:
        content = json.load(opened)
    content['annotations'][0]['segmentation'] = [[0, 0, 1e10, 0, 1e10, 1e10]]
    with open(file, 'w') as opened:
        json.dump(content, opened)
    return file


def test_coordinates_that_end_the_process_are_refused(absurd, tmp_path):
    with pytest.raises(UserError, match='annotation 0 of a.jpg: segmentation has the coordinate'):
        build_dataset(dict(type='ToyCoco', ann_file=absurd))


def test_they_are_in_validation_too(absurd, tmp_path):
    loader = dict(
        batch_size=4,
        num_workers=0,
        dataset=dict(type='OtherReader', ann_file=absurd),
        sampler=dict(type='DefaultSampler', shuffle=False),
    )
    runner = toy_runner(
        tmp_path / 'run', val_dataloader=loader, val_cfg=dict(), val_evaluator=[Scores([])]
    )
    runner.register_hook(DataFaultHook())
    with pytest.raises(UserError, match='annotation 0 of a.jpg: segmentation has the coordinate'):
        runner.val()
