"""Write the results page from the CSV files that the benchmarks leave.

    python tools/analysis_tools/results_page.py

Each file in docs/results/ becomes a table: what all of its rows share is said above it once, the
rest is its columns. `benchmark.py --csv` writes such files; put one there and run this again.
"""

import argparse
import csv
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / 'docs'
TITLES = {
    'digits': 'Demo: the embedded digits, val split',
    'cpu_inference': 'Inference on a CPU',
    'cpu_training': 'Training on a CPU',
    'gpu_inference': 'Inference on a GPU',
    'gpu_training': 'Training on a GPU',
}
HEAD = """# Results

Written by `python tools/analysis_tools/results_page.py` from the files in `docs/results/`; do not
edit. Everything was measured by this project. A table holds one run of its command, in which the
rows take turns, so figures of different tables do not compare. No accuracy on ImageNet, COCO or
ADE20K is here, because none was measured: the authors' are in [models and weights](models.md).
"""


def section(path: Path) -> str:
    """The table of one CSV file.

    Raises:
        ValueError: The file has no rows, or not as many cells in each.
    """
    with open(path, newline='', encoding='utf-8') as file:
        rows = list(csv.DictReader(file))
    if not rows or any(None in row or None in row.values() for row in rows):
        raise ValueError(f'{path} is no table of a benchmark: write it again with --csv')
    filled = [field for field in rows[0] if any(row[field] for row in rows)]
    shared = [f for f in filled if len(rows) > 1 and len({row[f] for row in rows}) == 1]
    columns = [field for field in filled if field not in shared and field != 'command']
    lines = [f'## {TITLES.get(path.stem, path.stem)}', '']
    said = [
        rows[0][f] if f == 'environment' else f'{f.replace("_", " ")} {rows[0][f]}'
        for f in shared
        if f != 'command'
    ]
    if said:
        lines += [f'{", ".join(said)}.', '']
    lines += [
        '| ' + ' | '.join(column.replace('_', ' ') for column in columns) + ' |',
        '|' + ' --- |' * len(columns),
        *('| ' + ' | '.join(row[column] for column in columns) + ' |' for row in rows),
    ]
    if rows[0].get('command'):
        lines += ['', f'`{rows[0]["command"]}`']
    return '\n'.join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--results', type=Path, default=DOCS / 'results', help='folder of CSV files'
    )
    parser.add_argument('--out', type=Path, default=DOCS / 'results.md', help='page to write')
    args = parser.parse_args()
    known = list(TITLES)
    paths = sorted(
        args.results.glob('*.csv'),
        key=lambda path: (known.index(path.stem) if path.stem in known else len(known), path.stem),
    )
    if not paths:
        parser.error(f'no CSV file in {args.results}: benchmark.py --csv writes them')
    try:
        text = '\n\n'.join([HEAD.rstrip(), *map(section, paths)]) + '\n'
    except ValueError as error:
        parser.error(str(error))
    args.out.write_text(text, encoding='utf-8')


if __name__ == '__main__':
    main()
