"""Comparisons between groups of runs: significant differences, the winner, the cheapest good runs, good lrs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lr_lightning.diagnosis.statistics import (
    bootstrap_ci,
    equivalence_p,
    holm,
    permutation_p,
    seeds_needed,
    seeds_to_see,
    sign_flip_p,
)
from lr_lightning.errors import ArgumentError

Floats = NDArray[np.float64]
_FEWEST_LRS = 4  # for a band of good learning rates


@dataclass(frozen=True)
class GroupDifference:
    """The difference between two groups of runs, the one with the better mean first.

    Attributes:
        n: Number of pairs, or size of the smaller group.
        paired: Whether runs that share a seed were compared.
        difference: Difference of the means in the metric's unit, >= 0. Runs that diverged have no part in it, so with
            such runs it may be negative; nan if all of a group diverged.
        low, high: Bootstrap interval of the difference; nan for fewer than three values, and if runs diverged.
        p: Unadjusted p-value; nan if it cannot be computed.
        adjusted: p-value after the correction for all comparisons.
        seeds_needed: Seeds for each group below which no difference could be significant here.
        wins: Pairs in which the first group is better; -1 if unpaired.
        sizes: How many runs of the better and of the worse group were compared, including those that diverged.
        diverged: How many of these diverged.
        same_within: The difference that does not matter, if equality was tested.
        p_same: p-value of two one-sided tests that the means differ by ``same_within`` or more, corrected as
            ``adjusted`` is; nan if equality was not tested, or if runs diverged.
        more_seeds: About how many more seeds would decide, if the runs to come are like these; nan if too few tell.
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
    same_within: float | None = None
    p_same: float = math.nan
    more_seeds: float = math.nan

    @property
    def same(self) -> bool:
        """Whether the groups differ by less than what matters, at the level."""
        return self.p_same <= self.level

    @property
    def enough_seeds(self) -> bool:
        """Whether any difference could be significant with this many seeds."""
        return self.n >= self.seeds_needed

    @property
    def significant(self) -> bool:
        """Whether the difference is significant after the correction."""
        return self.enough_seeds and self.adjusted <= self.level


def compare_groups(
    values: Mapping[str, Mapping[str, float]],
    *,
    higher_is_better: bool,
    against: str | None = None,
    leader_only: bool = False,
    level: float = 0.05,
    same_within: float | None = None,
) -> list[GroupDifference]:
    """Compare groups pairwise, by the seeds that both have, else as independent samples.

    A run that diverged is the worst possible: it loses its pair, and two of them tie. Its loss has no size, so if any
    run of two groups diverged, ranks are tested in place of values: the signed ranks of the pairs (Wilcoxon 1945,
    "Individual comparisons by ranking methods", with Pratt's 1959 treatment of ties) or the ranks of all runs. So a
    group whose bad runs diverged is never the better one because of its survivors alone.

    Args:
        values: Group to (seed to value); a seed is any text. A run that diverged is ``-inf`` if higher is better, else
            ``inf``.
        higher_is_better: Which direction is better.
        against: A group that was chosen beforehand. Only it is compared with each other one: fewer comparisons, so
            fewer seeds are needed. By default every pair is compared, because the leader was not known beforehand.
        leader_only: Whether to compare only the group with the best mean with each other one. That group was not known
            beforehand, so p is corrected for all pairs (Bonferroni).
        level: Significance level, after Holm's correction.
        same_within: A difference that does not matter: whether the groups differ by less is tested as well (TOST).

    Returns:
        One for each pair of groups that have values, ordered by the means of the groups, best first.
    """
    sign = 1.0 if higher_is_better else -1.0
    known = {group: seeds for group, seeds in values.items() if seeds}
    means = {group: sign * float(np.mean(list(seeds.values()))) for group, seeds in known.items()}
    order = sorted(known, key=lambda group: (-means[group], group))
    pairs = [(a, b) for i, a in enumerate(order) for b in order[i + 1 :] if against is None or against in (a, b)]
    count = len(pairs)
    if leader_only and against is None:
        pairs = [(a, b) for a, b in pairs if a == order[0]]
    found = [_compare_pair(a, b, known, sign, level, count, same_within) for a, b in pairs]
    all_pairs = len(pairs) == count

    def adjust(ps: list[float]) -> list[float]:
        return holm(ps) if all_pairs else [min(1.0, count * p) for p in ps]

    adjusted, same = adjust([c.p for c in found]), adjust([c.p_same for c in found])
    return [replace(c, adjusted=p, p_same=q) for c, p, q in zip(found, adjusted, same, strict=True)]


def _compare_pair(
    a: str,
    b: str,
    values: Mapping[str, Mapping[str, float]],
    sign: float,
    level: float,
    comparisons: int,
    same_within: float | None,
) -> GroupDifference:
    first, second = values[a], values[b]
    shared = sorted(first.keys() & second.keys())
    paired = bool(shared) and 2 * len(shared) >= min(len(first), len(second))
    x, y = (sign * np.array([g[seed] for seed in (shared if paired else g)], np.float64) for g in (first, second))
    p, lead = (_paired_test if paired else _unpaired_test)(x, y)
    if lead < 0:  # the shared seeds, or the runs that diverged, contradict the means
        a, b, x, y = b, a, y, x
    diverged = int(np.isneginf(x).sum()), int(np.isneginf(y).sum())
    difference, low, high = _difference(x, y, paired=paired, level=level)
    if any(diverged):
        low = high = math.nan  # an interval of the survivors would look better than they are
    needed = seeds_needed(comparisons, paired=paired, level=level)
    p_same = more = math.nan
    if not any(diverged):
        if same_within is not None:
            p_same = equivalence_p(x - y, None, same_within) if paired else equivalence_p(x, y, same_within)
        more = _more_seeds(x, y, paired, needed, level / comparisons, same_within)
    return GroupDifference(
        *(a, b, min(x.size, y.size), paired, difference, low, high, p),
        seeds_needed=needed,
        same_within=same_within,
        p_same=p_same,
        more_seeds=more,
        wins=int((x > y).sum()) if paired else -1,
        level=level,
        sizes=(x.size, y.size),
        diverged=diverged,
    )


def _more_seeds(x: Floats, y: Floats, paired: bool, needed: int, level: float, same_within: float | None) -> float:
    """Return about how many more seeds would show a difference, or one that does not matter, whichever is sooner."""
    n = min(x.size, y.size)
    if n < 3:  # a spread of two values is no estimate
        return math.nan
    sd = float((x - y).std(ddof=1)) if paired else math.sqrt(float(x.var(ddof=1) + y.var(ddof=1)))
    difference = abs(float(x.mean() - y.mean()))
    enough = max(needed, seeds_to_see(difference, sd, level=level))
    if same_within is not None and difference < same_within:
        fewest = seeds_needed(max(1, round(0.05 / level)), paired=paired, sides=1)
        enough = min(enough, max(fewest, seeds_to_see(same_within - difference, sd, level=level, sides=1)))
    return float(max(1, enough - n))


def _paired_test(x: Floats, y: Floats) -> tuple[float, float]:
    """Return p and the lead of the first: its mean difference, or that of the signed ranks."""
    both = np.isneginf(x) & np.isneginf(y)
    d = np.subtract(x, y, out=np.zeros_like(x), where=~both)
    if not np.isfinite(d).all():
        d = np.sign(d) * _ranks(np.abs(d))
    return sign_flip_p(d), float(d.mean())


def _unpaired_test(x: Floats, y: Floats) -> tuple[float, float]:
    """Return p and the lead of the first, for independent values."""
    if np.isneginf(x).any() or np.isneginf(y).any():
        ranks = _ranks(np.concatenate([x, y]))
        x, y = ranks[: x.size], ranks[x.size :]
    return permutation_p(x, y), float(x.mean() - y.mean())


def _ranks(values: Floats) -> Floats:
    from scipy import stats

    return np.asarray(stats.rankdata(values), np.float64)


def _difference(x: Floats, y: Floats, *, paired: bool, level: float) -> tuple[float, float, float]:
    """Return the difference of the means of the finite values, or of the finite pairs, and its interval."""
    if paired:
        known = np.isfinite(x) & np.isfinite(y)
        d = x[known] - y[known]
        return (float(d.mean()) if d.size else math.nan), *bootstrap_ci(d, level=1 - level)
    x, y = x[np.isfinite(x)], y[np.isfinite(y)]
    return (float(x.mean() - y.mean()) if x.size and y.size else math.nan), *bootstrap_ci(x, y, level=1 - level)


class Outcome(Enum):
    """Whether a comparison names a winner, and if not, why."""

    WON = "significantly better than every other group"
    UNDECIDED = "not significantly better than every other group"
    ALONE = "no other group has a value"
    REFERENCE_MISSING = "the group that was chosen to compare with has no value"
    NO_VALUES = "no group has a value"


@dataclass(frozen=True)
class Ranking:
    """What the comparison of several groups shows.

    Attributes:
        outcome: Whether there is a winner.
        leader: The winner, else the group with the best mean; "" if no group has a value.
        wins: The significant differences in which the leader is the better group.
        lead: The difference between the leader and the best of the groups that it was compared with, if there is one.
    """

    outcome: Outcome
    leader: str = ""
    wins: tuple[GroupDifference, ...] = ()
    lead: GroupDifference | None = None


def rank_groups(groups: Sequence[str], differences: Sequence[GroupDifference]) -> Ranking:
    """Name the winner: the group that is significantly better than every other one.

    Runs that diverged count as losses in ``differences`` (see :func:`compare_groups`), so the winner need not have the
    best mean of the runs that finished.

    Args:
        groups: The groups that have values, by their means over finished runs, best first.
        differences: Their differences, from :func:`compare_groups`.

    Example:
        >>> seeds = [str(seed) for seed in range(6)]
        >>> values = {"a": dict.fromkeys(seeds, 0.9), "b": dict.fromkeys(seeds, 0.8)}
        >>> found = rank_groups(["a", "b"], compare_groups(values, higher_is_better=True))
        >>> found.outcome is Outcome.WON, found.leader
        (True, 'a')
    """
    if not groups:
        return Ranking(Outcome.NO_VALUES)
    best = groups[0]
    compared = [d for d in differences if best in (d.better, d.worse)]
    if not compared:
        return Ranking(Outcome.ALONE if len(groups) == 1 else Outcome.REFERENCE_MISSING, best)
    wins = {group: tuple(d for d in differences if d.significant and d.better == group) for group in groups}
    others = len({name for d in differences for name in (d.better, d.worse)}) - 1
    winner = next((group for group in groups if len(wins[group]) == others), None)
    if winner is not None:
        return Ranking(Outcome.WON, winner, wins[winner], wins[winner][0])
    return Ranking(Outcome.UNDECIDED, best, wins[best], compared[0])


# -- many groups -----------------------------------------------------------------------------------------------------


def pareto_front(cost: ArrayLike, value: ArrayLike) -> list[int]:
    """Return the indices of the points that no other point beats in both cost and value, by rising cost.

    A lower cost and a higher value are better. Equal points are all included.

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


@dataclass(frozen=True)
class GoodBand:
    """The learning rates around the best one whose results lie within a tolerance of it.

    Attributes:
        low, high: Lowest and highest learning rate of the band that were tried.
        best: The best result, smoothed if there are at least seven.
        best_lr: Its learning rate.
        limit: The result at which the band ends.
        open_low: Whether no lower learning rate was tried, so that the band may continue.
        open_high: Whether no higher learning rate was tried.
    """

    low: float
    high: float
    best: float
    best_lr: float
    limit: float
    open_low: bool
    open_high: bool


def good_band(lrs: Sequence[float], results: Sequence[float], *, higher: bool, tolerance: float) -> GoodBand | None:
    """Find the band of good learning rates around the best one.

    The results are ordered by learning rate. If there are at least seven, each is replaced by the median of itself and
    its two neighbours, so that one lucky run makes no optimum and one unlucky run ends no band. The band extends from
    the best learning rate to both sides as long as every one that was tried lies within the tolerance. Its ends were
    tried, so it is at least that wide, as far as the grid can tell.

    Args:
        lrs: Peak learning rates, > 0, in any order.
        results: The result of each; a run that diverged or was pruned is infinitely bad.
        higher: Whether a higher result is better.
        tolerance: How far below the best a result is still good, in the unit of the results.

    Returns:
        The band; None for fewer than four learning rates, or if no result is finite.

    Raises:
        ArgumentError: ``lrs`` and ``results`` differ in length, or a learning rate is not above 0.

    Example:
        >>> band = good_band([0.01, 0.1, 1, 10], [0.90, 0.97, 0.965, 0.1], higher=True, tolerance=0.01)
        >>> band.low, band.high, band.open_high
        (0.1, 1.0, False)
    """
    if len(lrs) != len(results):
        raise ArgumentError(f"results must have one value for each of the {len(lrs)} lrs, got {len(results)}")
    if not all(lr > 0 for lr in lrs):
        raise ArgumentError(f"lrs must be > 0, got {min(lrs)}")
    if len(set(lrs)) < _FEWEST_LRS:
        return None
    order = np.argsort(lrs, kind="stable")
    sign = 1.0 if higher else -1.0
    x = np.asarray(lrs, float)[order]
    y = np.asarray(results, float)[order] * sign
    y = np.where(np.isnan(y), -np.inf, y)
    if len(y) >= 7:
        y[1:-1] = np.median([y[:-2], y[1:-1], y[2:]], axis=0)
    if not np.isfinite(y).any():
        return None
    top = int(np.argmax(y))
    limit = float(y[top]) - tolerance
    bad = np.flatnonzero(~(y >= limit))
    first = int(max(bad[bad < top], default=-1)) + 1
    last = int(min(bad[bad > top], default=len(y))) - 1
    return GoodBand(
        low=float(x[first]),
        high=float(x[last]),
        best=sign * float(y[top]),
        best_lr=float(x[top]),
        limit=sign * limit,
        open_low=first == 0,
        open_high=last == len(y) - 1,
    )
