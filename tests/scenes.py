"""Tiny scenes of coloured squares in the three layouts, and configs that learn them."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = dict(red=(255, 0, 0), green=(0, 255, 0), blue=(0, 0, 255))
SIDE = 128


def squares(generator):
    """A picture, boxes and names of its squares, and a label map (0 is the background)."""
    image = generator.integers(0, 60, (SIDE, SIDE, 3), dtype=np.uint8)
    labels = np.zeros((SIDE, SIDE), np.uint8)
    boxes = []
    for left in (4, 46, 88):
        name = list(COLOURS)[generator.integers(3)]
        size, top = (int(generator.integers(24, 36)), int(generator.integers(4, 88)))
        image[top : top + size, left : left + size] = COLOURS[name]
        labels[top : top + size, left : left + size] = 1 + list(COLOURS).index(name)
        boxes.append((name, [left, top, size, size]))
    return image, boxes, labels


def outline(box):
    x, y, w, h = box
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def write_scenes(root):
    """Writes det, seg and cls below a folder: 8 + 3 scenes, and 6 + 3 pictures of each colour."""
    generator = np.random.default_rng(0)
    # Not 1, 2, 3 and not in alphabetical order.
    ids = dict(red=3, green=7, blue=5)
    for split, folder, number in (('train', 'training', 8), ('val', 'validation', 3)):
        for path in (f'det/{split}', f'seg/images/{folder}', f'seg/annotations/{folder}'):
            (root / path).mkdir(parents=True)
        images, annotations = [], []
        for i in range(number):
            image, boxes, labels = squares(generator)
            for path in (f'det/{split}/{i}.png', f'seg/images/{folder}/{i}.png'):
                Image.fromarray(image).save(root / path)
            Image.fromarray(labels).save(root / f'seg/annotations/{folder}/{i}.png')
            images.append(dict(id=i + 1, file_name=f'{i}.png', width=SIDE, height=SIDE))
            for name, box in boxes:
                annotations.append(
                    dict(
                        id=len(annotations) + 1,
                        image_id=i + 1,
                        category_id=ids[name],
                        bbox=box,
                        area=box[2] * box[3],
                        iscrowd=0,
                        segmentation=outline(box),
                    )
                )
        categories = [dict(id=number, name=name) for name, number in ids.items()]
        (root / f'det/{split}.json').write_text(
            json.dumps(dict(images=images, annotations=annotations, categories=categories))
        )
        for name, colour in COLOURS.items():
            (root / f'cls/{split}/{name}').mkdir(parents=True)
            for i in range(6 if split == 'train' else 3):
                image = generator.integers(0, 60, (40, 40, 3), dtype=np.uint8)
                image[8:32, 8:32] = colour
                Image.fromarray(image).save(root / f'cls/{split}/{name}/{i}.png')


LOADERS = '''
train_dataloader = dict(batch_size={batch}, num_workers=0, persistent_workers=False,
    dataset=dict(data_root='{root}', {train}))
val_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False,
    dataset=dict(data_root='{root}', {val}))
test_dataloader = val_dataloader
default_hooks = dict(logger=dict(interval=1))
'''
CLS = '''_base_ = __import__('mmhcnet').config('classification/hcnet_digits.py')
model = dict(head=dict(num_classes=3))
data_preprocessor = dict(num_classes=3)
''' + LOADERS.replace('{train}', '').replace('{val}', '').replace('{batch}', '4')
IN1K = '''_base_ = __import__('mmhcnet').config('classification/hcnet_t_in1k.py')
model = dict(
    backbone=dict(_delete_=True, type='mmhcnet.HcNet', out_indices=(3, ),
                  arch=dict(embed_dims=[16, 16, 32, 32], depths=[1, 1, 1, 1])),
    head=dict(num_classes=3, in_channels=32))
train_cfg = dict(max_epochs=1)
''' + LOADERS.replace('{train}', '').replace('{val}', '').replace('{batch}', '4')
DET = '''_base_ = __import__('mmhcnet').config('detection/mask_rcnn_hcnet_digits.py')
meta = dict(classes=('red', 'green', 'blue'), palette=[(255, 0, 0), (0, 255, 0), (0, 0, 255)])
# A detector that has hardly learned may not be sure of anything, and without a box there is no mAP.
model = dict(roi_head=dict(bbox_head=dict(num_classes=3), mask_head=dict(num_classes=3)),
             test_cfg=dict(rcnn=dict(score_thr=0.)))
val_evaluator = dict(ann_file='{root}/val.json')
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=1, val_interval=1)
''' + LOADERS.replace(
    '{train}', "ann_file='train.json', data_prefix=dict(img='train/'), metainfo=meta"
).replace('{val}', "ann_file='val.json', data_prefix=dict(img='val/'), metainfo=meta").replace(
    '{batch}', '2'
)
SEG = '''_base_ = __import__('mmhcnet').config('segmentation/upernet_hcnet_digits.py')
meta = dict(classes=('background', 'red', 'green', 'blue'),
            palette=[[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]])
loss = dict(class_weight=[0.1, 1., 1., 1.])
model = dict(decode_head=dict(num_classes=4, loss_decode=loss),
             auxiliary_head=dict(num_classes=4, loss_decode=loss))
train_cfg = dict(max_iters=4, val_interval=4)
''' + LOADERS.replace('{train}', 'metainfo=meta').replace('{val}', 'metainfo=meta').replace(
    '{batch}', '2'
)
TASKS = dict(cls=CLS, det=DET, seg=SEG)


def write_config(path, task, root, more=''):
    """A config of a task for the scenes below ``root``, and lines that change it."""
    base = path.with_name(f'base_{path.name}')
    base.write_text(
        dict(TASKS, in1k=IN1K)[task].replace(
            '{root}', str(Path(root) / ('cls' if task == 'in1k' else task))
        )
    )
    path.write_text(f"_base_ = './{base.name}'\n{more}")
    return path
