"""Check the data of a config before a long run, and say what is missing or makes no sense.

Asks the objects that will load and score it: the data sets of the config, the loading steps of
their pipelines, and what model, metrics and loops assume. Names, numbers and annotations are
checked throughout; images and label maps are loaded on a sample, or all of them with --full.
Nothing is changed. Exit code 1 if something has to be fixed.
"""

import logging
import sys
from collections.abc import Iterable

from mmengine.config import Config
from tqdm import tqdm

from mmhcnet.cli.config import load_config
from mmhcnet.cli.errors import import_task, one_line_errors
from mmhcnet.cli.parser import add_config, make_parser
from mmhcnet.datasets import check

# Findings of a kind that are printed; the others are counted.
SHOWN = 10


def progress(indices):
    return tqdm(indices, leave=False, disable=None, unit='sample')


def report(findings: Iterable[check.Finding]) -> set[str]:
    """Prints findings by kind; returns their levels."""
    levels = set()
    for kind, group in check.grouped(findings).items():
        for finding in group[:SHOWN]:
            print(f'  {finding}')
        if len(group) > SHOWN:
            print(f'  ... and {len(group) - SHOWN} more: {kind}')
        levels |= {finding.level for finding in group}
    return levels


def report_data_set(data_set: check.DataSetCheck, full: bool) -> set[str]:
    settings = data_set.source.settings
    kind = settings['type'] if isinstance(settings['type'], str) else settings['type'].__name__
    print(f"{data_set.source.split}: {kind} in {settings.get('data_root') or '.'}")
    levels = report(data_set.thorough(None if full else check.SAMPLE, progress))
    if data_set.read:
        print(
            f'  {data_set.read} of {data_set.total} samples were loaded'
            + ('; --full loads all' if data_set.read < data_set.total else '')
        )
    if data_set.counts is not None:
        for line in data_set.counts.table():
            print(f'    {line}')
    return levels


def check_split(cfg: Config, split: str, full: bool) -> set[str]:
    judged = check.SplitCheck(cfg, split)
    missing = list(judged.missing())
    if missing:
        print(f'{split}:')
        return report(missing)
    levels, partly = set(), False
    for data_set in judged.data_sets:
        levels |= report_data_set(data_set, full)
        partly |= data_set.read < data_set.total
    levels |= report(judged.between())
    if 'ERROR' not in levels:
        levels |= report(judged.whole_pipeline())
    return levels | {'sample'} if partly else levels


def verdict(levels: dict) -> str:
    """The last line: what has to be fixed, or how complete the data is."""
    bad = [split for split, found in levels.items() if 'ERROR' in found]
    if bad:
        return f"to be fixed: {', '.join(bad)}"
    found = set().union(*levels.values())
    if 'not checked' in found:
        return 'no error was found, but not everything was checked (see "not checked" above)'
    if 'sample' in found:
        return 'the data is complete, as far as the samples tell that were loaded'
    return 'the data is complete'


def main() -> None:
    parser = make_parser(__doc__)
    add_config(parser)
    parser.add_argument(
        '--full',
        action='store_true',
        help=f'load all samples instead of {check.SAMPLE} of each data set',
    )
    args = parser.parse_args()
    levels, seen = {}, []
    with one_line_errors():
        cfg = load_config(args.config, args.cfg_options, work_dir=None)
        import_task(cfg.get('default_scope'))
        splits = [split for split in ('train', 'val', 'test') if cfg.get(f'{split}_dataloader')]
        for split in splits:
            alike = cfg[f'{split}_dataloader'], cfg.get(f'{split}_evaluator')
            if alike in seen:
                print(f'{split}: the same data as before')
                continue
            seen.append(alike)
            levels[split] = check_split(cfg, split, args.full)
        levels['classes'] = report(check.differing_classes(cfg, splits))
    print(verdict(levels))
    sys.exit(any('ERROR' in found for found in levels.values()))


if __name__ == '__main__':
    # What data sets and transforms log while they are built.
    logging.disable(logging.WARNING)
    main()
