"""Check the data of a config before a long run, and say what is missing.

Reads what the config's dataloaders point to: class folders or lists of files (mmpretrain), COCO's
JSON (mmdet), pairs of image and label map (mmseg). Names, numbers and annotations are checked
throughout; images are opened on a sample, or all of them with --full. Exit code 1 if something has
to be mended.
"""
import os
import sys
from typing import Iterator, Optional

from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from tqdm import tqdm

from mmhcnet.cli.config import innermost_datasets, load_config, missing_data
from mmhcnet.cli.errors import one_line_errors
from mmhcnet.cli.parser import add_config, make_parser
from mmhcnet.datasets import check

# Findings of a kind that are printed; the others are counted.
SHOWN = 10


def loads_masks(pipeline: list) -> bool:
    return any(step['type'].split('.')[-1] == 'LoadAnnotations' and step.get('with_mask')
               for step in pipeline)


def build(settings: dict):
    # Only its paths and classes are wanted. A pipeline may need what is not installed.
    return DATASETS.build(dict(settings, lazy_init=True, pipeline=[]))


def check_dataset(cfg: Config, settings: dict, full: bool) -> Optional[Iterator[check.Finding]]:
    """The findings of one data set, or None where its type is not known here."""
    dataset = build(settings)

    def progress(paths):
        return tqdm(paths, leave=False, disable=None)

    if cfg.default_scope == 'mmpretrain' and hasattr(dataset, 'is_valid_file'):
        classes = dict(check.heads(cfg.model)).get('model.head.num_classes')
        return check.check_classification(dataset, classes, full, progress)
    if cfg.default_scope == 'mmdet' and str(dataset.ann_file).endswith('.json'):
        return check.check_coco(dataset, loads_masks(settings['pipeline']), full, progress)
    if cfg.default_scope == 'mmseg' and hasattr(dataset, 'seg_map_suffix'):
        return check.check_segmentation(dataset, full, progress)
    return None


def check_split(cfg: Config, split: str) -> Iterator[check.Finding]:
    """What lies between the data sets of a split, the model's heads and the evaluator."""
    loader, evaluators = cfg[f'{split}_dataloader'], cfg.get(f'{split}_evaluator') or []
    found = [settings for _, settings in innermost_datasets(loader['dataset'], '')]
    if cfg.default_scope != 'mmpretrain':
        for settings in found:
            yield from check.check_heads(cfg.model, len(build(settings).metainfo['classes']))
    files = [os.path.join(settings.get('data_root') or '', settings['ann_file'])
             for settings in found if settings.get('ann_file')]
    for evaluator in [evaluators] if isinstance(evaluators, dict) else evaluators:
        file = evaluator.get('ann_file')
        if file and files and os.path.abspath(file) not in map(os.path.abspath, files):
            yield check.Finding(
                'evaluated with other annotations', f'{split}_evaluator.ann_file',
                f"is '{file}', and the data set has '{files[0]}'", 'set both to the same file')


def report(findings) -> bool:
    """Prints findings by kind; returns whether one is fatal."""
    fatal = False
    for kind, group in check.grouped(findings).items():
        for finding in group[:SHOWN]:
            print(f'  {finding}')
        if len(group) > SHOWN:
            print(f'  ... and {len(group) - SHOWN} more: {kind}')
        fatal |= any(finding.fatal for finding in group)
    return fatal


def main() -> None:
    parser = make_parser(__doc__)
    add_config(parser)
    parser.add_argument('--full', action='store_true',
                        help=f'open all images instead of {check.SAMPLE} of each data set')
    args = parser.parse_args()
    fatal, seen = [], []
    with one_line_errors():
        cfg = load_config(args.config, args.cfg_options, work_dir=None)
        init_default_scope(cfg.default_scope)
        for split in ('train', 'val', 'test'):
            loader = cfg.get(f'{split}_dataloader')
            if not loader:
                continue
            if loader['dataset'] in seen:
                print(f'{split}: the same data as before')
                continue
            seen.append(loader['dataset'])
            missing = list(missing_data(cfg, split))
            if missing:
                print(f'{split}:')
                for message in missing:
                    print(f'  ERROR {message}')
                fatal.append(split)
                continue
            bad = False
            for key, settings in innermost_datasets(loader['dataset'],
                                                    f'{split}_dataloader.dataset'):
                print(f"{split}: {settings['type']} in {settings.get('data_root') or '.'}")
                findings = check_dataset(cfg, settings, args.full)
                if findings is None:
                    print(f"  not checked: {key} is a {settings['type']}, whose files this tool "
                          'does not know')
                else:
                    bad |= report(findings)
            bad |= report(check_split(cfg, split))
            if bad:
                fatal.append(split)
    print(f"to be mended: {', '.join(fatal)}" if fatal else 'the data is complete')
    sys.exit(bool(fatal))


if __name__ == '__main__':
    main()
