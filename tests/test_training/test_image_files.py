import builtins
from collections import Counter

import numpy as np
import pytest
from mmengine.dataset import BaseDataset, RepeatDataset
from mmengine.fileio import BaseStorageBackend, get, register_backend
from mmengine.registry import TRANSFORMS
from PIL import Image

from mmhcnet.training.image_files import BACKEND, images_seen, read_through_backend
from mmhcnet.training.sample_rules import BadSample
from mmhcnet.training.tolerant_data import DataFaultHook

from ..test_checkpoints.test_hook import Scores
from ..toy import ToyDataset, toy_runner


@TRANSFORMS.register_module()
class ToyPack:
    """What a loaded picture comes to in the toy model."""

    def __call__(self, results):
        packed = ToyDataset()[results['sample_idx']]
        if 'img' in results:
            packed['inputs'] = packed['inputs'] + float(results['img'].mean()) / 1e6
        return packed


class Pictures(BaseDataset):
    def load_data_list(self):
        return [dict(img_path=str(path)) for path in sorted(self.data_root.iterdir())]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / 'images').mkdir()
    rng = np.random.RandomState(0)
    for i in range(8):
        pixels = rng.randint(0, 256, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / 'images' / f'{i}.{"jpg" if i % 2 else "png"}')
    return tmp_path / 'images'


def pictures(folder, **loading):
    pytest.importorskip('mmcv')
    import mmcv.transforms  # noqa: F401 (registers the loading step)

    return Pictures(
        data_root=folder,
        data_prefix={},
        pipeline=[dict(type='LoadImageFromFile', **loading), dict(type='ToyPack')],
    )


@pytest.fixture
def opened(folder, monkeypatch):
    """How often each picture is opened."""
    count = Counter()
    plain = builtins.open

    def counting(file, *args, **kwargs):
        if str(file).startswith(str(folder)):
            count[str(file)] += 1
        return plain(file, *args, **kwargs)

    monkeypatch.setattr(builtins, 'open', counting)
    monkeypatch.setattr('io.open', counting)
    return count


@pytest.mark.parametrize('wrapped', [False, True])
def test_each_file_is_opened_once(tmp_path, folder, opened, wrapped):
    dataset = pictures(folder)
    runner = toy_runner(
        tmp_path / 'run',
        dict(max_epochs=1),
        dataset=RepeatDataset(dataset, 1) if wrapped else dataset,
    )
    runner.register_hook(DataFaultHook())
    runner.train()
    assert sorted(opened.values()) == [1] * 8


def test_cut_files_are_refused_by_what_reads_them(tmp_path, folder, opened):
    whole = (folder / '3.jpg').read_bytes()
    (folder / '3.jpg').write_bytes(whole[: len(whole) // 2])
    opened.clear()
    runner = toy_runner(tmp_path / 'run', dict(max_epochs=1), dataset=pictures(folder))
    lines = []
    runner.logger.error = lines.append
    runner.register_hook(DataFaultHook(max_share=1))
    runner.train()
    (line,) = lines
    assert line.startswith(f'Cannot read {folder}/3.jpg: BadSample: the image file is cut short: ')
    assert opened[str(folder / '3.jpg')] == 1


@pytest.mark.parametrize(
    'loading',
    [dict(backend_args=dict(backend='http')), dict(file_client_args=dict(backend='disk'))],
)
def test_a_step_keeps_its_own_storage(folder, loading):
    dataset = pictures(folder, **loading)
    step = dataset.pipeline.transforms[0]
    before = step.backend_args, step.file_client_args
    read_through_backend(dataset)
    assert (step.backend_args, step.file_client_args) == before


def test_steps_inside_of_steps(folder):
    dataset = pictures(folder)
    inner = dataset.pipeline.transforms[0]

    class Choice:
        transforms = [[inner]]

    dataset.pipeline.transforms = [Choice()]
    read_through_backend(dataset)
    assert inner.backend_args == dict(backend=BACKEND)


def test_without_the_hook_nothing_is_changed(tmp_path, folder):
    dataset = pictures(folder)
    toy_runner(tmp_path / 'run', dict(max_epochs=1), dataset=dataset).train()
    assert dataset.pipeline.transforms[0].backend_args is None


def test_what_was_seen(folder):
    with images_seen() as seen:
        content = get(str(folder / '0.png'), backend_args=dict(backend=BACKEND))
        get(str(folder / '1.jpg'), backend_args=dict(backend=BACKEND))
        get(str(folder / '2.png'))
        assert seen == {str(folder / '0.png'): (40, 60), str(folder / '1.jpg'): None}
    assert content == (folder / '0.png').read_bytes()
    get(str(folder / '4.png'), backend_args=dict(backend=BACKEND))
    assert len(seen) == 2


class Memory(BaseStorageBackend):
    """A storage that mmengine finds by the prefix ``toy``."""

    files = {}

    def get(self, filepath):
        return self.files[filepath]

    get_text = get


def test_another_storage_by_its_prefix(folder):
    register_backend('toy', Memory, force=True, prefixes='toy')
    content = (folder / '1.jpg').read_bytes()
    Memory.files.update({'toy://a': content, 'toy://b': content[:700]})
    with images_seen() as seen:
        assert get('toy://a', backend_args=dict(backend=BACKEND)) == content
    assert list(seen) == ['toy://a']
    with pytest.raises(BadSample, match="cut short: 'toy://b'"):
        get('toy://b', backend_args=dict(backend=BACKEND))


def test_an_empty_image_in_a_validation_is_named(folder, tmp_path):
    empty = sorted(folder.iterdir())[1]
    dataset = pictures(folder)
    loader = dict(
        batch_size=4,
        num_workers=0,
        dataset=dataset,
        sampler=dict(type='DefaultSampler', shuffle=False),
    )

    def validate(name):
        runner = toy_runner(
            tmp_path / name, val_dataloader=loader, val_cfg=dict(), val_evaluator=[Scores([0.1])]
        )
        runner.model.val_step = lambda data: [0]
        runner.register_hook(DataFaultHook())
        runner.val()
        return runner.val_dataloader.dataset.pipeline.transforms[0]

    # Whether one that is cut is taken is left to the loading step.
    assert validate('whole').backend_args == dict(backend=BACKEND, refuse_cut=False)
    empty.write_bytes(b'')
    with pytest.raises(BadSample, match=f"the image file is empty: '{empty}'"):
        validate('empty')


@pytest.mark.parametrize('name', ['1.jpg', '2.png'])
def test_a_cut_image_in_a_validation(folder, name):
    """What docs/reliability.md says of it; an older OpenCV fills a JPEG."""
    cv2 = pytest.importorskip('cv2')
    dataset = pictures(folder)
    read_through_backend(dataset, refuse_cut=False)
    step = dataset.pipeline.transforms[0]
    content = (folder / name).read_bytes()
    assert step(dict(img_path=str(folder / name)))['img'].shape == (40, 60, 3)
    (folder / name).write_bytes(content[: len(content) // 2])
    if name == '1.jpg' and tuple(map(int, cv2.__version__.split('.')[:2])) < (4, 12):
        assert step(dict(img_path=str(folder / name)))['img'].shape == (40, 60, 3)
    else:
        with pytest.raises(AssertionError, match=f'failed to load image: {folder / name}'):
            step(dict(img_path=str(folder / name)))
