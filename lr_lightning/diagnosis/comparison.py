"""Groups of runs against each other: paired differences, and what may be called a win."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from lr_lightning.diagnosis.statistics import bootstrap_ci, holm, permutation_p, seeds_needed, sign_flip_p

__all__ = ["GoodBand", "GroupDifference", "compare_groups", "good_band", "pareto_front"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class GroupDifference:
    """Two groups, the one with the better mean first.

    Attributes:
        better: Name of the group with the better mean.
        worse: Name of the other.
        n: Pairs, or the size of the smaller group.
        paired: Whether it is by pairs that share a seed.
        difference: How much better the mean is, in the metric's unit; >= 0. Where runs diverged: of those that did not,
            so it may be negative, and nan where there are none.
        low: Lower end of its bootstrap interval; nan of fewer than three, and where runs diverged.
        high: Upper end.
        p: Unadjusted; nan where nothing can be computed.
        adjusted: Holm's.
        seeds_needed: Seeds for each group from which on a difference could be told from chance here.
        wins: Pairs in which the first group is better; -1 where unpaired.
        level: Significance level.
        sizes: How many values of the better and the worse group were compared, those that diverged included.
        diverged: How many of these diverged.
    """

    better: str
    worse: str
    n: int
    paired: bool
    difference: float
    low: float
    high: float
    p: float
    adjusted: float = math.nan
    seeds_needed: int = 6
    wins: int = -1
    level: float = 0.05
    sizes: tuple[int, int] = (0, 0)
    diverged: tuple[int, int] = (0, 0)

    @property
    def enough_seeds(self) -> bool:
        """Whether there are seeds enough for any finding at all."""
        return self.n >= self.seeds_needed

    @property
    def significant(self) -> bool:
        """Whether the difference is more than chance, at the level, after the correction."""
        return self.enough_seeds and self.adjusted <= self.level


def compare_groups(
    values: Mapping[str, Mapping[str, float]],
    *,
    higher_is_better: bool,
    against: str | None = None,
    leader_only: bool = False,
    level: float = 0.05,
) -> list[GroupDifference]:
    """Compare groups pairwise, by seeds that both have, else as independent samples.

    A run that diverged is the worst there is: of a pair it loses, and two of them are a tie. How much worse has no
    number, so where any run of two groups diverged, the test is of ranks in place of values, of the signed ranks of the
    pairs (Wilcoxon 1945, "Individual comparisons by ranking methods", with Pratt's 1959 ties) or of the ranks of all
    runs. A group whose bad runs diverged is thus never the better one for its survivors alone.

    Every pair of groups is compared, because which one leads was not known beforehand. With ``against``, only that
    group with each other one: fewer comparisons, so fewer seeds are needed.

    Args:
        values: Group to (seed to value); any text that matches is a seed. A run that diverged is infinitely bad:
            ``-inf`` where higher is better, else ``inf``.
        higher_is_better: Which direction is better.
        against: A group chosen beforehand.
        leader_only: Whether, of many groups, only the one with the best mean is compared with each other one. Which
            one that is was not known beforehand, so p is corrected for all the pairs that there are (Bonferroni).
        level: Significance level, after Holm's correction.

    Returns:
        One for each pair of groups that have values, in the groups' order of means, best first.
    """
    sign = 1.0 if higher_is_better else -1.0
    known = {group: seeds for group, seeds in values.items() if seeds}
    means = {group: sign * float(np.mean(list(seeds.values()))) for group, seeds in known.items()}
    order = sorted(known, key=lambda group: (-means[group], group))
    pairs = [(a, b) for i, a in enumerate(order) for b in order[i + 1 :] if against is None or against in (a, b)]
    count = len(pairs)
    if leader_only and against is None:
        pairs = [(a, b) for a, b in pairs if a == order[0]]
    found = [_pair(a, b, known, sign, level) for a, b in pairs]
    all_pairs = len(pairs) == count
    adjusted = holm([c.p for c in found]) if all_pairs else [min(1.0, count * c.p) for c in found]
    return [
        replace(c, adjusted=p, seeds_needed=seeds_needed(count, paired=c.paired, level=level))
        for c, p in zip(found, adjusted, strict=True)
    ]


def _pair(a: str, b: str, values: Mapping[str, Mapping[str, float]], sign: float, level: float) -> GroupDifference:
    first, second = values[a], values[b]
    shared = sorted(first.keys() & second.keys())
    paired = bool(shared) and 2 * len(shared) >= min(len(first), len(second))
    x, y = (sign * np.array([g[seed] for seed in (shared if paired else g)], np.float64) for g in (first, second))
    p, lead = (_paired_test if paired else _unpaired_test)(x, y)
    if lead < 0:  # the seeds both have, or the runs that diverged, say otherwise than the means
        a, b, x, y = b, a, y, x
    diverged = int(np.isneginf(x).sum()), int(np.isneginf(y).sum())
    difference, low, high = _difference(x, y, paired=paired, level=level)
    if any(diverged):
        low = high = math.nan  # an interval of the survivors would look better than they are
    return GroupDifference(
        *(a, b, min(x.size, y.size), paired, difference, low, high, p),
        wins=int((x > y).sum()) if paired else -1,
        level=level,
        sizes=(x.size, y.size),
        diverged=diverged,
    )


def _paired_test(x: Floats, y: Floats) -> tuple[float, float]:
    """p, and a number that is positive where the first is better: its mean difference, or that of signed ranks."""
    both = np.isneginf(x) & np.isneginf(y)
    d = np.subtract(x, y, out=np.zeros_like(x), where=~both)
    if not np.isfinite(d).all():
        d = np.sign(d) * stats.rankdata(np.abs(d))
    return sign_flip_p(d), float(d.mean())


def _unpaired_test(x: Floats, y: Floats) -> tuple[float, float]:
    """The same of independent values."""
    if np.isneginf(x).any() or np.isneginf(y).any():
        ranks = stats.rankdata(np.concatenate([x, y]))
        x, y = ranks[: x.size], ranks[x.size :]
    return permutation_p(x, y), float(x.mean() - y.mean())


def _difference(x: Floats, y: Floats, *, paired: bool, level: float) -> tuple[float, float, float]:
    """Of the values that are finite, in both where they are paired: the difference of the means, and its interval."""
    if paired:
        known = np.isfinite(x) & np.isfinite(y)
        d = x[known] - y[known]
        return (float(d.mean()) if d.size else math.nan), *bootstrap_ci(d, level=1 - level)
    x, y = x[np.isfinite(x)], y[np.isfinite(y)]
    return (float(x.mean() - y.mean()) if x.size and y.size else math.nan), *bootstrap_ci(x, y, level=1 - level)


def pareto_front(cost: ArrayLike, value: ArrayLike) -> list[int]:
    """Indices of the points that no other one beats in both: cheaper (or as cheap) and better.

    Args:
        cost: Lower is better, shape [n].
        value: Higher is better, shape [n].

    Returns:
        By rising cost. Of equal points all are in it.

    Example:
        >>> pareto_front([1, 2, 3, 3], [0.5, 0.9, 0.8, 0.95])
        [0, 1, 3]
    """
    c, v = np.asarray(cost, np.float64), np.asarray(value, np.float64)
    front, best, at = [], -math.inf, math.nan
    for i in sorted(range(len(c)), key=lambda i: (c[i], -v[i])):
        if v[i] > best or (v[i] == best and c[i] == at):
            front.append(i)
            best, at = v[i], c[i]
    return front


# --- How much a result depends on the rate: the band of rates that are about as good as the best. A pure function.

_FEWEST = 4


@dataclass(frozen=True)
class GoodBand:
    """The rates around the best one whose results lie within a tolerance of it.

    Attributes:
        low: Lowest rate of the band that was tried.
        high: Highest one.
        best: The best result, smoothed where there are rates enough.
        best_lr: Its rate.
        limit: The result at which the band ends.
        open_low: Whether no lower rate was tried, so that the band may go on.
        open_high: The same of higher ones.
    """

    low: float
    high: float
    best: float
    best_lr: float
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
        best_lr=float(x[top]),
        limit=sign * limit,
        open_low=first == 0,
        open_high=last == len(y) - 1,
    )
