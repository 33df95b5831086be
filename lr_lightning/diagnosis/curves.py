"""A run's losses at equal phase of its schedule, and what the rules of a verdict ask of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lr_lightning.diagnosis.history import History, Point, low_ends

__all__ = [
    "AT_CHANCE",
    "HIGH",
    "RISE",
    "Curves",
    "Difference",
    "Rise",
    "Track",
    "finite",
    "hardly_moved",
    "jitter",
    "reached",
    "reference_loss",
    "unstable",
]

# --- How far two levels of a curve are apart, and how much of that is noise. Pure: the same input, the same output.

Floats = NDArray[np.float64]
_RESAMPLES = 400
_EXAMPLES, _WEIGHTS = 1.645, 2.326  # standard normal, one-sided 95 % and 99 %
_MAD = 1.4826  # from the median absolute deviation to a standard deviation


@dataclass(frozen=True)
class Difference:
    """A difference of two levels.

    Attributes:
        value: The first level minus the second.
        examples: Its standard error that comes from which examples the set happens to hold.
        weights: Its standard error that comes from the weights, which move to and fro between validations.
    """

    value: float
    examples: float
    weights: float

    @property
    def noise(self) -> float:
        """Its standard error."""
        return math.hypot(self.examples, self.weights)

    def above(self, least: float = 0.0, strictness: float = 1.0) -> bool:
        """Whether it is above ``least`` and beyond its noise.

        That is the one-sided 95 % bound for the examples. Of the weights' moves many are looked at before the largest
        is taken for a rise, so their bound is 99 %.
        """
        return self.value > max(strictness * math.hypot(_EXAMPLES * self.examples, _WEIGHTS * self.weights), least)


def jitter(values: Sequence[float] | Floats) -> float:
    """The standard deviation of a curve around its own course, from one value to the next.

    From the distance of each value to the mean of its neighbours, which is blind to a slope; by the median, so that
    one spike does not count.

    Args:
        values: The curve; fewer than four values have none.
    """
    curve = np.asarray(values, np.float64)
    if len(curve) < 4:
        return 0.0
    residuals = curve[1:-1] - (curve[:-2] + curve[2:]) / 2
    return float(_MAD * np.median(np.abs(residuals)) / math.sqrt(1.5))


@dataclass(frozen=True)
class Track:
    """One loss over the validations that are compared: of the validation set, or of the probe.

    Attributes:
        values: Mean losses, shape [T].
        rows: Losses of single examples at each, shape [T, K]; None where they are not known.
        size: Examples in the set.
        width: Validations that are averaged for a level.
    """

    values: Floats
    rows: NDArray[np.float32] | None
    size: int
    width: int
    _levels: list[Floats] = field(default_factory=list, repr=False, compare=False)

    @staticmethod
    def of(points: Sequence[Point], which: Literal["val", "probe"]) -> "Track":
        """The track of a history's points."""
        values = np.array([getattr(p, f"{which}_loss") for p in points], np.float64)
        rows = [getattr(p, f"{which}_losses") for p in points]
        sizes = [getattr(p, f"{which}_size") or 0 for p in points]
        alike = all(row is not None and len(row) == len(rows[0]) > 1 for row in rows)
        width = 1 if len(points) < 8 else 3 if len(points) < 30 else 5
        matrix = np.stack(rows) if alike else None
        return Track(values, matrix, max(sizes[-1], 0 if matrix is None else matrix.shape[1]), width)

    @property
    def smooth(self) -> Floats:
        """Centred means over ``width`` values, fewer at the two ends; shape [T]."""
        if not self._levels:
            self._levels.append(np.array([self.values[self.window(i)].mean() for i in range(len(self.values))]))
        return self._levels[0]

    def window(self, index: int) -> slice:
        """The validations whose mean is the level at one of them."""
        half = min(self.width // 2, index, len(self.values) - 1 - index)
        if index == len(self.values) - 1:  # the last level is of the last values: nothing comes after them
            return slice(max(0, index + 1 - self.width), index + 1)
        return slice(index - half, index + half + 1)

    def difference(self, first: int, second: int) -> Difference:
        """The level at one validation minus that at another, with the noise of both.

        The noise has two parts: that of the examples, from a bootstrap over the differences of single examples, which
        are known to be the same examples; and that of the weights, which move from one validation to the next.
        """
        value = float(self.smooth[first] - self.smooth[second])
        examples = math.sqrt(self._examples(self.window(first), self.window(second)))
        return Difference(value, examples, math.hypot(self.level_noise(first), self.level_noise(second)))

    def level_noise(self, index: int) -> float:
        """The standard error of a level that comes from the weights moving to and fro, as they do around it."""
        window = self.window(index)
        reach = max(5, self.width)
        low = max(0, min(index - reach, len(self.values) - 2 * reach - 1))
        return jitter(self.values[low : max(index + reach, 2 * reach) + 1]) / math.sqrt(window.stop - window.start)

    def _examples(self, first: slice, second: slice) -> float:
        """The variance that comes from which examples the set happens to hold."""
        if self.rows is None:
            return 0.0
        change = self.rows[first].mean(axis=0, dtype=np.float64) - self.rows[second].mean(axis=0, dtype=np.float64)
        means = _resamples(len(change)) @ change
        return float(means.var() * len(change) / self.size)

    def search_bias(self, index: int) -> float:
        """How far the lowest of many levels lies below their course by luck alone."""
        return self.level_noise(index) * math.sqrt(2 * math.log(max(len(self.values) / self.width, 1.0)))


@lru_cache(maxsize=8)
def _resamples(count: int) -> Floats:
    """Weights of bootstrap resamples of ``count`` examples, the same each time; shape [resamples, count]."""
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(0)))
    weights: Floats = rng.multinomial(count, np.full(count, 1 / count), size=_RESAMPLES) / count
    return weights


RISE = 0.05
"""Of the best validation loss: a rise by less is no matter, however certain."""
HIGH = 0.15
"""Of chance: a probe loss above it is high."""
AT_CHANCE = 0.95
"""Of chance: a loss above it has not left chance."""


def finite(point: Point) -> bool:
    """Whether both losses are."""
    return math.isfinite(point.val_loss) and math.isfinite(point.probe_loss)


def reference_loss(history: History) -> float | None:
    """The loss of a model that has learnt nothing: chance, else the loss at the start."""
    for value in (history.chance, history.start):
        if value is not None and math.isfinite(value) and value > 0:
            return value
    return None


@dataclass(frozen=True)
class Rise:
    """A rise of the validation loss, its noise, since when, and whether it is beyond its noise."""

    value: float
    noise: float
    since: int
    risen: bool


@dataclass(frozen=True)
class Curves:
    """The points that are compared, and what several rules ask of them."""

    points: tuple[Point, ...]
    val: Track
    probe: Track
    best: int  # where the validation loss was lowest
    done: Floats  # the share of the learning that was done at each
    reference: float | None
    start: float | None

    @staticmethod
    def of(history: History) -> "Curves":
        """The curves of a history with finite losses at its end."""
        known = tuple(p for p in history.points if finite(p))
        compared = low_ends([p.lr for p in known])
        points = tuple(known[i] for i in compared)
        val, probe = Track.of(points, "val"), Track.of(points, "probe")
        best = int(np.argmin(val.smooth))
        return Curves(points, val, probe, best, _learning(known)[compared], reference_loss(history), history.start)

    @property
    def end(self) -> int:
        """Index of the last validation."""
        return len(self.points) - 1

    def at(self, share: float) -> int:
        """Where so much of the learning was done."""
        return min(int(np.searchsorted(self.done, share)), self.end - 1)

    @property
    def probe_end(self) -> float:
        """Level of the probe loss at the end."""
        return float(self.probe.smooth[-1])

    @property
    def val_end(self) -> float:
        """Level of the validation loss at the end."""
        return float(self.val.smooth[-1])

    @property
    def high(self) -> bool:
        """Whether the probe loss is high at the end, or nothing says what is high."""
        return self.reference is None or self.probe_end > HIGH * self.reference

    @property
    def rise(self) -> "Rise":
        """How far the validation loss is above its best.

        The noise of a difference grows with the distance: over a long rise the losses of single examples drift far
        apart. So the rise is looked for from the best on, and from some later levels, which are higher than the best.
        """
        best = float(self.val.smooth[self.best])
        least = RISE * abs(best)
        found = []
        for since in sorted({self.best + int((self.end - self.best) * part / 10) for part in range(8)} - {self.end}):
            one = self.val.difference(self.end, since)
            found.append((one.above(least + self.val.search_bias(since)), one, since))
        if not found:
            return Rise(0.0, 0.0, self.best, False)
        risen, one, since = max(found, key=lambda f: (f[0], f[1].value / max(f[1].noise, 1e-300) if f[0] else -f[2]))
        return Rise(one.value, one.noise, since, risen)

    def fall(self, index: int) -> "tuple[Difference, float, float]":
        """By how much the probe loss fell since ``index``; what share that is of all it fell; the share's noise.

        The share is that of a quarter of the learning, whatever the distance really was; its noise is one standard
        error.
        """
        found = self.probe.difference(index, self.end)
        before = max([v for v in (self.reference, self.start) if v is not None] or [float(self.probe.values[0])])
        if self.reference is not None:
            before = min(before, 2 * self.reference)
        learnt = before - self.probe_end
        distance = self.done[self.probe.window(self.end)].mean() - self.done[self.probe.window(index)].mean()
        scale = 0.25 / max(distance, 0.05)
        if learnt <= 0:
            return found, float(found.value > 0) * scale, 0.0
        return found, float(found.value / learnt * scale), float(found.noise / learnt * scale)


def _learning(points: tuple[Point, ...]) -> Floats:
    """The share of the learning that was done at each point: of the steps, each counted by its rate."""
    steps = np.array([p.step for p in points], np.float64)
    rates = [p.lr for p in points]
    known = all(rate is not None and math.isfinite(rate) for rate in rates) and any(rates)
    rate = np.array(rates if known else [1.0] * len(points), np.float64)
    made = np.diff(steps, prepend=0.0) * (rate + np.concatenate([rate[:1], rate[:-1]])) / 2
    done: Floats = np.cumsum(made) / max(float(made.sum()), 1e-300)
    return done


def reached(c: Curves) -> int:
    """The first validation at which the loss was at its best, but for the noise of both."""
    slack = RISE * float(c.val.smooth[c.best]) + 2 * math.sqrt(2) * c.val.level_noise(c.best)
    return int(np.flatnonzero(c.val.smooth <= c.val.smooth[c.best] + slack)[0])


def unstable(c: Curves) -> bool:
    """Whether the probe loss is above its own best by a fifth, and beyond its noise."""
    lowest = int(np.argmin(c.probe.smooth))
    return c.probe.difference(c.end, lowest).above(0.2 * c.probe_end + c.probe.search_bias(lowest))


def hardly_moved(c: Curves, since: int) -> bool:
    """Whether single examples keep the losses they had half the learning ago, and not all the same ones.

    A network that has collapsed gives all examples of a class the same loss; one that learns too slowly, each its own.
    """
    rows = c.probe.rows
    if rows is None:
        return False
    before, now = rows[since].astype(np.float64), rows[-1].astype(np.float64)
    different = len(np.unique(np.round(now / max(c.probe_end, 1e-300), 5)))
    if different < len(now) / 2 or before.std() == 0 or now.std() == 0:
        return False
    return float(np.corrcoef(before, now)[0, 1]) > 0.95
