"""The few statistics that the figures need."""

import math
from collections.abc import Sequence
from statistics import median

__all__ = ["median", "percentile", "slope"]


def percentile(values: Sequence[float], part: float) -> float:
    """Returns the smallest value that at least `part` (0 to 1) of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)]


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Returns the least-squares rise of y for each unit of x."""
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0
