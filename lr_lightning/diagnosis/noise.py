"""How far two levels of a curve are apart, and how much of that is noise. Pure: the same input, the same output."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lr_lightning.diagnosis.history import Point

__all__ = ["Difference", "Track", "jitter"]

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
