"""How often a value was how large: counts between fixed bounds. A value costs a search among a dozen numbers."""

from bisect import bisect_left
from itertools import accumulate


class Histogram:
    """`bounds` ascend; what is above the last is counted as well."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.sum = 0.0
        self._counts = [0] * (len(bounds) + 1)

    def add(self, value: float) -> None:
        """Count a value; one that is at a bound is among what is not above it."""
        self._counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def cumulative(self) -> list[tuple[str, int]]:
        """Return how many values were not above each bound, and how many there are, as Prometheus names the bounds."""
        names = [*(repr(bound) for bound in self.bounds), "+Inf"]
        return list(zip(names, accumulate(self._counts), strict=True))
