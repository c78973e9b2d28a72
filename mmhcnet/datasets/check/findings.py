"""What a check says: errors, warnings, what was not looked at, and how many samples a class has."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

ERROR, WARNING, NOT_CHECKED = 'ERROR', 'WARNING', 'not checked'
# Classes that are named in a finding, and rows of a table; the others are counted.
NAMED, ROWS = 10, 30


class Finding(NamedTuple):
    """One thing that was found.

    Attributes:
        kind (str): What findings of this sort are called, for counting them.
        where (str): A file or folder, or a key of the config.
        problem (str): What is wrong.
        cure (str): How to fix it.
        level (str): ``ERROR``; ``WARNING`` where training goes on and a person should look;
            ``NOT_CHECKED`` for what nobody looked at.
    """

    kind: str
    where: str
    problem: str
    cure: str
    level: str = ERROR

    @property
    def text(self) -> str:
        """The finding without its level."""
        return f'{self.where}: {self.problem}: {self.cure}'

    def __str__(self) -> str:
        return f'{self.level} {self.text}'


def grouped(findings: Iterable[Finding]) -> dict[str, list[Finding]]:
    """Findings by kind, in the order in which they came, errors before warnings."""
    groups = defaultdict(list)
    for finding in findings:
        groups[finding.kind].append(finding)
    rank = [ERROR, WARNING, NOT_CHECKED]
    return dict(
        sorted(groups.items(), key=lambda item: min(rank.index(found.level) for found in item[1]))
    )


def listed(names: Sequence, most: int = NAMED) -> str:
    """Names in quotes, at most so many."""
    return ', '.join(map(repr, names[:most])) + ', ...' * (len(names) > most)


@dataclass
class Counts:
    """How often each class occurs.

    Attributes:
        classes (list[str]): Names.
        columns (dict[str, list[int]]): Numbers per class; the first column is the one that decides
            whether a class occurs.
        lines (list[str]): What else was counted.
        read (int): Samples that were looked at, of ``total``.
        total (int): Samples of the data set.
    """

    classes: list[str]
    columns: dict[str, list[int]]
    read: int
    total: int
    lines: list[str] = field(default_factory=list)

    @property
    def empty(self) -> list[str]:
        """Classes that do not occur."""
        first = next(iter(self.columns.values()))
        return [name for name, number in zip(self.classes, first) if not number]

    def table(self) -> list[str]:
        """Lines for a person: a class a row, of many classes the most and the least frequent."""
        first = next(iter(self.columns.values()))
        total = sum(first) or 1
        order = sorted(range(len(self.classes)), key=lambda i: -first[i])
        width = max([len('class'), *(len(str(name)) for name in self.classes)])
        head = ''.join(f'{name:>12}' for name in self.columns)
        rows = [f'{"class":{width}}{head}   share']
        shown = order if len(order) <= ROWS else order[: ROWS // 2] + [None] + order[-ROWS // 2 :]
        for i in shown:
            rows.append(
                f'... {len(order) - ROWS} more'
                if i is None
                else (
                    f'{self.classes[i]!s:{width}}'
                    + ''.join(f'{numbers[i]:12}' for numbers in self.columns.values())
                    + f'{100 * first[i] / total:6.1f} %'
                )
            )
        return rows + self.lines
