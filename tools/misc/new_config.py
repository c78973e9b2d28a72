"""Write a config that trains one of our recipes on your own data.

Looks at a folder and takes classes, paths and every number of classes from it:
class folders train/ and val/ for a classifier, COCO's JSON with "train" and "val" in their paths
for a detector, images/ and annotations/ with training/ and validation/ each (as in ADE20K) for a
segmentor. The data is only read.
"""

import os
from pathlib import Path
from typing import Any

from mmengine.config import Config
from tqdm import tqdm

import mmhcnet
from mmhcnet.checkpoints.files import write_file
from mmhcnet.cli.config import innermost_datasets, load_config
from mmhcnet.cli.errors import import_task, one_line_errors
from mmhcnet.cli.parser import make_parser
from mmhcnet.datasets.check import stop_at_errors
from mmhcnet.datasets.layouts import (
    Layout,
    Part,
    coco_layout,
    folder_layout,
    label_map_layout,
    palette,
)
from mmhcnet.errors import UserError

WIDTH = 100


def heads(part: Any, classes: int) -> Any:
    """What changes in a model's config with its number of classes; None where nothing does."""
    if isinstance(part, (list, tuple)):
        changed = [heads(inner, classes) for inner in part]
        # Lists are replaced as a whole.
        return (
            None
            if not any(changed)
            else [
                inner if change is None else dict(inner, **change)
                for inner, change in zip(part, changed)
            ]
        )
    if not isinstance(part, dict):
        return None
    changed = {}
    for key, value in part.items():
        if key == 'num_classes' and value != classes:
            changed[key] = classes
        elif key == 'class_weight' and value is not None:
            changed[key] = None
        elif key not in ('rpn_head', 'data_preprocessor'):
            inner = heads(value, classes)
            if inner:
                changed[key] = inner
    return changed or None


class Name(str):
    """A name in a config, which is not a string."""


def code(value: Any, taken: int = 0, indent: int = 0) -> str:
    """A value as a person would write it in a config.

    Args:
        value: Dicts, lists, tuples and what their ``repr`` writes.
        taken (int): Columns before it in its line.
        indent (int): Columns that the lines after the first one begin with, and 4.
    """
    if isinstance(value, Name) or not isinstance(value, (dict, list, tuple)):
        return value if isinstance(value, Name) else repr(value)
    if isinstance(value, dict):
        words = all(str(key).isidentifier() for key in value)
        begin, end = ('dict(', ')') if words else ('{', '}')
        heads_of = [f'{key}=' if words else f'{key!r}: ' for key in value]
        values = list(value.values())
    else:
        begin, end = ('[', ']') if isinstance(value, list) else ('(', ')')
        heads_of, values = [''] * len(value), list(value)
    flat = ', '.join(head + code(inner) for head, inner in zip(heads_of, values))
    flat = f"{begin}{flat}{', ' * (begin == '(' and len(values) == 1)}{end}"
    if taken + len(flat) < WIDTH and '\n' not in flat:
        return flat
    pad = ' ' * (indent + 4)
    lines = [
        f'{pad}{head}{code(inner, indent + 4 + len(head), indent + 4)}'
        for head, inner in zip(heads_of, values)
    ]
    return f'{begin}\n' + ',\n'.join(lines) + end


def block(comment: str, **settings: Any) -> str:
    """Lines of a config below a comment."""
    lines = [f'# {comment}']
    lines += [f'{key} = {code(value, len(key) + 3)}' for key, value in settings.items()]
    return '\n'.join(lines) + '\n'


def pipeline_of(cfg: Config, split: str) -> Any:
    """The pipeline of a split: a reference to the base where it has a name there."""
    _, settings = next(innermost_datasets(cfg[f'{split}_dataloader'].dataset, ''))
    for name in ('train_pipeline', 'test_pipeline', 'val_pipeline'):
        if cfg.get(name) == settings.pipeline:
            return Name(f'{{{{_base_.{name}}}}}')
    return settings.pipeline


def without(key: str, pipeline: Any) -> Any:
    """A pipeline whose steps leave an argument at its default."""
    if isinstance(pipeline, (list, tuple)):
        return type(pipeline)(without(key, step) for step in pipeline)
    if isinstance(pipeline, dict):
        return {name: without(key, value) for name, value in pipeline.items() if name != key}
    return pipeline


def classification(cfg: Config, layout: Layout, root: str) -> list[str]:
    number = len(layout.classes)

    def dataset(part: Part, split: str) -> dict:
        return dict(
            dataset=dict(
                _delete_=True,
                type='CustomDataset',
                data_root=root,
                data_prefix=part.images,
                metainfo=dict(classes=layout.classes),
                pipeline=pipeline_of(cfg, split),
            )
        )

    blocks = [
        block(
            'A folder per class; mmpretrain numbers them in alphabetical order.',
            train_dataloader=dataset(layout.train, 'train'),
            val_dataloader=dataset(layout.val, 'val'),
        ),
        block(
            f'{number} classes in the head, and for Mixup and CutMix.',
            model=heads(cfg.model, number) or {},
            data_preprocessor=dict(num_classes=number),
        ),
    ]
    topk = cfg.val_evaluator.get('topk', 1)
    if max(topk if isinstance(topk, (list, tuple)) else [topk]) > number:
        blocks.append(block(f'There is no top-5 of {number} classes.', val_evaluator=dict(topk=1)))
    return blocks


def without_masks(cfg: Config, model: dict) -> dict:
    """What changes in a model where the data has boxes only: Mask R-CNN becomes Faster R-CNN."""
    if not cfg.model.get('roi_head', {}).get('mask_head'):
        return model
    changed = {'mask_roi_extractor': None, 'mask_head': None}
    if 'bbox_head' in model.get('roi_head', {}):
        changed = {'bbox_head': model['roi_head']['bbox_head'], **changed}
    kind = dict(type='FasterRCNN') if cfg.model.type == 'MaskRCNN' else {}
    return {**kind, **model, 'roi_head': changed}


def detection(cfg: Config, layout: Layout, root: str) -> list[str]:
    number = len(layout.classes)
    meta = dict(classes=layout.classes, palette=palette(number))

    def dataset(part: Part, split: str) -> dict:
        settings = dict(
            type='CocoDataset',
            data_root=f'{root}/',
            ann_file=part.labels,
            data_prefix=dict(img=f'{part.images}/'),
            metainfo=Name('meta'),
        )
        _, base = next(innermost_datasets(cfg[f'{split}_dataloader'].dataset, ''))
        if not layout.masks and 'with_mask' in str(base.pipeline):
            settings['pipeline'] = without('with_mask', base.pipeline)
        return dict(dataset=settings)

    model, comment = heads(cfg.model, number) or {}, f'{number} classes in every head.'
    evaluator = dict(ann_file=f'{root}/{layout.val.labels}')
    if not layout.masks:
        model = without_masks(cfg, model)
        evaluator['metric'] = 'bbox'
        comment += ' The data has boxes only, so there is no mask head.'
    return [
        block('The categories, in the order of the annotation files.', meta=meta),
        block(
            'Where images and annotations are.',
            train_dataloader=dataset(layout.train, 'train'),
            val_dataloader=dataset(layout.val, 'val'),
        ),
        block(comment, model=model),
        block('COCO\'s evaluation reads the annotations by itself.', val_evaluator=evaluator),
    ]


def segmentation(cfg: Config, layout: Layout, root: str) -> list[str]:
    number = len(layout.classes)
    meta = dict(classes=layout.classes, palette=palette(number))

    def dataset(part: Part, split: str) -> dict:
        pipeline = pipeline_of(cfg, split)
        own = cfg[f'{split}_dataloader'].dataset.pipeline
        if 'reduce_zero_label' in str(own):
            pipeline = without('reduce_zero_label', own)
        return dict(
            dataset=dict(
                _delete_=True,
                type='BaseSegDataset',
                data_root=root,
                metainfo=Name('meta'),
                data_prefix=dict(img_path=part.images, seg_map_path=part.labels),
                img_suffix=part.image_suffix,
                seg_map_suffix=part.label_suffix,
                pipeline=pipeline,
            )
        )

    names = 'The classes, in the order of their ids in the label maps; 255 is no label.'
    if not layout.named:
        names += '\n# Placeholders: write your own names, in the same order.'
    return [
        block(names, meta=meta),
        block(
            'Where images and label maps are; id 0 is a class like any other.',
            train_dataloader=dataset(layout.train, 'train'),
            val_dataloader=dataset(layout.val, 'val'),
        ),
        block(f'{number} classes in both heads.', model=heads(cfg.model, number) or {}),
    ]


TASKS = dict(
    mmpretrain=(folder_layout, classification),
    mmdet=(coco_layout, detection),
    mmseg=(label_map_layout, segmentation),
)


def base_of(name: str) -> tuple[str, str]:
    """How a config names its base (one of ours by its name, another by its path), and its path."""
    ours = name[len('configs/') :] if name.startswith('configs/') else name
    try:
        return f"__import__('mmhcnet').config({ours!r})", mmhcnet.config(ours)
    except FileNotFoundError as error:
        if not Path(name).is_file():
            raise UserError(f'{error}; or name the path of yours') from None
        return repr(os.path.abspath(name)), name


def write(base: str, data: str, out: str, names: list[str] | None) -> Config:
    """Writes the config; returns it as it was read back."""
    if os.path.exists(out):
        raise UserError(f"'{out}' exists already: name another file, or remove it")
    if not os.path.isdir(data):
        raise UserError(f"there is no folder '{data}'")
    root = os.path.abspath(data)
    source, path = base_of(base)
    cfg = Config.fromfile(path)
    scope = cfg.get('default_scope')
    if scope not in TASKS:
        raise UserError(f'default_scope of the config must be one of {list(TASKS)}, got {scope!r}')
    look, blocks = TASKS[scope]
    if scope == 'mmseg':
        layout = look(root, names, lambda paths: tqdm(paths, leave=False, disable=None))
    else:
        layout = look(root)
    body = blocks(cfg, layout, root)
    test = ['# Tested with what it is validated with.', 'test_dataloader = val_dataloader']
    if any('val_evaluator' in part for part in body):
        test.append('test_evaluator = val_evaluator')
    text = '\n'.join(
        [f'# {Path(base).stem} on the data in {root}', f'_base_ = {source}', '', *body, *test, '']
    )
    write_file(out, text.encode())
    return load_config(out, None, work_dir=None)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument(
        'base',
        help='one of our configs, such as detection/mask_rcnn_hcnet_t_1x.py, or a path',
    )
    parser.add_argument('--data', required=True, help='folder of your data')
    parser.add_argument('--out', required=True, help='config to write')
    parser.add_argument(
        '--classes',
        nargs='+',
        metavar='NAME',
        help='names of the classes of label maps, in the order of their ids '
        '(default: the lines of classes.txt in the folder)',
    )
    args = parser.parse_args()
    with one_line_errors():
        cfg = write(args.base, args.data, args.out, args.classes)
        import_task(cfg.default_scope)
        stop_at_errors(cfg, ['train', 'val'])
    print(
        f'{args.out} is written. Next:\n'
        f'  python tools/misc/prepare_data.py {args.out} --full\n'
        f'  python tools/train.py {args.out} --trial 10'
    )


if __name__ == '__main__':
    main()
