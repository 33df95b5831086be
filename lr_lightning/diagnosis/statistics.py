"""Means with intervals, exact tests, and the correction for several of them: pure functions."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, count
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lr_lightning.errors import ArgumentError

_RESAMPLES = 9999
_MOST_EXACT = 1 << 16  # sign flips or splits that are all tried; if there are more, a random sample
_CHUNK = 4096  # of them at a time


@dataclass(frozen=True)
class Mean:
    """The mean of ``n`` values, nan if there are none, with its t interval, nan for fewer than two values."""

    n: int
    mean: float
    low: float = math.nan
    high: float = math.nan

    @property
    def half(self) -> float:
        """Half the width of the interval; nan if there is none."""
        return (self.high - self.low) / 2


def mean_ci(values: ArrayLike, level: float = 0.95) -> Mean:
    """Return the mean and Student's t interval of independent finite values, such as one for each seed.

    Example:
        >>> m = mean_ci([1.0, 2.0, 3.0])
        >>> m.n, m.mean, round(m.low, 2), round(m.high, 2)
        (3, 2.0, -0.48, 4.48)
    """
    x = np.asarray(values, np.float64)
    if x.size < 2:
        return Mean(x.size, float(x[0]) if x.size else math.nan)
    from scipy import stats  # takes half a second, which a look at the config must not cost

    half = float(stats.t.ppf((1 + level) / 2, x.size - 1) * x.std(ddof=1) / math.sqrt(x.size))
    mean = float(x.mean())
    return Mean(x.size, mean, mean - half, mean + half)


def bootstrap_ci(first: ArrayLike, second: ArrayLike | None = None, level: float = 0.95) -> tuple[float, float]:
    """Return the bootstrap interval (BCa) of a mean, or of the difference of two independent means.

    The same values always give the same interval. It is too narrow for few values. Both ends are nan for fewer than
    three values, and the mean if all values are equal.
    """
    from scipy import stats

    data = [np.asarray(group, np.float64) for group in (first, second) if group is not None]
    if min(group.size for group in data) < 3:
        return math.nan, math.nan
    if not any(np.ptp(group) for group in data):
        mean = float(data[0][0] - (data[1][0] if len(data) > 1 else 0.0))
        return mean, mean

    def statistic(*groups: NDArray[np.float64], axis: int) -> object:
        means = [group.mean(axis=axis) for group in groups]
        return means[0] if len(means) == 1 else means[0] - means[1]

    def interval(method: str) -> tuple[float, float]:
        how: dict[str, Any] = {"n_resamples": _RESAMPLES, "vectorized": True, "rng": np.random.default_rng(0)}
        found = stats.bootstrap(data, statistic, confidence_level=level, method=method, **how).confidence_interval
        return float(found.low), float(found.high)

    with np.errstate(all="ignore"):
        low, high = interval("BCa")
    return (low, high) if math.isfinite(low) and math.isfinite(high) else interval("percentile")


def sign_flip_p(differences: ArrayLike) -> float:
    """Return the two-sided p of paired differences, if each could as well have the other sign; nan without pairs.

    Exact up to 16 pairs; for more, from a fixed random sample of sign flips. Source: Fisher 1935, The Design of
    Experiments, §21.

    Example:
        >>> sign_flip_p([0.1, 0.2, 0.3, 0.1, 0.2, 0.3])  # the smallest p of six pairs: 2 / 2**6
        0.03125
    """
    d = np.asarray(differences, np.float64)
    if d.size == 0:
        return math.nan
    if d.size == 1 or not d.any():
        return 1.0
    if 2**d.size <= _MOST_EXACT:
        return _exact_p((d,), np.mean, "samples")
    rng = np.random.default_rng(0)
    null = (_random_signs(rng, rows, d) for rows in _chunks())
    return _sampled_p(float(d.sum()), null, float(np.abs(d).sum()))


def permutation_p(first: ArrayLike, second: ArrayLike) -> float:
    """Return the two-sided p of the difference of two independent means, if the labels are arbitrary.

    Exact up to 65,536 ways to split the values; for more, from a fixed random sample of them. It is nan if a group is
    empty.
    """
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if a.size == 0 or b.size == 0:
        return math.nan
    if a.size + b.size == 2 or np.ptp(np.concatenate([a, b])) == 0:
        return 1.0
    if min(a.size, b.size) == 1:  # scipy refuses a sample of one: any value could have been the single one
        one, pool = (a[0], np.concatenate([a, b])) if a.size == 1 else (b[0], np.concatenate([b, a]))
        return min(1.0, 2 * float(min((pool <= one).mean(), (pool >= one).mean())))
    if math.comb(a.size + b.size, a.size) <= _MOST_EXACT:
        return _exact_p((a, b), lambda a, b, axis: a.mean(axis=axis) - b.mean(axis=axis), "independent")
    rng, pool = np.random.default_rng(0), np.concatenate([a, b])
    weights = np.repeat([1 / a.size, -1 / b.size], [a.size, b.size])  # of the values, for the difference of the means
    null = (rng.permuted(np.tile(weights, (rows, 1)), axis=1) @ pool for rows in _chunks())
    return _sampled_p(float(a.mean() - b.mean()), null, float(np.abs(weights) @ np.abs(pool)))


def _chunks() -> Iterator[int]:
    return (_CHUNK for _ in range(_MOST_EXACT // _CHUNK))


def _random_signs(rng: np.random.Generator, rows: int, terms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return sums of the terms, each with a random sign, shape [rows]."""
    positive = rng.integers(0, 2, (rows, terms.size), np.int8)
    return np.asarray(2.0 * (positive @ terms) - terms.sum(), np.float64)


def _sampled_p(observed: float, null: Iterator[NDArray[np.float64]], size: float) -> float:
    """Return the two-sided p of a statistic beside a sample of its values under the null hypothesis, and itself.

    Values that differ by rounding alone are equal: ``size`` is how large the terms of the statistic are together.
    """
    less = greater = 1
    for values in null:
        less += int((values <= observed + 1e-12 * size).sum())
        greater += int((values >= observed - 1e-12 * size).sum())
    return min(1.0, 2 * min(less, greater) / (_MOST_EXACT + 1))


def _exact_p(data: tuple[NDArray[np.float64], ...], statistic: Any, kind: str) -> float:
    from scipy import stats

    how: dict[str, Any] = {"n_resamples": _MOST_EXACT, "vectorized": True, "rng": np.random.default_rng(0)}
    return min(1.0, float(stats.permutation_test(data, statistic, permutation_type=kind, **how).pvalue))


def equivalence_p(first: ArrayLike, second: ArrayLike | None, margin: float) -> float:
    """Return the p of two one-sided tests that two means differ by ``margin`` or more, so that a low p says equal.

    ``first`` are paired differences if ``second`` is None, else the groups are independent. The tests are those of
    :func:`sign_flip_p` and :func:`permutation_p`, one-sided, for means that are ``margin`` apart; nan for fewer than
    two values. Source: Schuirmann 1987, "A comparison of the two one-sided tests procedure and the power approach".

    Example:
        >>> equivalence_p([0.001, -0.001, 0.0, 0.001, -0.001], None, 0.003)  # the smallest p of five pairs: 1 / 2**5
        0.03125
    """
    x = np.asarray(first, np.float64)
    y = None if second is None else np.asarray(second, np.float64)
    if min(x.size, x.size if y is None else y.size) < 2:
        return math.nan
    return max(_one_sided_p(x - margin, y, -1.0), _one_sided_p(x + margin, y, 1.0))


def _one_sided_p(x: NDArray[np.float64], y: NDArray[np.float64] | None, sign: float) -> float:
    """Return how often chance moves the mean of ``x``, or its lead over that of ``y``, so far towards ``sign``."""
    pool = sign * (x if y is None else np.concatenate([x, y]))
    n, m = x.size, 0 if y is None else y.size
    if y is None:
        exact = 2**n <= _MOST_EXACT
        weights = np.full(n, 1 / n)
        all_signs = 1 - 2 * ((np.arange(2**n if exact else 0)[:, None] >> np.arange(n)) & 1)
    else:
        exact = math.comb(n + m, n) <= _MOST_EXACT
        weights = np.repeat([1 / n, -1 / m], [n, m])
    observed = float(weights @ pool) - 1e-12 * float(np.abs(weights) @ np.abs(pool))  # equal but for rounding
    if exact and y is None:
        return float(((all_signs * weights) @ pool >= observed).mean())
    if exact:
        low = -pool.sum() / m
        splits = (low + (1 / n + 1 / m) * pool[[*chosen]].sum() for chosen in combinations(range(n + m), n))
        return float(np.mean([value >= observed for value in splits]))
    rng, count = np.random.default_rng(0), 1
    for rows in _chunks():
        if y is None:
            values = _random_signs(rng, rows, weights * pool)
        else:
            values = rng.permuted(np.tile(weights, (rows, 1)), axis=1) @ pool
        count += int((values >= observed).sum())
    return count / (_MOST_EXACT + 1)


def holm(ps: Sequence[float]) -> list[float]:
    """Adjust the p-values of several comparisons, so that the chance of any false finding stays at the level.

    A p that is nan stays nan and does not count as a comparison. Source: Holm 1979, "A simple sequentially rejective
    multiple test procedure".

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


def seeds_to_see(difference: float, sd: float, *, level: float = 0.05, sides: int = 2, power: float = 0.8) -> int:
    """Return about how many values show that a mean is not 0, if it is ``difference`` and they spread by ``sd``.

    It is the size of a t test of that power, two-sided or one-sided, at most 1000.

    Example:
        >>> seeds_to_see(1.0, 1.0), seeds_to_see(2.0, 1.0), seeds_to_see(0.0, 1.0)
        (10, 5, 1000)
    """
    from scipy import stats

    for n in range(2, 1000):
        needed = stats.t.ppf(1 - level / sides, n - 1) + stats.t.ppf(power, n - 1)
        if abs(difference) * math.sqrt(n) >= needed * sd:
            return n
    return 1000


def difference_seen(n: int, sd: float, *, level: float = 0.05, power: float = 0.8) -> float:
    """Return the smallest mean that ``n`` values with a spread of ``sd`` show to differ from 0 (as a t test does).

    Example:
        >>> round(difference_seen(6, 0.01), 4)
        0.0142
    """
    from scipy import stats

    return float(stats.t.ppf(1 - level / 2, n - 1) + stats.t.ppf(power, n - 1)) * sd / math.sqrt(n)


def seeds_needed(comparisons: int = 1, *, paired: bool = True, level: float = 0.05, sides: int = 2) -> int:
    """Return the fewest seeds for each group with which a clear difference can be significant.

    comparisons is how many Holm's correction covers. Paired groups have the same seeds. A test of equality has one
    side.

    Example:
        >>> seeds_needed(), seeds_needed(6), seeds_needed(paired=False)
        (6, 8, 4)
    """
    smallest = ((n, sides / (2**n if paired else math.comb(2 * n, n))) for n in count(1))
    return next(n for n, p in smallest if p * max(1, comparisons) <= level)


# -- stratified splits and subsets -------------------------------------------------------------------------------------

Indices = NDArray[np.int64]


def _allocate(counts: Indices, total: int, lower: Indices, upper: Indices) -> Indices:
    """Share ``total`` among classes by ``counts`` (largest remainder), between ``lower`` and ``upper``."""
    exact = counts * (total / max(int(counts.sum()), 1))
    share: Indices = np.clip(np.floor(exact).astype(np.int64), lower, upper)
    # The bounds may have changed the sum: correct it one example at a time, in the class that this distorts least.
    while (missing := total - int(share.sum())) != 0:
        step = 1 if missing > 0 else -1
        room = share < upper if step > 0 else share > lower
        if not room.any():
            break
        need = np.where(room, (exact - share) * step, -np.inf)
        share[int(np.argmax(need))] += step
    return share


def _pick(labels: NDArray[np.int64], classes: Indices, share: Indices, seed: int) -> Indices:
    """Draw ``share[k]`` random examples of ``classes[k]``; return sorted indices."""
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed)))
    picked = [rng.permutation(np.flatnonzero(labels == c))[:n] for c, n in zip(classes, share, strict=True)]
    return np.sort(np.concatenate(picked)) if picked else np.empty(0, np.int64)


def stratified_split(labels: NDArray[np.int64], fraction: float, seed: int) -> tuple[Indices, Indices]:
    """Hold out a fraction of the examples, the same fraction of each class.

    A class with at least two examples has at least one on each side. A single example is kept. Nothing but the seed
    influences the draw.

    Returns:
        Two sorted index arrays, (keep, held_out), that partition ``range(N)``.

    Raises:
        ArgumentError: ``fraction`` is not in (0, 1).

    Example:
        >>> keep, held_out = stratified_split(np.array([0, 0, 0, 0, 1, 1, 1, 1, 2]), 0.25, seed=0)
        >>> [int((held_out < 4).sum()), int((held_out >= 4).sum()), 8 in keep]
        [1, 1, True]
    """
    if not 0 < fraction < 1:
        raise ArgumentError(f"fraction must be in (0, 1), got {fraction}")
    classes, counts = np.unique(labels, return_counts=True)
    several = (counts >= 2).astype(np.int64)
    share = _allocate(counts, round(len(labels) * fraction), lower=several, upper=counts - 1)
    held_out = _pick(labels, classes, share, seed)
    keep = np.setdiff1d(np.arange(len(labels), dtype=np.int64), held_out, assume_unique=True)
    return keep, held_out


def stratified_subset(labels: NDArray[np.int64], size: int, seed: int) -> Indices:
    """Draw ``size`` examples, at most all, with the class proportions of the whole; return sorted indices.

    Raises:
        ArgumentError: ``size`` is negative.
    """
    if size < 0:
        raise ArgumentError(f"size must be >= 0, got {size}")
    classes, counts = np.unique(labels, return_counts=True)
    share = _allocate(counts, min(size, len(labels)), lower=np.zeros_like(counts), upper=counts)
    return _pick(labels, classes, share, seed)
