"""The two losses of a run at equal phases of its schedule, their differences, and the noise of these."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lr_lightning.diagnosis.history import History, Point
from lr_lightning.diagnosis.verdict import Reference

Floats = NDArray[np.float64]

RISE = 0.05  # share of the best validation loss: a smaller rise does not matter, however certain it is
AT_CHANCE = 0.95  # share of chance: a loss above it has not left chance
_ABOVE = 1.15  # times chance or start, the larger: a loss above it is well above chance
_HIGH = 0.15  # share of chance: a probe loss above it is high
_RESAMPLES = 400
_EXAMPLES, _WEIGHTS = 1.645, 2.326  # quantiles of the standard normal: one-sided 95 % and 99 %
_MAD = 1.4826  # from the median absolute deviation to a standard deviation
_NEXT_CYCLE = 1.1  # a learning rate that grows by a smaller factor does not start a cycle
_CYCLE_PEAK = 1 / 3  # of the first peak: a learning rate whose later peaks stay below it has no cycles


@dataclass(frozen=True)
class Difference:
    """The first of two levels minus the second, with the two parts of its standard error."""

    value: float
    examples: float  # the noise that comes from the choice of the examples
    weights: float  # the noise that comes from the weights, which move to and fro between validations

    @property
    def noise(self) -> float:
        """The standard error."""
        return math.hypot(self.examples, self.weights)

    def above(self, least: float = 0.0, strictness: float = 1.0) -> bool:
        """Return whether the difference is above ``least`` and beyond its noise.

        The bound is one-sided, 95 % for the examples. For the weights it is 99 %, because the largest of many moves is
        the one that looks like a rise.
        """
        return self.value > max(strictness * math.hypot(_EXAMPLES * self.examples, _WEIGHTS * self.weights), least)


def jitter(values: Sequence[float] | Floats) -> float:
    """Estimate the standard deviation of a curve around its own course; 0 for fewer than four values.

    Each value is compared with the mean of its two neighbours, so a slope does not count. Nor does a steady curvature,
    which moves all values to the same side: distances are measured from their median. The median of the distances is
    taken, so one spike does not count either.
    """
    curve = np.asarray(values, np.float64)
    if len(curve) < 4:
        return 0.0
    residuals = curve[1:-1] - (curve[:-2] + curve[2:]) / 2
    return float(_MAD * np.median(np.abs(residuals - np.median(residuals))) / math.sqrt(1.5))


@dataclass(frozen=True)
class Track:
    """One loss, of the validation set or of the probe, over the T validations that are compared."""

    values: Floats  # mean losses, shape [T]
    rows: NDArray[np.float32] | None  # losses of single examples, shape [T, K]
    size: int  # number of examples in the whole set
    width: int  # number of validations that are averaged to a level

    @staticmethod
    def of(points: Sequence[Point], which: Literal["val", "probe"]) -> "Track":
        """Take one loss from the points of a history."""
        values = np.array([getattr(p, f"{which}_loss") for p in points], np.float64)
        rows = [getattr(p, f"{which}_losses") for p in points]
        sizes = [getattr(p, f"{which}_size") or 0 for p in points]
        alike = all(row is not None and len(row) == len(rows[0]) > 1 for row in rows)
        width = 1 if len(points) < 8 else 3 if len(points) < 30 else 5
        matrix = np.stack(rows) if alike else None
        return Track(values, matrix, max(sizes[-1], 0 if matrix is None else matrix.shape[1]), width)

    @cached_property
    def smooth(self) -> Floats:
        """Return the level at each validation: a centred mean over ``width`` values, fewer at the ends; shape [T]."""
        return np.array([self.values[self.window(i)].mean() for i in range(len(self.values))])

    def window(self, index: int) -> slice:
        """Return the validations whose mean is the level at ``index``."""
        half = min(self.width // 2, index, len(self.values) - 1 - index)
        if index == len(self.values) - 1:  # nothing comes after the last level, so it is the mean of the last values
            return slice(max(0, index + 1 - self.width), index + 1)
        return slice(index - half, index + half + 1)

    def difference(self, first: int, second: int) -> Difference:
        """Return the level at one validation minus the level at another.

        The noise of the difference has two parts. The noise of the examples, which are the same at both validations,
        comes from a bootstrap over the differences of their losses; the noise of the weights comes from :func:`jitter`.
        """
        value, variance = float(self.smooth[first] - self.smooth[second]), 0.0
        if self.rows is not None:
            now, then = (self.rows[self.window(i)].mean(axis=0, dtype=np.float64) for i in (first, second))
            variance = float((_resamples(len(now)) @ (now - then)).var() * len(now) / self.size)
        return Difference(value, math.sqrt(variance), math.hypot(self.level_noise(first), self.level_noise(second)))

    def level_noise(self, index: int) -> float:
        """Return the part of a level's standard error that comes from the weights, estimated around ``index``."""
        window = self.window(index)
        reach = max(5, self.width)
        low = max(0, min(index - reach, len(self.values) - 2 * reach - 1))
        return jitter(self.values[low : max(index + reach, 2 * reach) + 1]) / math.sqrt(window.stop - window.start)

    def search_bias(self, index: int) -> float:
        """Return how far the lowest of many levels lies below their course by luck alone."""
        return self.level_noise(index) * math.sqrt(2 * math.log(max(len(self.values) / self.width, 1.0)))


@lru_cache(maxsize=8)
def _resamples(count: int) -> Floats:
    """Return the weights of bootstrap resamples of ``count`` examples, always the same; shape [resamples, count]."""
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(0)))
    weights: Floats = rng.multinomial(count, np.full(count, 1 / count), size=_RESAMPLES) / count
    return weights


# -- both losses -----------------------------------------------------------------------------------------------------


class Rise(NamedTuple):
    """The rise of the validation loss above its best."""

    size: Difference
    since: int  # the validation from which it is measured
    risen: bool  # whether it is beyond its noise, and large enough to matter

    @property
    def clarity(self) -> float:
        """The height in units of its noise."""
        return self.size.value / max(self.size.noise, 1e-300)


class Fall(NamedTuple):
    """A fall of the probe loss up to the end of the run."""

    size: Difference
    share: float  # the fall in a quarter of the learning, as a share of the whole fall of the run


@dataclass(frozen=True)
class Curves:
    """The validations of a run that are compared, and the questions that several rules ask about them."""

    every: tuple[Point, ...]  # all validations with finite losses
    points: tuple[Point, ...]  # the validations at equal phases of the schedule (see same_phase)
    val: Track
    probe: Track
    best: int  # index of the lowest level of the validation loss
    learning: Floats  # share of the run's learning that was done at each validation, shape [T]
    reference: float | None  # loss of a model that has learned nothing
    start: float | None  # training loss of the initial weights

    @staticmethod
    def of(history: History) -> "Curves":
        """Take the curves from a history whose last losses are finite."""
        known = tuple(p for p in history.points if finite(p))
        compared = same_phase([p.lr for p in known])
        points, learning = tuple(known[i] for i in compared), _learning(known)[compared]
        val, probe = Track.of(points, "val"), Track.of(points, "probe")
        best = int(np.argmin(val.smooth))
        _, reference = reference_of(history) or (None, None)
        return Curves(known, points, val, probe, best, learning, reference, history.start)

    @property
    def end(self) -> int:
        """The index of the last validation."""
        return len(self.points) - 1

    @property
    def probe_end(self) -> float:
        """The level of the probe loss at the end."""
        return float(self.probe.smooth[-1])

    @property
    def val_end(self) -> float:
        """The level of the validation loss at the end."""
        return float(self.val.smooth[-1])

    def at(self, share: float) -> int:
        """Return the index of the validation at which this share of the learning was done."""
        return min(int(np.searchsorted(self.learning, share)), self.end - 1)

    @property
    def high(self) -> bool:
        """Whether the probe loss is high at the end; True if no reference says what is high."""
        return self.reference is None or self.probe_end > _HIGH * self.reference

    @property
    def rise(self) -> Rise:
        """The rise of the validation loss above its best.

        The noise of a difference grows with the distance, because the losses of single examples drift apart. So the
        rise is measured from the best level and from several later ones, which are higher, and the clearest is taken.
        """
        least = RISE * abs(float(self.val.smooth[self.best]))
        found = []
        for since in sorted({self.best + int((self.end - self.best) * part / 10) for part in range(8)} - {self.end}):
            one = self.val.difference(self.end, since)
            found.append(Rise(one, since, one.above(least + self.val.search_bias(since))))
        nothing = Rise(Difference(0.0, 0.0, 0.0), self.best, False)
        return max(found, key=lambda r: (r.risen, r.clarity if r.risen else -r.since), default=nothing)

    def fall(self, since: int) -> Fall:
        """Return the fall of the probe loss since a validation."""
        size = self.probe.difference(since, self.end)
        before = max([v for v in (self.reference, self.start) if v is not None] or [float(self.probe.values[0])])
        if self.reference is not None:
            before = min(before, 2 * self.reference)
        learned = before - self.probe_end
        distance = self.learning[self.probe.window(self.end)].mean() - self.learning[self.probe.window(since)].mean()
        scale = 0.25 / max(distance, 0.05)
        if learned <= 0:
            return Fall(size, float(size.value > 0) * scale)
        return Fall(size, float(size.value / learned * scale))

    @property
    def first_at_best(self) -> int:
        """The first validation whose loss equals the best one, within the noise of both."""
        slack = RISE * float(self.val.smooth[self.best]) + 2 * math.sqrt(2) * self.val.level_noise(self.best)
        return int(np.flatnonzero(self.val.smooth <= self.val.smooth[self.best] + slack)[0])

    @property
    def hidden_minimum(self) -> int | None:
        """The validation of the lowest loss, if the run has overfitted since, though the levels do not show it.

        A high learning rate raises the validation loss for a while, and so may hide that the loss had been lower. The
        medians of three validations must say three things: the validation loss ended 5 % above its minimum, the probe
        loss ended below 0.8 of its value there, and the accuracy ended below its best, beyond its error.
        """
        if self.end < 3 or self.accuracy_lost <= 0:
            return None
        val, probe = _medians(self.val.values), _medians(self.probe.values)
        lowest = int(np.argmin(val))
        overfitted = val[-1] > (1 + RISE) * val[lowest] and probe[-1] < 0.8 * probe[lowest]
        return lowest if overfitted else None

    @property
    def accuracy_lost(self) -> float:
        """How far the last validation accuracy lies below the best one; 0 if the error of both explains it.

        The error is that of shares of as many examples; if their number is unknown, the jitter of the curve.
        """
        known, size = [p.val_acc for p in self.every if p.val_acc is not None], self.every[-1].val_size
        if not known or (size is None and len(known) < 4):
            return 0.0
        best, last = max(known), known[-1]
        variance = 2 * jitter(known) ** 2 if size is None else (best * (1 - best) + last * (1 - last)) / size
        return best - last if best - last > _EXAMPLES * math.sqrt(variance) else 0.0

    @property
    def _well_above_chance(self) -> float:
        """The loss above which a run is well above chance and its start; inf if chance is unknown."""
        return math.inf if self.reference is None else _ABOVE * max(self.reference, self.start or 0.0)

    @property
    def above_chance(self) -> bool:
        """Whether any validation was well above chance: the learning rate is not too low then."""
        return any(max(p.val_loss, p.probe_loss) > self._well_above_chance for p in self.every)

    @property
    def roughness(self) -> float:
        """The largest rise from one validation to the next, of either loss, as a share of its whole fall; inf if none.

        A learning rate that is too low gives losses that fall at every single validation. A first validation well above
        chance is a rise, and coming down from there is no fall.
        """
        largest = 0.0
        for values in (np.array([p.val_loss for p in self.every]), np.array([p.probe_loss for p in self.every])):
            before = min(values[0], self._well_above_chance)
            fall = float(before - values.min())
            if fall <= 0:
                return math.inf
            largest = max(largest, float(np.diff(values, prepend=before).max()) / fall)
        return largest

    @property
    def guesses(self) -> bool:
        """Whether the last validation is no better than chance: by its loss, and by its accuracy if that is known."""
        if self.reference is None or self.val_end <= AT_CHANCE * self.reference:
            return False
        accuracy = self.every[-1].val_acc
        by_chance = math.exp(-self.reference)  # of equally frequent classes
        return accuracy is None or accuracy < by_chance + 0.2 * (1 - by_chance)

    @property
    def standstill(self) -> bool:
        """Whether the probe loss had stopped while the learning rate was still high.

        A loss that stops as the learning rate goes to 0 tells nothing. So the last validation above half the peak is
        compared with the one a quarter of the epochs before it: the loss fell by less than 2 %, and its noise allows
        no more. Nor did what a cooldown would reach fall by more, if that is known: at a high learning rate the loss
        itself may hide it.
        """
        lrs = [p.lr for p in self.points]
        known = [lr for lr in lrs if lr is not None]
        high = self.end
        if len(known) == len(lrs):
            high = max(i for i, lr in enumerate(known) if lr >= max(known) / 2)
        before = self.points[high].epoch - self.points[-1].epoch / 4
        since = max((i for i, p in enumerate(self.points) if p.epoch <= before), default=None)
        if since is None:
            return False
        fall, (before_it, now) = self.probe.difference(since, high), (self.points[i].cooled_loss for i in (since, high))
        cooled_fell = before_it is not None and now is not None and now < 0.98 * before_it
        return not cooled_fell and fall.value + fall.noise < 0.02 * float(self.probe.smooth[since])

    @property
    def unstable(self) -> bool:
        """Whether the probe loss ended above its own best by a fifth, and beyond its noise."""
        lowest = int(np.argmin(self.probe.smooth))
        least = 0.2 * self.probe_end + self.probe.search_bias(lowest)
        return self.probe.difference(self.end, lowest).above(least)

    def hardly_moved(self, since: int) -> bool:
        """Return whether single examples kept the losses that they had at ``since``, and these losses differ.

        A collapsed network gives all examples of a class the same loss; one that learns too slowly gives each its own.
        """
        rows = self.probe.rows
        if rows is None:
            return False
        before, now = rows[since].astype(np.float64), rows[-1].astype(np.float64)
        different = len(np.unique(np.round(now / max(self.probe_end, 1e-300), 5)))
        if different < len(now) / 2 or before.std() == 0 or now.std() == 0:
            return False
        return float(np.corrcoef(before, now)[0, 1]) > 0.95


def _medians(values: Floats) -> Floats:
    """Return the median of each value and its two neighbours; at an end, of the first or last three values."""
    middle = np.clip(np.arange(len(values)), 1, len(values) - 2)
    medians: Floats = np.median([values[middle - 1], values[middle], values[middle + 1]], axis=0)
    return medians


def finite(point: Point) -> bool:
    """Return whether both losses of a point are finite."""
    return math.isfinite(point.val_loss) and math.isfinite(point.probe_loss)


def reference_of(history: History) -> tuple[Reference, float] | None:
    """Return the model that has learned nothing and its loss: chance, else the start; None if both are unknown."""
    chance = Reference.CONSTANT if history.regression else Reference.CHANCE
    losses = ((chance, history.chance), (Reference.START, history.start))
    return next(((kind, v) for kind, v in losses if v is not None and math.isfinite(v) and v > 0), None)


def _learning(points: tuple[Point, ...]) -> Floats:
    """Return the share of the learning done at each point: the steps so far, each weighted by its learning rate."""
    steps = np.array([p.step for p in points], np.float64)
    lrs = [p.lr for p in points]
    known = all(lr is not None and math.isfinite(lr) for lr in lrs) and any(lrs)
    lr = np.array(lrs if known else [1.0] * len(points), np.float64)
    made = np.diff(steps, prepend=0.0) * (lr + np.concatenate([lr[:1], lr[:-1]])) / 2
    done: Floats = np.cumsum(made) / max(float(made.sum()), 1e-300)
    return done


def same_phase(lrs: Sequence[float | None]) -> list[int]:
    """Choose the validations that lie at the same phase of a schedule, so that their losses can be compared.

    A loss rises and falls with the learning rate. If the learning rate falls and rises again, only the low end of each
    cycle is compared: the validations after which it rises by a tenth or more, and the last one if it is back down
    there. If it never rises again after a fall, all are compared; a warmup makes no difference. So are they if it rises
    again to less than a third of its peak: that is a run which was lengthened after its schedule had ended.

    Returns:
        Indices of ``lrs``; all of them if a learning rate is unknown or fewer than two low ends are left.

    Example:
        >>> same_phase([1.0, 0.1, 1.0, 0.1, 0.5, 1.0, 0.1])
        [1, 3, 6]
        >>> same_phase([0.1, 1.0, 0.5, 0.0])
        [0, 1, 2, 3]
        >>> same_phase([1.0, 0.5, 0.0, 0.1, 0.0])
        [0, 1, 2, 3, 4]
    """
    every = list(range(len(lrs)))
    known = [lr for lr in lrs if lr is not None and math.isfinite(lr)]
    if len(known) < len(lrs) or not known:
        return every
    ends: list[int] = []
    fallen, lowest, peak = False, 0, known[0]
    for i, lr in enumerate(known):
        if fallen and lr > _NEXT_CYCLE * known[lowest] and lr > known[lowest] + 0.02 * peak:
            ends.append(lowest)
            fallen, lowest = False, i
        elif lr < known[lowest] or (fallen and lr <= known[lowest]):
            fallen, lowest = True, i
        elif not fallen:
            lowest = i
        peak = max(peak, lr)
    if ends and fallen and known[lowest] <= _NEXT_CYCLE * max(known[i] for i in ends) and lowest == len(known) - 1:
        ends.append(lowest)
    if len(ends) < 2 or max(known[ends[0] :]) < _CYCLE_PEAK * max(known[: ends[0] + 1]):
        return every
    return ends
