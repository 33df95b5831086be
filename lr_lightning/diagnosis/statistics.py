"""Means with intervals, exact tests, and the correction for several of them: pure functions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

__all__ = ["Mean", "bootstrap_ci", "holm", "mean_ci", "permutation_p", "seeds_needed", "sign_flip_p"]

_RESAMPLES = 9999
_MOST_EXACT = 1 << 16  # sign flips or splits that are all tried; if there are more, a random sample


@dataclass(frozen=True)
class Mean:
    """A mean with its t interval.

    Attributes:
        n: Number of values.
        mean: Their mean; nan if there are none.
        low: Lower end of the interval; nan for fewer than two values.
        high: Upper end of the interval.
    """

    n: int
    mean: float
    low: float = math.nan
    high: float = math.nan

    @property
    def half(self) -> float:
        """Half the width of the interval; nan if there is none."""
        return (self.high - self.low) / 2


def mean_ci(values: ArrayLike, level: float = 0.95) -> Mean:
    """Return the mean and Student's t interval of independent values, such as one for each seed.

    Args:
        values: Any number of finite values.
        level: Level of the interval, in (0, 1).

    Example:
        >>> m = mean_ci([1.0, 2.0, 3.0])
        >>> m.n, m.mean, round(m.low, 2), round(m.high, 2)
        (3, 2.0, -0.48, 4.48)
    """
    x = np.asarray(values, np.float64)
    if x.size < 2:
        return Mean(x.size, float(x[0]) if x.size else math.nan)
    half = float(stats.t.ppf((1 + level) / 2, x.size - 1) * x.std(ddof=1) / math.sqrt(x.size))
    mean = float(x.mean())
    return Mean(x.size, mean, mean - half, mean + half)


def bootstrap_ci(first: ArrayLike, second: ArrayLike | None = None, level: float = 0.95) -> tuple[float, float]:
    """Return the bootstrap interval (BCa) of a mean, or of the difference of two independent means.

    The same values always give the same interval. It is too narrow for few values.

    Args:
        first: Values, or differences of pairs.
        second: Values of the other group, or None.
        level: Level of the interval.

    Returns:
        Lower and upper end; both nan for fewer than three values, both the mean if all values are equal.
    """
    a = np.asarray(first, np.float64)
    b = None if second is None else np.asarray(second, np.float64)
    if a.size < 3 or (b is not None and b.size < 3):
        return math.nan, math.nan
    if np.ptp(a) == 0 and (b is None or np.ptp(b) == 0):
        mean = float(a[0] - (0.0 if b is None else b[0]))
        return mean, mean
    data = (a,) if b is None else (a, b)

    def statistic(*groups: "np.ndarray[tuple[int, ...], np.dtype[np.float64]]", axis: int) -> object:
        means = [group.mean(axis=axis) for group in groups]
        return means[0] if len(means) == 1 else means[0] - means[1]

    def interval(method: str) -> tuple[float, float]:
        found = stats.bootstrap(
            data,
            statistic,
            n_resamples=_RESAMPLES,
            confidence_level=level,
            method=method,
            vectorized=True,
            rng=np.random.default_rng(0),
        ).confidence_interval
        return float(found.low), float(found.high)

    with np.errstate(all="ignore"):
        low, high = interval("BCa")
    return (low, high) if math.isfinite(low) and math.isfinite(high) else interval("percentile")


def sign_flip_p(differences: ArrayLike) -> float:
    """Return the two-sided p of paired differences, if each could as well have the other sign.

    Exact up to 16 pairs; for more, from a fixed random sample of sign flips. Source: Fisher 1935, The Design of
    Experiments, §21.

    Args:
        differences: One for each pair.

    Returns:
        p; nan if there are no pairs.

    Example:
        >>> sign_flip_p([0.1, 0.2, 0.3, 0.1, 0.2, 0.3])  # the smallest p of six pairs: 2 / 2**6
        0.03125
    """
    d = np.asarray(differences, np.float64)
    if d.size == 0:
        return math.nan
    if d.size == 1 or not d.any():
        return 1.0
    return _p(stats.permutation_test((d,), np.mean, permutation_type="samples", **_how()))


def permutation_p(first: ArrayLike, second: ArrayLike) -> float:
    """Return the two-sided p of the difference of two independent means, if the labels are arbitrary.

    Exact up to 65,536 ways to split the values; for more, from a fixed random sample of them.

    Args:
        first: Values of one group.
        second: Values of the other group.

    Returns:
        p; nan if a group is empty.
    """
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if a.size == 0 or b.size == 0:
        return math.nan
    if a.size + b.size == 2 or np.ptp(np.concatenate([a, b])) == 0:
        return 1.0
    if min(a.size, b.size) == 1:  # scipy refuses a sample of one: any value could have been the single one
        one, pool = (a[0], np.concatenate([a, b])) if a.size == 1 else (b[0], np.concatenate([b, a]))
        return min(1.0, 2 * float(min((pool <= one).mean(), (pool >= one).mean())))
    return _p(stats.permutation_test((a, b), _mean_difference, permutation_type="independent", **_how()))


def _mean_difference(a: np.ndarray, b: np.ndarray, axis: int) -> object:
    return a.mean(axis=axis) - b.mean(axis=axis)


def _how() -> dict[str, Any]:
    return {"n_resamples": _MOST_EXACT, "vectorized": True, "rng": np.random.default_rng(0)}


def _p(result: Any) -> float:
    return min(1.0, float(result.pvalue))


def holm(ps: Sequence[float]) -> list[float]:
    """Adjust the p-values of several comparisons, so that the chance of any false finding stays at the level.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".

    Args:
        ps: Unadjusted p-values; nan stays nan and does not count as a comparison.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    order = sorted((i for i, p in enumerate(ps) if not math.isnan(p)), key=lambda i: ps[i])
    adjusted = [math.nan] * len(ps)
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * ps[i]))
        adjusted[i] = largest
    return adjusted


def seeds_needed(comparisons: int = 1, *, paired: bool = True, level: float = 0.05) -> int:
    """Return the fewest seeds for each group with which a clear difference can be significant.

    Args:
        comparisons: Number of p-values that Holm's correction is over, >= 1.
        paired: Whether the two groups have the same seeds.
        level: Significance level.

    Example:
        >>> seeds_needed(), seeds_needed(6), seeds_needed(paired=False)
        (6, 8, 4)
    """
    n = 1
    while True:
        smallest = 2 / (2**n if paired else math.comb(2 * n, n))
        if smallest * max(1, comparisons) <= level:
            return n
        n += 1
