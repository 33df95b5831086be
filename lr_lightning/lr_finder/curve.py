"""What a learning-rate range test says: a suggestion with its interval, or why there is none. Pure numpy.

The rule, in words. The curve is capped as far above its start as it falls below it, held at the cap from the first
lasting relapse on, and smoothed. Its edge is the last step, after the lowest, at which the loss has not come back up by
a fifth of its fall; the value there shows the update before it. Half the rate there is the most that is suggested, and
the further below it the middle of the fall lies, the less: two fifths of the way, on the logarithm of the rate.

How it was chosen: by the regret against the best constant rate over 300 steps, on small problems
(``benchmarks/finder_regret.py``). A first rule, tuned on 13 of them, did not hold on 13 others. A second, a third of
the rate at the edge, chosen on those 26, lost to fastai's minimum/10 on 13 fresh ones, read once: 0.057 against 0.042,
on the sweeps that it answered. Today's was chosen on all 39: 0.041 (minimum/10: 0.062). On 13 more, written before any
of them was run and read once, after it was fixed, it has 0.018 on the sweeps that it answers (minimum/10: 0.033, a
difference that only just stands out from chance; valley 0.083; ignite, torch-lr-finder and Lightning 0.18 to 0.54). But
it leaves 29 % of those sweeps unanswered. Where 1e-3 is used for them, it is worse than two peers: 0.152 on all sweeps
against 0.085 of minimum/10 and 0.074 of valley. With its advice taken once, which costs more sweeps, it is 0.067.

What it adds is that it says when it cannot tell, and that neither a shift, nor the sign of the loss, nor an outlier
matters.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from lr_lightning.lr_finder import rules as peers

__all__ = ["EVIDENCE", "HEAD", "DivergenceStop", "Reading", "noise_of", "read_curve", "running_best"]

# --- Least squares with a curve that falls and then rises: is there a fall, is there a rise? Pure numpy.

Curve = NDArray[np.float64]


def _falling(values: Iterable[float]) -> Curve:
    """Squared error of the best falling curve through the first k values, k = 0..n, shape [n + 1].

    Pools adjacent violators, and keeps the error of every prefix.

    Source: Barlow et al., *Statistical Inference under Order Restrictions*, 1972, chapter 1; Stout, "Unimodal
    regression via prefix isotonic regression", 2008, for the prefixes.
    """
    means: list[float] = []
    sizes: list[int] = []
    errors: list[float] = []
    total, prefixes = 0.0, [0.0]
    for value in values:
        mean, size, error = value, 1, 0.0
        while means and means[-1] <= mean:
            mean2, size2, error2 = means.pop(), sizes.pop(), errors.pop()
            total -= error2
            error += error2 + size * size2 / (size + size2) * (mean - mean2) ** 2
            mean = (size * mean + size2 * mean2) / (size + size2)
            size += size2
        means.append(mean)
        sizes.append(size)
        errors.append(error)
        total += error
        prefixes.append(max(total, 0.0))  # a difference of large sums may round below 0
    return np.asarray(prefixes)


def profile(values: Curve) -> Curve:
    """Squared error of the best curve that falls over the first k values and rises over the others, k = 0..n.

    Args:
        values: The curve, shape [n].

    Returns:
        Errors, shape [n + 1]: the first is that of a curve that only rises, the last of one that only falls.
    """
    return _falling(values.tolist()) + _falling(values[::-1].tolist())[::-1]


def evidence(values: Curve) -> tuple[float, float]:
    """How much better a curve that falls and rises explains the ranks of the values than one that only does one.

    Both are differences of squared errors over the variance. They use ranks, so they do not depend on how the noise is
    distributed or on a few wild values.

    Args:
        values: The curve, shape [n].

    Returns:
        Evidence for the fall (against a curve that only rises) and for the rise (against one that only falls), >= 0;
        0 where all values are equal.
    """
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts + 1) / 2)[inverse]  # ties share their mean rank
    variance = float(np.var(ranks)) if len(values) else 0.0
    if variance == 0.0:
        return 0.0, 0.0
    errors = profile(ranks - ranks.mean()) / variance
    lowest = float(errors.min())
    return float(errors[0]) - lowest, float(errors[-1]) - lowest


MIN_POINTS = 10
RULES = ("steepest", "valley", "minimum/10", "smith")
HEAD = 10  # values at the start, where the rate is still too small to matter: their median is the start level
_BACK = 0.2  # the edge: where the loss has come back up by a fifth of its fall
_SAFETY = 2.0  # the edge over the largest rate to train with
_CAUTION = 0.4  # share of the way from there down to the middle of the fall, on the logarithm
_MOST, _RELAPSE, _NOISE = 0.7, 0.5, 4.0  # after most of the fall, a relapse takes back half of it plus 4 x the noise
EVIDENCE = 3.5  # times log n; pure noise passes for a fall in about 1 of 30 curves, whatever its distribution
_LARGE_RISE = 40.0  # squared noise: so large a rise counts even if it lasts a few steps only
_RESAMPLES = 100
_SWEEP_SPREAD = 0.3  # of a suggestion's logarithm from seed to seed; so the interval holds 91 % on the 39 tuned on
_Z90 = 1.645
_TOO_WIDE = 100.0  # upper over lower rate


@dataclass(frozen=True)
class Reading:
    """What a curve says.

    Attributes:
        suggestion: A rate for a constant schedule, or the peak of another; ``None`` if the curve supports none.
        reason: Why there is no suggestion, one sentence; ``None`` if there is one.
        advice: What to try then, one sentence.
        interval: Where a fresh range test (other weights, other batches) is expected to put its suggestion in nine of
            ten cases. It says nothing about how good the suggestion is.
        base_lr: Lower rate for a cyclical schedule: where the loss starts to fall, at most a third of ``max_lr``.
        max_lr: Upper rate for a cyclical schedule: half the rate at the edge.
        smoothed: The mean curve, capped and smoothed, in the units of the input, shape [n]; n is that of the shortest
            run.
        rules: What other rules say of the same sweep, for comparison: ``steepest`` (the largest fall of ``smoothed``
            against the logarithm of the rate), ``valley`` and ``minimum/10`` (fastai's, of the first run; for losses
            only) and ``smith`` (his upper rate, of the first run). ``None`` where a rule says nothing.
    """

    suggestion: float | None
    reason: str | None
    advice: str | None
    interval: tuple[float, float] | None
    base_lr: float | None
    max_lr: float | None
    smoothed: NDArray[np.float64]
    rules: dict[str, float | None]


def noise_of(values: Curve) -> float:
    """Standard deviation of the noise, from the median step between neighbours; exact for normal noise."""
    return 1.0483 * float(np.median(np.abs(np.diff(values)))) if len(values) > 1 else 0.0


def running_best(values: Curve) -> tuple[Curve, float]:
    """The lowest median of three so far, at most the start level, shape [n]; and the start level."""
    start = float(np.median(values[:HEAD]))
    medians = np.median(sliding_window_view(values, 3), axis=1)
    best = np.minimum.accumulate(np.concatenate([[start, start], medians]))
    return np.minimum(best, start), start


@dataclass(frozen=True)
class _Shape:
    """A curve made fit for smoothing: ``values`` is capped, and at the cap from ``relapse`` on (n if none)."""

    values: Curve
    relapse: int
    noise: float


def _shape(values: Curve) -> _Shape:
    """Find the first lasting relapse and cap the curve as far above its start as it fell below."""
    n = len(values)
    best, start = running_best(values)
    fall = start - best[-1]
    lowest = int(np.argmax(best == best[-1]))
    noise = noise_of(values[: max(lowest, HEAD) + 1])
    before = np.concatenate([[math.inf], best[:-1]])
    limit = before + _RELAPSE * fall + _NOISE * noise
    ahead = np.concatenate([values, [-math.inf, -math.inf]])
    over = sliding_window_view(ahead, 3) > limit[:, None]
    # One outlier is no relapse: the next or the one after must be over as well. Nor is one before most of the fall.
    hits: NDArray[np.int64] = (
        np.flatnonzero((before <= start - _MOST * fall) & over[:, 0] & (over.sum(1) >= 2))
        if fall > 0
        else np.empty(0, np.int64)
    )
    relapse = int(hits[0]) if len(hits) else n
    cap = start + (start - best[relapse - 1])
    capped = np.minimum(values, cap)
    capped[relapse:] = cap
    return _Shape(capped, relapse, noise)


def _smoother(n: int) -> Curve:
    """Matrix of local straight lines, weighted by a Gaussian of three steps or a fiftieth of the curve, [n, n]."""
    offset = np.arange(n)[None, :] - np.arange(n)[:, None]
    weight = np.exp(-0.5 * (offset / max(3.0, n / 50)) ** 2)
    s0, s1, s2 = weight.sum(1), (weight * offset).sum(1), (weight * offset**2).sum(1)
    matrix: Curve = (s2[:, None] * weight - s1[:, None] * weight * offset) / (s0 * s2 - s1**2)[:, None]
    return matrix


def _edge(smoothed: Curve, relapse: int) -> tuple[int, bool]:
    """The last step after the minimum at which the loss has not come back by a fifth; whether it does after that."""
    lowest = int(np.argmin(smoothed[:relapse]))
    fall = float(np.median(smoothed[:HEAD])) - smoothed[lowest]
    over = np.flatnonzero(smoothed[lowest:] > smoothed[lowest] + _BACK * fall)
    return (max(lowest + int(over[0]) - 1, 0), True) if len(over) else (len(smoothed) - 1, False)


def _passed(smoothed: Curve, lowest: int, share: float) -> int:
    """The step at which the curve has made this share of its fall for good."""
    start = float(np.median(smoothed[:HEAD]))
    high = np.flatnonzero(smoothed[: lowest + 1] > start - share * (start - smoothed[lowest]))
    return min(int(high[-1]) + 1, lowest) if len(high) else 0


def _log_rates(smoothed: Curve, relapse: int, log_lrs: Curve) -> tuple[float, float]:
    """Logarithms of the suggestion and of the largest rate to train with."""
    edge, _ = _edge(smoothed, relapse)
    # the value at the edge was measured before the update with its own rate
    top = float(log_lrs[max(edge - 1, 0)]) - math.log(_SAFETY)
    middle = float(log_lrs[_passed(smoothed, int(np.argmin(smoothed[:relapse])), 0.5)]) - math.log(_SAFETY)
    return top + _CAUTION * min(middle - top, 0.0), top


def _resampled(shape: _Shape, smoother: Curve, smoothed: Curve, log_lrs: Curve, seed: int) -> Curve:
    """Suggestions of curves whose residuals got random signs, which keeps their size where it was: logarithms."""
    residuals = shape.values - smoothed
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed)))
    signs = rng.choice([-1.0, 1.0], size=(_RESAMPLES, len(smoothed)))
    curves = (smoothed + residuals * signs) @ smoother.T
    return np.asarray([_log_rates(curve, shape.relapse, log_lrs)[0] for curve in curves])


def _clean(lrs: Curve, runs: Sequence[Sequence[float]], sign: float) -> tuple[list[Curve], bool]:
    """Check the input; the runs up to their first non-finite value, lower is better, and whether any ended early."""
    if lrs.ndim != 1 or len(lrs) == 0 or not np.all(np.isfinite(lrs)) or lrs[0] <= 0 or np.any(np.diff(lrs) <= 0):
        raise ValueError(f"lrs must be finite, > 0 and strictly rising, got {lrs.tolist()}")
    if len(runs) == 0:
        raise ValueError("runs must hold at least one sweep, got none")
    clean = []
    for index, run in enumerate(runs):
        values = np.asarray(run, dtype=np.float64)
        if values.ndim != 1 or len(values) > len(lrs):
            raise ValueError(f"runs[{index}] must have at most {len(lrs)} values, one a rate, got {values.shape}")
        bad = np.flatnonzero(~np.isfinite(values))
        clean.append(sign * values[: bad[0] if len(bad) else len(values)])
    return clean, any(len(values) < len(lrs) for values in clean)


def _no_answer(shape: _Shape, crosses: bool, lowest: int, ended_early: bool) -> tuple[str, str] | None:
    """Reason and advice where the curve does not both improve and then turn; ``None`` where it does."""
    n = len(shape.values)
    fall, _ = evidence(shape.values[: shape.relapse])
    _, rise = evidence(shape.values)
    errors = profile(shape.values)
    local = max(shape.noise, noise_of(shape.values[max(lowest - 9, 0) : lowest + 5]))
    large = errors[-1] - errors.min() > _LARGE_RISE * local**2 > 0
    rises = shape.relapse < n or ended_early or rise > EVIDENCE * math.log(n) or large
    if fall > EVIDENCE * math.log(max(shape.relapse, 2)):
        if ended_early or (rises and crosses):
            return None
        return "no upper edge found in this range: the curve improves and does not turn", "Raise max_lr."
    more = "num_steps=300 or repeats=3."
    if not rises:
        return "the curve is flat: nothing stands out from its noise", f"Raise max_lr, or give {more}"
    if lowest < n // 8:
        return "the curve gets worse from the start of this range", "Lower min_lr."
    return "the curve does not improve by more than its noise before it gets worse", f"Give {more}"


def _interval(log_lrs: Curve, samples: Curve, single: Sequence[Curve]) -> tuple[float, float]:
    """Half width of the interval and the spread of the resamples, both in the logarithm of the rate."""
    spread, runs = _SWEEP_SPREAD**2, len(single)
    if runs >= 3:
        own = []
        for values in single:
            shape = _shape(values)
            own.append(_log_rates(_smoother(len(values)) @ shape.values, shape.relapse, log_lrs)[0])
        # Three runs say little about their own spread: the usual one counts as four more.
        spread = (4 * spread + (runs - 1) * float(np.var(own, ddof=1))) / (4 + runs - 1)
    # Some resamples may lose the fall and land anywhere: the middle half says how wide the others spread.
    low, high = np.quantile(samples, [0.25, 0.75])
    noise = float(high - low) / 1.349
    return _Z90 * math.hypot(noise, math.sqrt(spread)), _Z90 * noise


def read_curve(
    lrs: Sequence[float], runs: Sequence[Sequence[float]], *, higher_is_better: bool = False, seed: int = 0
) -> Reading:
    """Read a range test.

    Nothing changes if a constant is added to all values or if they are multiplied by a positive number.

    Args:
        lrs: The planned rates, strictly rising, on a geometric or linear grid, shape [N].
        runs: One or more sweeps from the same start; each holds what was measured *before* the update with
            ``lrs[k]``, k = 0, 1, ..., at most N values. A sweep ends at its first non-finite value; one that is shorter
            than ``lrs`` is taken to have diverged there.
        higher_is_better: Whether the values are, say, accuracies.
        seed: Seed of the resampling, >= 0; nothing else is random.

    Returns:
        The reading.

    Raises:
        ValueError: If the rates do not rise from above 0, if there is no sweep, or if one has more values than rates.
    """
    grid, sign = np.asarray(lrs, dtype=np.float64), -1.0 if higher_is_better else 1.0
    clean, ended_early = _clean(grid, runs, sign)
    n = min(map(len, clean))
    mean = np.sum([values[:n] / len(clean) for values in clean], axis=0)  # divided first: large values may not overflow
    if n < MIN_POINTS:
        reason = f"too few points: {n}, and at least {MIN_POINTS} are needed"
        return Reading(
            None, reason, "Lower min_lr or give num_steps=100.", None, None, None, sign * mean, dict.fromkeys(RULES)
        )
    shape, smoother, log_lrs = _shape(mean), _smoother(n), np.log(grid)
    smoothed = smoother @ shape.values
    lowest = int(np.argmin(smoothed[: shape.relapse]))
    _, crosses = _edge(smoothed, shape.relapse)
    rules = _other_rules(grid, clean[0], smoothed, lowest, loss=not higher_is_better)
    if failure := _no_answer(shape, crosses, lowest, ended_early):
        return Reading(None, *failure, None, None, None, sign * smoothed, rules)
    half, noise = _interval(log_lrs, _resampled(shape, smoother, smoothed, log_lrs, seed), clean)
    if noise > math.log(_TOO_WIDE) / 2:
        reason = f"too noisy: resampling the noise moves the answer by a factor of {math.exp(2 * noise):.0f}"
        return Reading(None, reason, "Give num_steps=300 or repeats=3.", None, None, None, sign * smoothed, rules)
    suggestion, max_lr = map(math.exp, _log_rates(smoothed, shape.relapse, log_lrs))
    return Reading(
        suggestion=suggestion,
        reason=None,
        advice=None,
        interval=(suggestion * math.exp(-half), suggestion * math.exp(half)),
        base_lr=min(float(grid[_passed(smoothed, lowest, 0.1)]), max_lr / 3),
        max_lr=max_lr,
        smoothed=sign * smoothed,
        rules=rules,
    )


def _other_rules(grid: Curve, run: Curve, smoothed: Curve, lowest: int, loss: bool) -> dict[str, float | None]:
    slope = np.gradient(smoothed, np.log(grid[: len(smoothed)]))
    lrs, values = grid.tolist(), run.tolist()
    pair = peers.smith(lrs, values)
    return {
        "steepest": float(grid[int(np.argmin(slope[: lowest + 1]))]),
        "valley": peers.fastai_valley(lrs, values) if loss else None,
        "minimum/10": peers.fastai_minimum(lrs, values) if loss else None,
        "smith": pair[1] if pair else None,
    }


# --- When a range test in progress may end. Pure numpy.

_TAIL, _FAR = 10, 20.0


class DivergenceStop:
    """Says when a sweep in progress may end: the median of the last ten values is far above the start.

    Far is twice as high above the start as the best so far is below it, and at least twenty times the noise. As noise
    may grow with the rate, it is also three times the noise of the last twenty values, and the rise must stand out by
    its length. Four outliers cannot move a median of ten. Only values seen so far count. Adding a constant to them, or
    multiplying them by a positive number, changes nothing.

    It is careful, not thrifty: a sweep that is cut before its edge shows misleads more than a long one costs.

    Args:
        higher_is_better: Whether the values are, say, accuracies.
    """

    def __init__(self, *, higher_is_better: bool = False) -> None:
        self._sign = -1.0 if higher_is_better else 1.0
        self._values: list[float] = []

    def __call__(self, value: float) -> bool:
        """Take the next value; True if the sweep may end now. A non-finite value ends it."""
        if not math.isfinite(value):
            return True
        self._values.append(self._sign * value)
        if len(self._values) < HEAD + _TAIL:
            return False
        values = np.asarray(self._values, dtype=np.float64)
        best, start = running_best(values)
        above = float(np.median(values[-_TAIL:])) - start
        recent = noise_of(values[-2 * _TAIL :])
        if above <= max(2 * (start - float(best[-1])), _FAR * noise_of(values), 3 * recent):
            return False
        return evidence(values)[1] > EVIDENCE * math.log(len(values))
