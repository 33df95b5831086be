"""How much a result depends on the rate: the band of rates that are about as good as the best. A pure function."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["GoodBand", "good_band"]

_FEWEST = 4


@dataclass(frozen=True)
class GoodBand:
    """The rates around the best one whose results lie within a tolerance of it.

    Attributes:
        low: Lowest rate of the band that was tried.
        high: Highest one.
        best: The best result, smoothed where there are rates enough.
        best_rate: Its rate.
        limit: The result at which the band ends.
        open_low: Whether no lower rate was tried, so that the band may go on.
        open_high: The same of higher ones.
    """

    low: float
    high: float
    best: float
    best_rate: float
    limit: float
    open_low: bool
    open_high: bool

    @property
    def decades(self) -> float:
        """Its width, in powers of ten."""
        return math.log10(self.high / self.low)


def good_band(rates: Sequence[float], results: Sequence[float], *, higher: bool, tolerance: float) -> GoodBand | None:
    """The band of good rates around the best one, or None of fewer than four rates.

    The results are ordered by rate; from seven on each is replaced by the median of itself and its two neighbours, so
    that one lucky run makes no optimum and one unlucky run ends no band. The band goes from the best rate to both sides
    as far as every rate that was tried lies within the tolerance. Its ends are rates that were tried: it is at least so
    wide, as far as the grid tells.

    Args:
        rates: Peak rates, > 0, in any order.
        results: What each came to; a run that diverged or was pruned is infinitely bad.
        higher: Whether a higher result is better.
        tolerance: How far below the best one is still good, in the unit of the results.

    Raises:
        ValueError: The two differ in length, or a rate is not above 0.

    Example:
        >>> band = good_band([0.01, 0.1, 1, 10], [0.90, 0.97, 0.965, 0.1], higher=True, tolerance=0.01)
        >>> band.low, band.high, band.open_high
        (0.1, 1.0, False)
    """
    if len(rates) != len(results):
        raise ValueError(f"results must have one value for each of the {len(rates)} rates, got {len(results)}")
    if not all(rate > 0 for rate in rates):
        raise ValueError(f"rates must be > 0, got {min(rates)}")
    if len(set(rates)) < _FEWEST:
        return None
    order = np.argsort(rates, kind="stable")
    x = np.asarray(rates, float)[order]
    y = np.asarray(results, float)[order] * (1.0 if higher else -1.0)
    y = np.where(np.isnan(y), -np.inf, y)
    if len(y) >= 7:
        y = np.array([np.median(y[max(0, i - 1) : i + 2]) if 0 < i < len(y) - 1 else y[i] for i in range(len(y))])
    if not np.isfinite(y).any():
        return None
    top = int(np.argmax(y))
    limit = float(y[top]) - tolerance
    good = y >= limit
    first, last = top, top
    while first > 0 and good[first - 1]:
        first -= 1
    while last < len(y) - 1 and good[last + 1]:
        last += 1
    sign = 1.0 if higher else -1.0
    return GoodBand(
        low=float(x[first]),
        high=float(x[last]),
        best=sign * float(y[top]),
        best_rate=float(x[top]),
        limit=sign * limit,
        open_low=first == 0,
        open_high=last == len(y) - 1,
    )
