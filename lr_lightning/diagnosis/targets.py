"""When runs reached a target, and what is known of those that did not."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from lr_lightning.diagnosis.cost import OPERATORS, Target

__all__ = ["Reach", "median_time", "time_to"]


@dataclass(frozen=True)
class Reach:
    """When one run reached the target.

    Attributes:
        time: When it did; if it did not, how long it is known not to have (infinite for a run that never will).
        reached: Whether it did.
    """

    time: float
    reached: bool


def time_to(target: Target, times: ArrayLike, values: ArrayLike, *, hopeless: bool = False) -> Reach | None:
    """The first time the metric meets the target.

    Args:
        target: What is to be reached.
        times: Rising, in any unit, shape [n].
        values: Of the target's metric, shape [n].
        hopeless: Whether a run that has not reached it never will (it diverged), rather than was observed so long.

    Returns:
        None of a run without values.
    """
    t, v = np.asarray(times, np.float64), np.asarray(values, np.float64)
    if t.size == 0:
        return None
    met = np.flatnonzero(OPERATORS[target.sign](v, target.value))
    if met.size:
        return Reach(float(t[met[0]]), True)
    return Reach(math.inf if hopeless else float(t[-1]), False)


def median_time(reaches: Sequence[Reach]) -> float:
    """Median time to the target over runs, some of which were stopped before they reached it.

    Kaplan & Meier 1958: a run that was observed for a while only counts for that while.

    Returns:
        The median; nan of no runs, infinite if fewer than half are known to have reached it.

    Example:
        >>> median_time([Reach(10, True), Reach(20, True), Reach(30, False)])
        20.0
    """
    if not reaches:
        return math.nan
    longest = max((r.time for r in reaches if math.isfinite(r.time)), default=0.0)
    reached = [r.time for r in reaches if r.reached]
    censored = [r.time if math.isfinite(r.time) else longest + 1.0 for r in reaches if not r.reached]
    if not reached:
        return math.inf
    survival = stats.ecdf(stats.CensoredData(uncensored=reached, right=censored)).sf
    below = np.flatnonzero(survival.probabilities <= 0.5 + 1e-12)
    return float(survival.quantiles[below[0]]) if below.size else math.inf
