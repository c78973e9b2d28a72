import math


def parse_k(k: str | float, modes: tuple[str, ...]) -> str | float:
    """The argument ``k`` of a conduction layer: one of its modes, or a fixed number as a float.

    Raises:
        ValueError: Anything else, a negative number and one that is not finite included.
    """
    if k in modes:
        return k
    if isinstance(k, (int, float)) and not isinstance(k, bool) and math.isfinite(k) and k >= 0:
        return float(k)
    raise ValueError(f'k must be one of {modes} or a number >= 0, got {k!r}')
