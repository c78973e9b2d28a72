"""Which checkpoints of a run stay on the disk."""

from collections.abc import Callable, Sequence


def kept(steps: Sequence[int], number: int, proved: Callable[[int], bool]) -> list[int]:
    """Steps whose checkpoints stay.

    Besides the newest ones, that is the newest that is proved good by what came after it, because a
    step may ruin the weights before anybody sees it; and the one after that, which is proved next.

    Args:
        steps (Sequence[int]): All that are on the disk, oldest first.
        number (int): So many of the newest stay in any case; all if it is not positive.
        proved (Callable): Whether a step is. With an older one every newer one that is proved is
            good, too.
    """
    if number <= 0:
        return list(steps)
    # Where none is proved, the oldest is from before whatever happened since.
    good = max((place for place, step in enumerate(steps) if proved(step)), default=0)
    first = min(len(steps) - number, good) if steps else 0
    stays = {*range(max(0, len(steps) - number), len(steps)), good}
    if first == good and good + 1 < len(steps):
        stays.add(good + 1)
    return [step for place, step in enumerate(steps) if place in stays]
