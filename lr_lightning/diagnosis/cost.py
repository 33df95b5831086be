"""Targets, spikes and percentiles: pure functions of what a run recorded."""

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

__all__ = ["OPERATORS", "Reach", "Target", "median_time", "parse_target", "percentiles", "spikes", "time_to"]

Floats = NDArray[np.float64]

OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_TARGET = re.compile(r"\s*([^<>=]*[^<>=\s])\s*(>=|<=|>|<)\s*(\S+)\s*")


@dataclass(frozen=True)
class Target:
    """What a run is to reach, such as ``val/acc>=0.97``.

    Attributes:
        metric: Name of the metric.
        sign: ``>=``, ``<=``, ``>`` or ``<``.
        value: The bound.
    """

    metric: str
    sign: str
    value: float

    def reached(self, metrics: Mapping[str, float]) -> bool:
        """Whether these metrics meet it; False where the metric is missing."""
        return self.metric in metrics and bool(OPERATORS[self.sign](float(metrics[self.metric]), self.value))

    def __str__(self) -> str:
        return f"{self.metric}{self.sign}{self.value:g}"


def parse_target(text: str) -> Target:
    """Read a target.

    Raises:
        ValueError: It is no metric, sign and finite number.

    Example:
        >>> parse_target("val/acc >= 0.97")
        Target(metric='val/acc', sign='>=', value=0.97)
    """
    found = _TARGET.fullmatch(text)
    try:
        value = float(found[3]) if found else math.nan
    except ValueError:
        value = math.nan
    if found is None or not math.isfinite(value):
        raise ValueError(
            f"target must be a metric, one of >= <= > <, and a number, such as val/acc>=0.97, got {text!r}"
        )
    return Target(found[1], found[2], value)


def percentiles(values: ArrayLike, at: tuple[float, ...] = (50, 95, 99)) -> dict[str, float]:
    """Percentiles by name, ``p50`` and so on; none of no values, and those that are not finite are left out.

    Example:
        >>> percentiles([1.0, 2.0, 3.0], at=(50,))
        {'p50': 2.0}
    """
    known = np.asarray(values, np.float64)
    known = known[np.isfinite(known)]
    return {f"p{p:g}": float(np.percentile(known, p)) for p in at} if known.size else {}


def spikes(losses: ArrayLike, window: int = 50, height: float = 6.0) -> NDArray[np.int64]:
    """The steps at which the training loss jumped above its smoothed course.

    The course is the median of the ``window`` losses before a step. A spike is above it by ``height`` of their standard
    deviations (from the median absolute deviation, so that earlier spikes do not hide later ones), and by a tenth of
    the first losses' median, so that the ripples of a loss near 0 do not count. A loss that is not finite is one.

    Args:
        losses: One for each step, shape [T].
        window: Steps that are looked back on, >= 4.
        height: How far above is a spike.

    Returns:
        Indices of the steps where a spike begins, shape [spikes]; none in the first ``window`` steps.

    Example:
        >>> spikes([1.0, 1.1] * 20 + [5.0, 4.0] + [1.0, 1.1] * 5, window=10).tolist()
        [40]
    """
    curve = np.asarray(losses, np.float64)
    if len(curve) <= window:
        return np.flatnonzero(~np.isfinite(curve))
    bounded = np.where(np.isfinite(curve), curve, np.inf)
    before = np.lib.stride_tricks.sliding_window_view(bounded, window)[:-1]
    course = np.median(before, axis=1)
    least = 0.1 * abs(float(np.median(bounded[:window])))
    with np.errstate(invalid="ignore"):
        spread = 1.4826 * np.median(np.abs(before - course[:, None]), axis=1)
        jumps = bounded[window:] > course + np.maximum(height * spread, least)
    high = np.concatenate([~np.isfinite(curve[:window]), jumps | ~np.isfinite(curve[window:])])
    return np.flatnonzero(high & ~np.concatenate([[False], high[:-1]]))


# --- When runs reached a target, and what is known of those that did not.


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
