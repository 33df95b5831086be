"""Read the curve of a learning-rate range test: a suggestion with its interval, or why there is none. Pure numpy.

The rule, in steps:

1. Cap the curve at start + (start - minimum), and set it to that cap from the first sustained rise on. Smooth it.
2. Find the edge: the last step before the loss has risen again from its minimum by a fifth of its fall. The loss at the
   edge is the result of the update before it, so ``max_lr`` is half the learning rate of that update.
3. Take half the learning rate in the middle of the fall as the lower limit. The suggestion lies two fifths of the way
   from ``max_lr`` down to it, on a logarithmic scale; if that limit is above ``max_lr``, it is ``max_lr``.

The constants were chosen on 39 small problems, by the regret against the best constant learning rate over 300 steps.
``docs/lr_finder.md`` tells how good the rule is on 13 others, and ``benchmarks/finder_regret.py`` measures it. The rule
says when it cannot tell, and neither a shift nor the sign of the loss nor an outlier changes its answer.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from lr_lightning.errors import ArgumentError

__all__ = [
    "RULES",
    "Abstention",
    "Cause",
    "DivergenceStop",
    "Reading",
    "fastai_minimum",
    "fastai_smoothed",
    "fastai_valley",
    "read_curve",
    "smith",
]

Floats = NDArray[np.float64]

RULES = ("steepest", "valley", "minimum/10", "smith")  # the other rules that a reading lists for comparison
_MIN_POINTS = 10
_MATRIX = 1000  # values up to which they are smoothed by a matrix
HEAD = 10  # values at the start, where the learning rate is still too small to matter: their median is the start level
_BACK = 0.2  # share of the fall by which the loss has risen again just after the edge
_SAFETY = 2.0  # learning rate at the edge / max_lr
_CAUTION = 0.4  # share of the way from max_lr down to half the lr in the middle of the fall, on a logarithmic scale
_MOST = 0.7  # share of the fall; before it is made, a rise is not counted as sustained
_SUSTAINED = 0.5  # share of the fall; a sustained rise is above the best so far by more than this ...
_NOISE = 4.0  # ... plus this many times the noise
_EVIDENCE = 3.5  # times log n; pure noise passes for a fall in about 1 of 30 curves, for any distribution
_LARGE_RISE = 40.0  # times the squared noise: a rise this large counts even if it lasts only a few steps
_RESAMPLES = 100
_TEST_SPREAD = 0.3  # of log(suggestion) from seed to seed; the interval then holds 91 % on the 39 problems tuned on
_Z90 = 1.645
_TOO_WIDE = 100.0  # upper / lower end of the 90 % interval of the resamples alone: above it there is no suggestion
_LAST = 10  # DivergenceStop takes the median of this many last values
_FAR = 20.0  # DivergenceStop: times the noise; a median less far above the start does not end the test
_LOWER, _RAISE, _REPEAT = "Lower min_lr.", "Raise max_lr.", "Give num_steps=300 or repeats=3."


class Cause(Enum):
    """A reason for no suggestion: the end of the range to move outwards, if that helps; what to try; and a clause."""

    TOO_FEW_POINTS = "min_lr", "Lower min_lr or give num_steps=100.", "too few points: {:.0f}, at least 10 are needed"
    NO_UPPER_EDGE = "max_lr", _RAISE, "no upper edge found in this range: the curve improves and does not turn"
    FLAT = "max_lr", "Raise max_lr, or give num_steps=300 or repeats=3.", "the curve is flat: nothing exceeds its noise"
    RISES_AT_ONCE = "min_lr", _LOWER, "the curve gets worse from the start of this range"
    WITHIN_NOISE = None, _REPEAT, "the curve does not improve by more than its noise before it gets worse"
    TOO_NOISY = None, _REPEAT, "too noisy: resampling the noise moves the answer by a factor of {:.0f}"
    ALL_DIVERGED = "min_lr", _LOWER, "every learning rate of the grid diverged"
    LOWEST_IS_BEST = "min_lr", _LOWER, "the lowest lr of the grid, {:g}, is the best: a lower one may be better"
    HIGHEST_IS_BEST = "max_lr", _RAISE, "the highest lr of the grid, {:g}, is the best: a higher one may be better"
    NO_PROGRESS = None, "Give more num_steps.", "no learning rate of the grid lowered the loss beyond its noise"

    def __init__(self, widen: Literal["min_lr", "max_lr"] | None, advice: str, template: str) -> None:
        self.widen, self.advice, self.template = widen, advice, template


@dataclass(frozen=True)
class Abstention:
    """Why there is no suggestion."""

    cause: Cause
    number: float = 0.0  # in the cause's sentence, if it has one: of points, a factor, or a learning rate

    @property
    def reason(self) -> str:
        """The reason as a clause, without a full stop."""
        return self.cause.template.format(self.number)

    @property
    def advice(self) -> str:
        """What to try, in one sentence."""
        return self.cause.advice

    def __str__(self) -> str:
        return f"{self.reason[0].upper()}{self.reason[1:]}. {self.advice}"


@dataclass(frozen=True)
class Reading:
    """What the curve of a range test says.

    Attributes:
        suggestion: A learning rate for a constant schedule, or the peak of another; None if the curve supports none.
        abstention: Why there is no suggestion; None if there is one.
        interval: Where a fresh range test (other weights, other batches) is expected to put its suggestion in nine of
            ten cases. It says nothing about how good the suggestion is.
        cycle_base_lr: Lower bound of a cyclical schedule: where the loss starts to fall, at most a third of the upper.
        cycle_max_lr: Upper bound of a cyclical schedule: half the learning rate at the edge.
        smoothed: The mean curve, capped and smoothed, in the units of the input, as long as the shortest of its curves.
        rules: What other rules say about the same test, or None: ``steepest`` (the steepest fall of ``smoothed`` on a
            logarithmic axis), ``valley`` and ``minimum/10`` (fastai's, for losses only) and ``smith`` (Smith's upper
            bound), these three of the first curve.
        capped: The mean curve before smoothing, in the units of the input: cut at a cap, and at the cap from the first
            lasting rise on. Empty if it was not read.
    """

    suggestion: float | None
    abstention: Abstention | None
    interval: tuple[float, float] | None
    cycle_base_lr: float | None
    cycle_max_lr: float | None
    smoothed: Floats
    rules: dict[str, float | None]
    capped: Floats = field(default_factory=lambda: np.empty(0))


def _falling(values: Iterable[float]) -> Floats:
    """Return the squared error of the best falling curve through the first k values, k = 0..n, shape [n + 1].

    Pool adjacent violators, and keep the error of every prefix. Source: Barlow et al., *Statistical Inference under
    Order Restrictions*, 1972, chapter 1; Stout, "Unimodal regression via prefix isotonic regression", 2008.
    """
    blocks: list[tuple[float, int, float]] = []  # mean, size, error
    total, prefixes = 0.0, [0.0]
    for value in values:
        mean, size, error = value, 1, 0.0
        while blocks and blocks[-1][0] <= mean:
            mean2, size2, error2 = blocks.pop()
            total -= error2
            error += error2 + size * size2 / (size + size2) * (mean - mean2) ** 2
            mean = (size * mean + size2 * mean2) / (size + size2)
            size += size2
        blocks.append((mean, size, error))
        total += error
        prefixes.append(max(total, 0.0))  # a difference of large sums may round below 0
    return np.asarray(prefixes)


def fit_errors(values: Floats) -> Floats:
    """Return the squared error of the best curve that falls over the first k values and rises over the rest, k = 0..n.

    Shape [n + 1]: the first error belongs to a curve that only rises, the last to one that only falls.
    """
    return _falling(values.tolist()) + _falling(values[::-1].tolist())[::-1]


def evidence(values: Floats) -> tuple[float, float]:
    """Measure how much better a curve that falls and rises explains the values than one that only rises or only falls.

    Return evidence for the fall (against a curve that only rises) and for the rise (against one that only falls), >= 0;
    both are 0 if all values are equal. Both are computed from ranks: the difference of the squared errors, divided by
    the variance. So outliers and the distribution of the noise do not matter.
    """
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts + 1) / 2)[inverse]  # ties share their mean rank
    variance = float(np.var(ranks)) if len(values) else 0.0
    if variance == 0.0:
        return 0.0, 0.0
    errors = fit_errors(ranks - ranks.mean()) / variance
    lowest = float(errors.min())
    return float(errors[0]) - lowest, float(errors[-1]) - lowest


def _noise(values: Floats) -> float:
    """Estimate the noise's standard deviation from the median step between neighbours; unbiased for normal noise."""
    return 1.0483 * float(np.median(np.abs(np.diff(values)))) if len(values) > 1 else 0.0


def _running_best(values: Floats) -> tuple[Floats, float]:
    """Return the lowest median of three so far, capped at the start level, shape [n]; and the start level."""
    start = float(np.median(values[:HEAD]))
    medians = np.median(sliding_window_view(values, 3), axis=1)
    best = np.minimum.accumulate(np.concatenate([[start, start], medians]))
    return np.minimum(best, start), start


@dataclass(frozen=True)
class _Shape:
    """A curve ready for smoothing: ``values`` are capped, and stay at the cap from ``rises_at`` on (n if none)."""

    values: Floats
    rises_at: int
    noise: float


def _shape(values: Floats) -> _Shape:
    """Find the first sustained rise; clip the curve at start + (start - minimum before it)."""
    n = len(values)
    best, start = _running_best(values)
    fall = start - best[-1]
    lowest = int(np.argmax(best == best[-1]))
    noise = _noise(values[: max(lowest, HEAD) + 1])
    before = np.concatenate([[math.inf], best[:-1]])
    limit = before + _SUSTAINED * fall + _NOISE * noise
    ahead = np.concatenate([values, [-math.inf, -math.inf]])
    over = sliding_window_view(ahead, 3) > limit[:, None]
    # A single outlier is no sustained rise: one of the next two values must be over the limit as well. No rise counts
    # before most of the fall.
    lasting = (before <= start - _MOST * fall) & over[:, 0] & (over.sum(1) >= 2)
    rises_at = int(np.argmax(lasting)) if fall > 0 and lasting.any() else n
    cap = start + (start - best[rises_at - 1])
    capped = np.minimum(values, cap)
    capped[rises_at:] = cap
    return _Shape(capped, rises_at, noise)


def _smooth(values: Floats) -> Floats:
    """Fit local straight lines along the last axis, with Gaussian weights of 3 steps or n / 50."""
    n = values.shape[-1]
    if n <= _MATRIX:
        return np.asarray(_smoother(n) @ values if values.ndim == 1 else values @ _smoother(n).T, np.float64)
    from scipy.signal import fftconvolve  # not above: short tests do without it

    offset = np.arange(n - 1.0, -n, -1)  # of the neighbours, in the order of a convolution
    weight = np.exp(-0.5 * (offset / (n / 50)) ** 2)
    s0, s1, s2 = (fftconvolve(weight * offset**k, np.ones(n), "valid") for k in range(3))
    rows = np.atleast_2d(values)
    sums, moments = (fftconvolve(w[None], rows, "valid", axes=1) for w in (weight, weight * offset))
    return np.asarray((s2 * sums - s1 * moments) / (s0 * s2 - s1**2), np.float64).reshape(values.shape)


@lru_cache(1)
def _smoother(n: int) -> Floats:
    """Return the matrix of :func:`_smooth`, shape [n, n]: exact, and too large for long tests."""
    offset = np.arange(n)[None, :] - np.arange(n)[:, None]
    weight = np.exp(-0.5 * (offset / max(3.0, n / 50)) ** 2)
    s0, s1, s2 = weight.sum(1), (weight * offset).sum(1), (weight * offset**2).sum(1)
    matrix: Floats = (s2[:, None] * weight - s1[:, None] * weight * offset) / (s0 * s2 - s1**2)[:, None]
    return matrix


def _edge(smoothed: Floats, rises_at: int) -> tuple[int, bool]:
    """Return the step before the loss first rises, after its minimum, by a fifth of its fall; and whether it ever does.

    If it never does, the step is the last one.
    """
    lowest = int(np.argmin(smoothed[:rises_at]))
    fall = float(np.median(smoothed[:HEAD])) - smoothed[lowest]
    over = np.flatnonzero(smoothed[lowest:] > smoothed[lowest] + _BACK * fall)
    return (max(lowest + int(over[0]) - 1, 0), True) if len(over) else (len(smoothed) - 1, False)


def _passed(smoothed: Floats, lowest: int, share: float) -> int:
    """Return the first step from which on the curve has made this share of its fall."""
    start = float(np.median(smoothed[:HEAD]))
    high = np.flatnonzero(smoothed[: lowest + 1] > start - share * (start - smoothed[lowest]))
    return min(int(high[-1]) + 1, lowest) if len(high) else 0


def _log_lrs(smoothed: Floats, rises_at: int, log_lrs: Floats) -> tuple[float, float]:
    """Return the logarithms of the suggestion and of ``max_lr``."""
    edge, _ = _edge(smoothed, rises_at)
    # The value at the edge was measured before the update with the learning rate of that step.
    top = float(log_lrs[max(edge - 1, 0)]) - math.log(_SAFETY)
    middle = float(log_lrs[_passed(smoothed, int(np.argmin(smoothed[:rises_at])), 0.5)]) - math.log(_SAFETY)
    return top + _CAUTION * min(middle - top, 0.0), top


def _resampled(shape: _Shape, smoothed: Floats, log_lrs: Floats, seed: int) -> Floats:
    """Return log suggestions of curves with random signs of the residuals, which keeps their size at each step."""
    residuals = shape.values - smoothed
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed)))
    signs = rng.choice([-1.0, 1.0], size=(_RESAMPLES, len(smoothed)))
    curves = _smooth(smoothed + residuals * signs)
    return np.asarray([_log_lrs(curve, shape.rises_at, log_lrs)[0] for curve in curves])


def _clean(lrs: Floats, curves: Sequence[Sequence[float]], sign: float) -> tuple[list[Floats], bool]:
    """Check the input; return each curve up to its first non-finite value, lower is better, and if any ended early."""
    if lrs.ndim != 1 or len(lrs) == 0 or not np.all(np.isfinite(lrs)) or lrs[0] <= 0 or np.any(np.diff(lrs) <= 0):
        raise ArgumentError(f"lrs must be finite, > 0 and strictly rising, got {lrs.tolist()}")
    if len(curves) == 0:
        raise ArgumentError("curves must hold at least one curve, got none")
    clean = []
    for index, curve in enumerate(curves):
        values = np.asarray(curve, dtype=np.float64)
        if values.ndim != 1 or len(values) > len(lrs):
            raise ArgumentError(f"curves[{index}] must have at most {len(lrs)} values, one per lr, got {values.shape}")
        bad = np.flatnonzero(~np.isfinite(values))
        clean.append(sign * values[: bad[0] if len(bad) else len(values)])
    return clean, any(len(values) < len(lrs) for values in clean)


def _why_none(shape: _Shape, crosses: bool, lowest: int, ended_early: bool) -> Cause | None:
    """Return why a curve that does not both improve and then turn has no suggestion; None for one that does."""
    n = len(shape.values)
    fall, _ = evidence(shape.values[: shape.rises_at])
    _, rise = evidence(shape.values)
    errors = fit_errors(shape.values)
    local = max(shape.noise, _noise(shape.values[max(lowest - 9, 0) : lowest + 5]))
    large = errors[-1] - errors.min() > _LARGE_RISE * local**2 > 0
    rises = shape.rises_at < n or ended_early or rise > _EVIDENCE * math.log(n) or large
    if fall > _EVIDENCE * math.log(max(shape.rises_at, 2)):
        return None if ended_early or (rises and crosses) else Cause.NO_UPPER_EDGE
    if not rises:
        return Cause.FLAT
    return Cause.RISES_AT_ONCE if lowest < n // 8 else Cause.WITHIN_NOISE


def _interval(log_lrs: Floats, samples: Floats, single: Sequence[Floats]) -> tuple[float, float]:
    """Return two 90 % half widths in log lr: of all noise, and of the resampling part."""
    spread, count = _TEST_SPREAD**2, len(single)
    if count >= 3:
        shapes = map(_shape, single)
        own = [_log_lrs(_smooth(each.values), each.rises_at, log_lrs)[0] for each in shapes]
        # A few tests say little about their own spread, so the usual spread counts as four more tests.
        spread = (4 * spread + (count - 1) * float(np.var(own, ddof=1))) / (4 + count - 1)
    # Some resamples may lose the fall and land anywhere, so take the spread from the middle half.
    low, high = np.quantile(samples, [0.25, 0.75])
    noise = float(high - low) / 1.349
    return _Z90 * math.hypot(noise, math.sqrt(spread)), _Z90 * noise


def read_curve(
    lrs: Sequence[float], curves: Sequence[Sequence[float]], *, higher_is_better: bool = False, seed: int = 0
) -> Reading:
    """Read a range test.

    The reading does not change if a constant is added to all values or if all are multiplied by a positive number.

    Args:
        lrs: The planned learning rates, strictly rising from above 0, on a geometric or linear grid, shape [N].
        curves: The values of one or more tests from the same start. Value k was measured *before* the update with
            ``lrs[k]``; at most N values. A curve ends at its first non-finite value, and one that is shorter than
            ``lrs`` counts as diverged there.
        higher_is_better: True for accuracies, say.
        seed: Seed of the resampling, >= 0; nothing else is random.
    """
    grid, sign = np.asarray(lrs, dtype=np.float64), -1.0 if higher_is_better else 1.0
    clean, ended_early = _clean(grid, curves, sign)
    n = min(map(len, clean))
    mean = np.sum([values[:n] / len(clean) for values in clean], axis=0)  # divided first, as large values may overflow
    silent = Reading(None, None, None, None, None, sign * mean, dict.fromkeys(RULES))
    if n < _MIN_POINTS:
        return replace(silent, abstention=Abstention(Cause.TOO_FEW_POINTS, n))
    shape, log_lrs = _shape(mean), np.log(grid)
    smoothed = _smooth(shape.values)
    lowest = int(np.argmin(smoothed[: shape.rises_at]))
    _, crosses = _edge(smoothed, shape.rises_at)
    rules = _other_rules(grid, clean[0], smoothed, lowest, loss=not higher_is_better)
    silent = replace(silent, smoothed=sign * smoothed, rules=rules, capped=sign * shape.values)
    if cause := _why_none(shape, crosses, lowest, ended_early):
        return replace(silent, abstention=Abstention(cause))
    half, noise = _interval(log_lrs, _resampled(shape, smoothed, log_lrs, seed), clean)
    if noise > math.log(_TOO_WIDE) / 2:
        return replace(silent, abstention=Abstention(Cause.TOO_NOISY, math.exp(2 * noise)))
    suggestion, max_lr = map(math.exp, _log_lrs(smoothed, shape.rises_at, log_lrs))
    return replace(
        silent,
        suggestion=suggestion,
        interval=(suggestion * math.exp(-half), suggestion * math.exp(half)),
        cycle_base_lr=min(float(grid[_passed(smoothed, lowest, 0.1)]), max_lr / 3),
        cycle_max_lr=max_lr,
    )


def _other_rules(grid: Floats, curve: Floats, smoothed: Floats, lowest: int, loss: bool) -> dict[str, float | None]:
    slope = np.gradient(smoothed, np.log(grid[: len(smoothed)]))
    lrs, values = grid.tolist(), curve.tolist()
    pair = smith(lrs, values)
    return {
        "steepest": float(grid[int(np.argmin(slope[: lowest + 1]))]),
        "valley": fastai_valley(lrs, values) if loss else None,
        "minimum/10": fastai_minimum(lrs, values) if loss else None,
        "smith": pair[1] if pair else None,
    }


class DivergenceStop:
    """Decides when a test in progress may end: when the median of its last ten values is far above the start.

    Far means twice as high above the start as the best so far is below it, and at least twenty times the noise. As
    noise may grow with the learning rate, it also means three times the noise of the last twenty values, and the rise
    must stand out by its length. Four outliers cannot move a median of ten. Adding a constant to the values, or
    multiplying them by a positive number, changes nothing.

    The rule is careful rather than cheap: a test that is cut before its edge misleads more than a long one costs.
    """

    def __init__(self, *, higher_is_better: bool = False) -> None:
        self._sign = -1.0 if higher_is_better else 1.0
        self._values: list[float] = []

    def __call__(self, value: float) -> bool:
        """Take the next value; return True if the test may end now. A non-finite value ends it."""
        if not math.isfinite(value):
            return True
        self._values.append(self._sign * value)
        if len(self._values) < HEAD + _LAST:
            return False
        values = np.asarray(self._values, dtype=np.float64)
        best, start = _running_best(values)
        above = float(np.median(values[-_LAST:])) - start
        recent = _noise(values[-2 * _LAST :])
        if above <= max(2 * (start - float(best[-1])), _FAR * _noise(values), 3 * recent):
            return False
        return evidence(values)[1] > _EVIDENCE * math.log(len(values))


# -- other rules, for comparison: fastai's two and Smith's -----------------------------------------------------------
#
# Each takes the learning rates of the whole planned test, shape [N], and the raw losses, shape [n], n <= N; loss k was
# measured before the update with learning rate k. fastai's rules repeat what fastai does: its smoothing, its early
# stop, its margins at both ends (the first tenth of the learning rates is left out). They are None if no point is left.


def fastai_smoothed(lrs: Sequence[float], losses: Sequence[float]) -> tuple[Floats, Floats]:
    """Return the lrs and averaged losses (0.98, bias-corrected) until four times the best, without both margins."""
    average, best = 0.0, np.inf
    smoothed: list[float] = []
    for count, loss in enumerate(losses, start=1):
        average = 0.98 * average + 0.02 * loss
        value = average / (1 - 0.98**count)
        smoothed.append(value)
        best = value if value < best else best
        if value > 4 * best:
            break
    first = len(lrs) // 10
    y = np.asarray(smoothed[first:-5], dtype=np.float64)
    x = np.asarray(lrs[: len(smoothed)][first:-5], dtype=np.float64)
    nans = np.flatnonzero(np.isnan(y))
    end = int(nans[0]) if len(nans) else len(y)
    return x[:end], y[:end]


def fastai_minimum(lrs: Sequence[float], losses: Sequence[float]) -> float | None:
    """Return fastai's ``minimum``: a tenth of the learning rate at which the averaged loss is lowest.

    Source: fastai 2.8.12, ``fastai/callback/schedule.py``, ``LRFinder``, ``lr_find`` and ``minimum``; the average is
    ``fastai/learner.py``, ``AvgSmoothLoss``.
    """
    x, y = fastai_smoothed(lrs, losses)
    return float(x[np.argmin(y)]) / 10 if len(y) else None


def fastai_valley(lrs: Sequence[float], losses: Sequence[float]) -> float | None:
    """Return fastai's default ``valley``: about halfway down the longest decreasing subsequence of the averaged loss.

    Source: fastai 2.8.12, ``fastai/callback/schedule.py``, ``valley``.
    """
    x, y = fastai_smoothed(lrs, losses)
    if not len(y):
        return None
    length = np.ones(len(y), dtype=np.int64)  # of the longest decreasing subsequence that ends at each point
    for i in range(1, len(y)):
        length[i] = 1 + np.max(length[:i], where=y[:i] > y[i], initial=0)
    end = int(np.argmax(length))
    start = end - int(length[end]) if length[end] > 1 else 0
    third = (end - start) / 3
    return float(x[start + int(third) + int(third / 2)])


def smith(lrs: Sequence[float], losses: Sequence[float]) -> tuple[float, float] | None:
    """Return Smith's two bounds of a cyclical schedule, read by arithmetic instead of by eye.

    Smith takes the lower learning rate where the accuracy starts to rise, and the upper one where it slows, turns
    ragged or falls. Here the loss is averaged over five steps. The lower learning rate is where the loss has made a
    tenth of its fall from the start (the median of ten values), and the upper one is where the loss is lowest. It is
    None if the loss does not fall or is lowest at the last one; losses from the first that is not finite do not count.

    Source: Smith, "Cyclical learning rates for training neural networks", 2017, section 3.3, which gives no code.
    """
    values = np.asarray(losses, dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(values))
    values = values[: bad[0]] if len(bad) else values
    if len(values) < 10:
        return None
    start = float(np.median(values[:10]))
    smoothed = np.convolve(values, np.full(5, 0.2), mode="valid")  # entry k is about step k + 2
    lowest = int(np.argmin(smoothed))
    fall = start - float(smoothed[lowest])
    if fall <= 0 or lowest == 0 or lowest + 5 == len(lrs):
        return None
    first = int(np.flatnonzero(smoothed <= start - 0.1 * fall)[0])
    return float(lrs[first + 2]), float(lrs[lowest + 2])
