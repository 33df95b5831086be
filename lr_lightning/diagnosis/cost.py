"""Targets, the time to reach them, spikes and percentiles: pure functions of recorded numbers."""

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lr_lightning.errors import ArgumentError

OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_WINDOWS = 10_000  # at a time
_TARGET = re.compile(r"\s*([^<>=]*[^<>=\s])\s*(>=|<=|>|<)\s*(\S+)\s*")


@dataclass(frozen=True)
class Target:
    """A bound that a run should reach, such as ``val/acc>=0.97``."""

    metric: str
    sign: str
    value: float

    def reached(self, metrics: Mapping[str, float]) -> bool:
        """Return whether these metrics meet the target; False if its metric is missing."""
        return self.metric in metrics and bool(OPERATORS[self.sign](float(metrics[self.metric]), self.value))

    def __str__(self) -> str:
        return f"{self.metric}{self.sign}{self.value:g}"


def parse_target(text: str) -> Target:
    """Parse a target.

    Raises:
        ArgumentError: ``text`` is not a metric, a sign and a finite number.

    Example:
        >>> parse_target("val/acc >= 0.97")
        Target(metric='val/acc', sign='>=', value=0.97)
    """
    found = _TARGET.fullmatch(text)
    with suppress(ValueError):
        if found is not None and math.isfinite(value := float(found[3])):
            return Target(found[1], found[2], value)
    raise ArgumentError(
        f"must be a metric, one of >= <= > <, and a number, such as val/acc>=0.97, got {text!r}", "target"
    )


def percentiles(values: ArrayLike, at: tuple[float, ...] = (50, 95, 99)) -> dict[str, float]:
    """Return percentiles of the finite values by name; none if there are no such values.

    Example:
        >>> percentiles([1.0, 2.0, 3.0], at=(50,))
        {'p50': 2.0}
    """
    known = np.asarray(values, np.float64)
    known = known[np.isfinite(known)]
    return {f"p{p:g}": float(np.percentile(known, p)) for p in at} if known.size else {}


def spikes(losses: ArrayLike, window: int = 50, height: float = 6.0) -> NDArray[np.int64]:
    """Find the steps at which the training loss jumped above its smoothed course.

    The course is the median of the ``window`` losses before a step. A spike lies above it by ``height`` standard
    deviations of these losses, and by a tenth of the first losses' median, so that the ripples of a loss near 0 do not
    count. The deviation comes from the median absolute one, so that earlier spikes do not hide later ones. A loss that
    is not finite is a spike too.

    Returns:
        Indices of the steps where a spike begins, shape [spikes]; in the first ``window`` steps, which should be four
        or more, only losses that are not finite.

    Example:
        >>> spikes([1.0, 1.1] * 20 + [5.0, 4.0] + [1.0, 1.1] * 5, window=10).tolist()
        [40]
    """
    curve = np.asarray(losses, np.float64)
    if len(curve) <= window:
        return np.flatnonzero(~np.isfinite(curve))
    bounded = np.where(np.isfinite(curve), curve, np.inf)
    least = 0.1 * abs(float(np.median(bounded[:window])))
    jumps = np.zeros(len(curve) - window, bool)
    every = np.lib.stride_tricks.sliding_window_view(bounded, window)[:-1]
    for start in range(0, len(every), _WINDOWS):  # the medians copy the windows: a long run has gigabytes of them
        before = every[start : start + _WINDOWS]
        course = np.median(before, axis=1)
        with np.errstate(invalid="ignore"):
            spread = 1.4826 * np.median(np.abs(before - course[:, None]), axis=1)
            limit = course + np.maximum(height * spread, least)
        jumps[start : start + _WINDOWS] = bounded[window:][start : start + _WINDOWS] > limit
    high = np.concatenate([~np.isfinite(curve[:window]), jumps | ~np.isfinite(curve[window:])])
    return np.flatnonzero(high & ~np.concatenate([[False], high[:-1]]))


# -- the time to a target --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reach:
    """The time at which one run reached its target; if it did not, how long it was observed, inf if it never will."""

    time: float
    reached: bool


def time_to(target: Target, times: ArrayLike, values: ArrayLike, *, diverged: bool = False) -> Reach | None:
    """Return the first of the rising times, in any unit, at which the metric meets the target; None without values.

    A run that has not reached the target is censored; one that diverged never will.
    """
    t, v = np.asarray(times, np.float64), np.asarray(values, np.float64)
    if t.size == 0:
        return None
    met = np.flatnonzero(OPERATORS[target.sign](v, target.value))
    if met.size:
        return Reach(float(t[met[0]]), True)
    return Reach(math.inf if diverged else float(t[-1]), False)


def median_time(reaches: Sequence[Reach]) -> float:
    """Return the median time to the target over runs, some of which were stopped before they reached it.

    A run that was observed for a while counts only for that while. Source: Kaplan & Meier 1958, "Nonparametric
    estimation from incomplete observations".

    Returns:
        The median; nan if there are no runs, inf if fewer than half are known to have reached the target.

    Example:
        >>> median_time([Reach(10, True), Reach(20, True), Reach(30, False)])
        20.0
    """
    reached = [r.time for r in reaches if r.reached]
    if not reached:
        return math.inf if reaches else math.nan
    longest = max((r.time for r in reaches if math.isfinite(r.time)), default=0.0)
    censored = [r.time if math.isfinite(r.time) else longest + 1.0 for r in reaches if not r.reached]
    from scipy import stats

    survival = stats.ecdf(stats.CensoredData(uncensored=reached, right=censored)).sf
    below = np.flatnonzero(survival.probabilities <= 0.5 + 1e-12)
    return float(survival.quantiles[below[0]]) if below.size else math.inf
