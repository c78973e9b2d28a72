import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.dataset import BaseDataset, ClassBalancedDataset, ConcatDataset, RepeatDataset
from mmengine.structures import BaseDataElement, PixelData
from PIL import Image

from mmhcnet.training.sample_rules import (
    BadAnnotations,
    BadSample,
    absurd_coordinates,
    boxes_left_out,
    check_sample,
    is_cut,
    png_size,
    refuse_absurd_annotations,
    source_of,
    sources,
)

DATASET = SimpleNamespace(metainfo=dict(classes=('a', 'b', 'c')), ignore_index=255)


@pytest.fixture
def picture(tmp_path):
    """Writes noise, 60 wide and 40 high, in the format of the name."""

    def write(name):
        pixels = np.random.RandomState(0).randint(0, 256, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
        return tmp_path / name

    return write


@pytest.mark.parametrize('name', ['a.jpg', 'a.png'])
@pytest.mark.parametrize('share', [0.3, 0.6, 0.99])
def test_cut_files(picture, name, share):
    path = picture(name)
    assert not is_cut(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    assert is_cut(path)
    with pytest.raises(BadSample, match='cut short'):
        check_sample(dict(data_samples=BaseDataElement(metainfo=dict(img_path=str(path)))), DATASET)


@pytest.mark.parametrize('name', ['a.jpg', 'a.png', 'a.bmp'])
def test_bytes_behind_the_end(picture, name):
    path = picture(name)
    path.write_bytes(path.read_bytes() + bytes(1000))
    assert not is_cut(path)


@pytest.mark.parametrize('name', ['a.jpg', 'a.png'])
def test_a_film_behind_a_photo(picture, name):
    path = picture(name)
    path.write_bytes(path.read_bytes() + bytes(200_000))
    assert not is_cut(path)


class Indexed(BaseDataset):
    """Its samples are their own indices."""

    def load_data_list(self):
        return [dict(number=i) for i in range(7)]

    def __getitem__(self, index):
        return self.get_data_info(index)['number']

    def get_cat_ids(self, index):
        return [0 if index == 3 else 1]


def test_the_data_set_inside_of_wrappers():
    twice = dict(type=RepeatDataset, times=2, dataset=dict(type=Indexed))
    balanced = ClassBalancedDataset(Indexed(), 0.5)
    assert len(balanced) > 7, 'the rare sample is repeated'
    nested = RepeatDataset(dict(type=ConcatDataset, datasets=[twice, dict(type=Indexed)]), times=3)
    a, b = nested.dataset.datasets[0].dataset, nested.dataset.datasets[1]
    for i in range(len(nested)):
        source, index = source_of(nested, i)
        assert source is (a if i % 21 < 14 else b)
        assert source[index] == nested[i]
    for i in range(len(balanced)):
        source, index = source_of(balanced, i)
        assert source[index] == balanced[i]
    subset = torch.utils.data.Subset(nested, [40, 2])
    assert source_of(subset, 0) == (b, 5) and source_of(subset, 1) == (a, 2)
    assert list(sources(nested)) == [a, b]
    b.dataset = 'coco'
    assert source_of(b, 2) == (b, 2)


def test_a_thumbnail_does_not_end_its_photo(picture, tmp_path):
    """Its end marker lies in a segment before the pixels, and is near the end of a cut file."""
    thumbnail = picture('thumbnail.jpg').read_bytes()
    photo = picture('a.jpg').read_bytes()
    segment = b'\xff\xe1' + (len(thumbnail) + 2).to_bytes(2, 'big') + thumbnail
    path = tmp_path / 'b.jpg'
    path.write_bytes(photo[:2] + segment + photo[2:])
    assert not is_cut(path) and not is_cut(path.read_bytes())
    path.write_bytes(path.read_bytes()[: len(segment) + 1000])
    assert is_cut(path) and is_cut(path.read_bytes())


@pytest.mark.parametrize(
    'content',
    [
        b'',
        b'\xff\xd8',
        b'\xff\xd8\xff',
        b'\xff\xd8\xff\xe0\x00\x00' * 9,
        b'\x89PNG\r\n\x1a\n',
        b'\x89PNG\r\n\x1a\n\xff\xff\xff\xff',
    ],
)
def test_contents_that_are_no_images(content):
    assert is_cut(content) == bool(content)


def test_png_size(picture):
    assert png_size(picture('a.png')) == (40, 60)
    assert png_size(picture('a.jpg')) is None


def labelled(picture, labels, seg_map='labels.png', ori_shape=(40, 60)):
    sample = BaseDataElement(
        metainfo=dict(
            img_path=str(picture('image.png')),
            seg_map_path=str(picture(seg_map)),
            ori_shape=ori_shape,
        )
    )
    sample.gt_sem_seg = PixelData(data=torch.as_tensor(labels)[None])
    return dict(inputs=torch.zeros(3, *sample.gt_sem_seg.shape), data_samples=sample)


@pytest.mark.parametrize('labels', [[[0, 1], [2, 255]], [[255, 255], [255, 255]]])
@pytest.mark.parametrize('seg_map', ['labels.png', 'labels.bmp'])
def test_good_label_maps(picture, labels, seg_map):
    check_sample(labelled(picture, labels, seg_map), DATASET)


@pytest.mark.parametrize('wrong', [3, 254, 256, -1])
def test_ids_out_of_range(picture, wrong):
    with pytest.raises(BadSample, match=rf'labels.png has the id {wrong}, and there are 3 classes'):
        check_sample(labelled(picture, [[0, 1], [2, wrong]]), DATASET)


def test_a_label_map_of_another_size(picture):
    with pytest.raises(BadSample, match='labels.png is 60x40 and the image 61x40'):
        check_sample(labelled(picture, [[0]], ori_shape=(40, 61)), DATASET)


@pytest.mark.parametrize(
    'sample',
    [
        3,
        {},
        dict(inputs=torch.zeros(1), data_samples=BaseDataElement()),
        dict(data_samples=BaseDataElement(metainfo=dict(img_path='s3://bucket/a.jpg'))),
    ],
)
def test_what_it_does_not_know_passes(sample):
    check_sample(sample, DATASET)


def test_boxes_left_out(tmp_path):
    boxes = [
        [0, 0, 10, 10],
        [95, 45, 10, 10],
        [100, 0, 5, 5],
        [-5, 0, 5, 5],
        [3, 3, 0, 5],
        [3, 3, 5, 0.5],
        [3, 60, 5, 5],
    ]
    content = dict(
        images=[dict(id=1, file_name='a.jpg', width=100, height=50)],
        annotations=[dict(id=i, image_id=1, bbox=box) for i, box in enumerate(boxes)],
    )
    content['annotations'] += [
        dict(id=9, image_id=2, bbox=[0, 0, 0, 0]),
        dict(id=10, image_id=1),
        dict(id=11, image_id=1, bbox=[0, 0]),
        dict(id=12),
    ]
    (tmp_path / 'a.json').write_text(json.dumps(content))
    found = list(boxes_left_out(tmp_path / 'a.json'))
    assert [int(line.split()[1]) for line in found] == [2, 3, 4, 5, 6]
    assert found[0] == 'annotation 2 of a.jpg: bbox [100, 0, 5, 5] in an image of 100x50'
    (tmp_path / 'a.json').write_text('[]')
    assert not list(boxes_left_out(tmp_path / 'a.json'))


IMAGE = dict(id=1, file_name='a.jpg', width=100, height=50)


@pytest.mark.parametrize(
    'annotation, found',
    [
        (dict(bbox=[0, 0, 10, 10]), None),
        (dict(bbox=[-5.0, 0, 110, 60]), None),
        (dict(bbox=[0, 0, 1e300, 10]), 'bbox has the coordinate 1e+300'),
        (dict(bbox=[0, 0, float('inf'), 10]), 'bbox has the coordinate inf'),
        (dict(bbox=[0, float('nan'), 1, 10]), 'bbox has the coordinate nan'),
        (dict(bbox=[0, 0, 10**400, 10]), 'bbox has the coordinate 1000'),
        (dict(segmentation=[[0, 0, 1e10, 0, 1e10, 5]]), 'segmentation has the coordinate 1000000'),
        (
            dict(segmentation=[[0, 0, 9, 0, 9, 5], [0, -10001, 9, 0, 9, 5]]),
            'segmentation has the coordinate -10001',
        ),
        (dict(segmentation=[[0, 0, 10000, 0, 9, 5]]), None),
        (dict(segmentation=dict(counts='a', size=[1, 1])), None),
        # Of another size than the image, which mmdet names itself.
        (dict(segmentation=dict(counts='a', size=[100, 50])), None),
        (dict(segmentation=dict(counts='a', size=['x', None])), None),
        (dict(segmentation=dict(counts='a')), None),
        (
            dict(bbox=[0, 0, 9, 9], segmentation=dict(counts='a', size=[60000, 50000])),
            'segmentation is a mask of 50000x60000 pixels',
        ),
        (dict(segmentation=dict(counts=[5], size=[1e300, 1e300])), 'segmentation is a mask'),
        (dict(segmentation=dict(counts=[5], size=[float('nan'), 1])), 'segmentation is a mask'),
        (dict(bbox='abc', segmentation=None), None),
        (dict(bbox=[None] * 4), None),
        ({}, None),
    ],
)
def test_absurd_coordinates(annotation, found):
    problem = absurd_coordinates(annotation, IMAGE)
    assert problem is None if found is None else problem.startswith(found)


@pytest.mark.parametrize('side, refused', [(10000, False), (60000, True)])
def test_a_mask_in_an_image_of_unknown_size(side, refused):
    annotation = dict(segmentation=dict(counts='a', size=[side, side]))
    assert bool(absurd_coordinates(annotation, dict(id=1))) == refused


def test_absurd_annotations_name_their_image():
    content = dict(
        images=[IMAGE],
        annotations=[dict(id=i, image_id=1, bbox=[0, 0, 1e300, 1]) for i in range(7)]
        + [dict(id=8, image_id=1, bbox=[0, 0, 5, 1]), dict(id=9, image_id=2, bbox=[1e9] * 4)],
    )
    with pytest.raises(
        BadAnnotations,
        match=r'8 annotations of x.json have coordinates or sizes that no '
        r'image has: annotation 0 of a.jpg: bbox has the coordinate 1e\+300; .*'
        r'; \.\.\.. Correct or remove them',
    ):
        refuse_absurd_annotations(content, 'x.json')
    for other in ([], dict(images=[]), None, 3):
        refuse_absurd_annotations(other, 'x.json')
