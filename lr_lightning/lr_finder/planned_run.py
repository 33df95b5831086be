"""The run that a learning rate is for, and short trials of it: which to make next, and what they say. Pure.

The answer is the geometric mean of two learning rates: what the trials say, extrapolated to the length of the run, and
a tenth of the lr at the range test's minimum (fastai's rule). Their errors differ. Where they contradict each other,
the trials alone decide. The constants were chosen on the open cells of ``benchmarks.whole_run``; docs/lr_finder.md says
how good the answers are there and elsewhere. The drift measured between trials of 12 and 48 updates did not help: it is
noisy. Nor did it help to judge the trials by validation loss.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from lr_lightning.errors import ArgumentError
from lr_lightning.schedules import Clock, Constant, Schedule

__all__ = [
    "FEWEST_LONG",
    "FEWEST_SHORT",
    "SHORT",
    "WIDTH",
    "PlannedRun",
    "TrialReading",
    "Trials",
    "best_scale",
    "first_lr",
    "next_lr",
    "read_trials",
    "sampled_factors",
    "transfer_lr",
    "trial_steps",
]

RATIO = 10 ** (1 / 3)  # of neighbouring learning rates of the trials
SHORT = 1 / 4  # length of a short trial / length of a long one
FEWEST_SHORT, FEWEST_LONG = 5, 3
_MOST_MORE = 2  # trials of one length beyond the fewest
_SHARP = 0.05  # share of the fall; a trial that misses this much of the best one's fall weighs 1/e of it
_DRIFT, _ADAPTIVE_DRIFT = -0.25, -0.05  # d log(best peak) / d log(length of the run); convex theory says -0.5
_SPREAD, _DRIFT_SPREAD = 0.6, 0.2  # standard deviations of log lr and of the drift
WIDTH = 2.5  # standard deviations on either side of an answer; 1.645 of a normal distribution covered too little
_MAY_OVERFIT = 0.25  # the interval reaches further down by this power of (length of the run / length of a trial)
_HARDLY = 0.05  # share of the value at the start: trials that fall by less have hardly begun to learn
_APART = 3.29  # standard deviations between two rules, from which on one of them is wrong
_BELOW_EDGE = 10.0


@dataclass(frozen=True)
class PlannedRun:
    """The run that a learning rate is for.

    Attributes:
        steps: Its updates.
        schedule: Its schedule in words.
        epochs: Its length in epochs; None if that is not known.
        constant: The best constant lr divided by the best peak of this schedule, after
            :func:`best_scale`.
        drift: By how much the logarithm of the best peak changes with the logarithm of the length.
    """

    steps: int
    schedule: str
    epochs: float | None = None
    constant: float = 1.0
    drift: float = _DRIFT

    @classmethod
    def of(cls, schedule: Schedule, clock: Clock, adaptive: bool = False) -> "PlannedRun":
        """Describe a schedule on the clock of a run whose length is known.

        ``adaptive`` is True for an optimizer that divides by the size of its gradients, as Adam does.

        >>> from lr_lightning.schedules import Cosine
        >>> PlannedRun.of(Cosine(), Clock(1000, 100)).describe()
        '10 epochs (1,000 steps) of cosine 1 to 0 over 1000 steps'
        """
        steps = clock.need_total(type(schedule).__name__)
        epochs = steps / clock.steps_per_epoch if clock.steps_per_epoch else None
        if clock.epoch_starts and steps == clock.epoch_starts[-1]:
            epochs = float(len(clock.epoch_starts) - 1)
        factors = sampled_factors(schedule, clock)
        usable = any(factors)
        constant = best_scale([1.0] * len(factors)) / best_scale(factors) if usable else 1.0
        return cls(steps, schedule.describe(clock), epochs, constant, _ADAPTIVE_DRIFT if adaptive else _DRIFT)

    @property
    def is_constant(self) -> bool:
        """Whether the learning rate stays at the peak."""
        return self.schedule == Constant().describe(Clock(self.steps))

    def describe(self) -> str:
        """Say the length and the schedule in one phrase."""
        length = f"{self.steps:,} steps"
        if self.epochs is not None:
            length = f"{self.epochs:.3g} epoch{'' if self.epochs == 1 else 's'} ({length})"
        return f"{length} at a constant lr" if self.is_constant else f"{length} of {self.schedule}"

    def equivalent_lr(self, lr: float, other: "PlannedRun") -> float:
        """Return what a peak lr of this run becomes under the schedule of another one of the same length."""
        return lr * self.constant / other.constant


def trial_steps(length: int, total: int) -> list[int]:
    """Return the steps of a run whose factors a trial of ``length`` updates takes: the middle of each of its parts.

    >>> trial_steps(4, 1000)
    [125, 375, 625, 875]
    """
    return [(2 * step + 1) * total // (2 * length) for step in range(length)]


def first_lr(lrs: Sequence[float], smoothed: Sequence[float], suggestion: float | None) -> float:
    """Return the lr of the first trial: what the range test suggests, else a tenth of where its loss begins to rise.

    Args:
        lrs: The learning rates of the range test, rising, shape [n].
        smoothed: Its smoothed curve, lower is better, shape [m] with m <= n.
        suggestion: Its suggestion, None without one.
    """
    if suggestion is not None:
        return suggestion
    values = np.asarray(smoothed, dtype=np.float64)
    if len(values) == 0:
        return lrs[0] / _BELOW_EDGE
    start, noise = np.median(values[:10]), float(np.std(values[: max(10, len(values) // 2)]))
    low = np.flatnonzero(values <= start + noise)
    return lrs[int(low[-1]) if len(low) else 0] / _BELOW_EDGE


def next_lr(scores: Mapping[float, float], first: float, start: float, fewest: int) -> float | None:
    """Return the lr of the next trial; None if the best one is known well enough, or there were enough trials.

    The trials form a geometric grid around ``first``. It grows until its best lr is not at an end, then to both sides.

    Args:
        scores: Learning rate to the value at the trial's end, lower is better; nan or inf if it diverged.
        first: The lr of the first trial.
        start: The value before any update.
        fewest: Number of trials to make at least, >= 3.

    Example:
        >>> round(next_lr({0.1: 1.0, 0.2154: 0.5, 0.0464: 2.0}, 0.1, 2.3, fewest=3), 3)
        0.464
    """
    known = {lr: value if math.isfinite(value) else math.inf for lr, value in scores.items()}
    for lr in (first, first * RATIO, first / RATIO):
        if not any(math.isclose(lr, other, rel_tol=0.01) for other in known):
            return lr
    if len(known) >= fewest + _MOST_MORE:
        return None
    low, high = min(known), max(known)
    best = min(known, key=lambda lr: (known[lr], -lr))
    if math.isinf(known[best]) or best == low:
        return low / RATIO
    if best == high:
        return high * RATIO
    if len(known) >= fewest:
        return None
    return low / RATIO if known[low] <= min(known[high], start) else high * RATIO


@dataclass(frozen=True)
class Trials:
    """How trials of one length ended: learning rates, rising, and values, lower is better; nan if it diverged.

    Attributes:
        lrs: Shape [n].
        scores: Shape [n].
        noise: Standard error of a score.
        length: Updates of each trial.
    """

    lrs: Sequence[float]
    scores: Sequence[float]
    noise: float
    length: int

    def centre(self, start: float) -> float | None:
        """Return the mean logarithm of the good learning rates; None if no trial improved on the start.

        Args:
            start: The value before any update.
        """
        values = np.array([value if math.isfinite(value) else np.inf for value in self.scores])
        fall = start - values.min()
        if not fall > 2 * self.noise:
            return None
        weights = np.exp(-(values - values.min()) / (_SHARP * fall))
        return float((weights * np.log(self.lrs)).sum() / weights.sum())

    def _fall(self, start: float) -> float:
        return start - min((value for value in self.scores if math.isfinite(value)), default=start)

    def hardly_learned(self, start: float) -> bool:
        """Return whether the best trial improved on the start by less than a twentieth of it.

        Then the short trials tell little: the loss may fall late, and often at a much higher learning rate.
        """
        return self._fall(start) < _HARDLY * abs(start)

    def raised(self, lr: float, start: float) -> float:
        """Return an lr; where the trials have hardly learned, at least the highest one that kept half of the best fall.

        On 52 cells of ``benchmarks.whole_run``, on which this was chosen, the mean regret fell from 0.190 to 0.162.
        """
        least = start - self._fall(start) / 2
        if not least < start or not self.hardly_learned(start):
            return lr
        return max(lr, *(each for each, value in zip(self.lrs, self.scores, strict=True) if value <= least))

    @property
    def open_ends(self) -> tuple[bool, bool]:
        """Whether the best trial is the lowest, and whether it is the highest of the grid."""
        best = int(np.argmin([value if math.isfinite(value) else np.inf for value in self.scores]))
        return best == 0, best == len(self.scores) - 1


@dataclass(frozen=True)
class TrialReading:
    """What trials say of the best peak of the whole run.

    Attributes:
        suggestion: The peak; None if no trial learned.
        interval: Where the best peak lies in nine of ten runs.
        learned: Whether the trials improved on the start beyond their noise.
    """

    suggestion: float | None = None
    interval: tuple[float, float] | None = None
    learned: bool = True


def read_trials(trials: Trials, start: float, run: PlannedRun, second: float | None = None) -> TrialReading:
    """Extrapolate the centre of the good learning rates to the length of the run; average it with another rule's lr.

    Multiplying all values by a positive number changes nothing; nor does adding a constant, where the trials have
    learned (:meth:`Trials.hardly_learned`).

    The interval reaches further down than up: a long run may overfit, and then a lower learning rate is best, which no
    trial shows. Where the trials have hardly learned, it reaches ten times higher.

    Args:
        trials: The longest trials.
        start: The value before any update.
        run: The planned run.
        second: The lr that another rule suggests for it.

    Example:
        >>> trials = Trials([0.01, 0.02, 0.04], [1.0, 0.5, 1.0], noise=0.01, length=30)
        >>> read_trials(trials, 2.3, PlannedRun(30, "constant")).suggestion
        0.02
    """
    centre = trials.centre(start)
    if centre is None:
        return TrialReading(learned=False)
    growth = math.log(max(run.steps / trials.length, 1.0))
    centre += run.drift * growth
    spread = math.hypot(_SPREAD, _DRIFT_SPREAD * growth)
    if second is not None and abs(centre - math.log(second)) < _APART * spread:  # else trust the trials: they measured
        centre = (centre + math.log(second)) / 2
    centre = math.log(trials.raised(math.exp(centre), start))
    half = WIDTH * spread
    below, above = (math.log(RATIO) if is_open else 0.0 for is_open in trials.open_ends)
    above += math.log(10) if trials.hardly_learned(start) else 0.0
    low, middle, high = (
        float(f"{math.exp(log_lr):.12g}")  # the logarithm and back cost the last digits
        for log_lr in (centre - half - below - _MAY_OVERFIT * growth, centre, centre + half + above)
    )
    return TrialReading(middle, (low, high))


# -- how the best learning rate moves from one schedule to another: arithmetic on the factors, after a convex bound ----


_MOST_POINTS = 10_000


def best_scale(factors: Sequence[float]) -> float:
    r"""Return the peak that minimizes the convex bound on the last loss of a run, up to a constant of the problem.

    For factors :math:`\eta_1, \ldots, \eta_T`, all >= 0, the bound at the peak :math:`\gamma` is
    :math:`A / \gamma + B \gamma` with :math:`A = 1 / (2 \sum_t \eta_t)` and

    .. math:: B = \frac{\sum_t \eta_t^2}{2 \sum_t \eta_t} + \frac{1}{2} \sum_{k<T}
        \frac{\eta_k}{\sum_{t>k} \eta_t} \cdot \frac{\sum_{t \ge k} \eta_t^2}{\sum_{t \ge k} \eta_t},

    so the best peak is :math:`\sqrt{A / B}`. Steps with factor 0 at the end count for nothing. Multiplying all factors
    divides the result.

    Source: Schaipp et al. 2025, "The surprising agreement between convex optimization theory and learning-rate
    scheduling for large model training", 2501.18965, theorem 1 with distance and gradient norm 1.

    Raises:
        ArgumentError: A factor is negative or not finite, or none is above 0.

    Example:
        >>> best_scale([1.0])
        1.0
        >>> round(best_scale([1 - k / 100 for k in range(100)]) / best_scale([1.0] * 100), 2)
        2.42
    """
    top = max(factors, default=0.0)
    if not (all(math.isfinite(factor) and factor >= 0 for factor in factors) and top > 0):
        raise ArgumentError("must be finite numbers >= 0, of which one is above 0", "factors")
    eta = [factor / top for factor in factors]
    while eta[-1] == 0:
        eta.pop()
    rest = list(accumulate(reversed(eta)))[::-1]
    squares = list(accumulate(factor**2 for factor in reversed(eta)))[::-1]
    bends = sum(eta[k] / rest[k + 1] * squares[k] / rest[k] for k in range(len(eta) - 1))
    a, b = 0.5 / rest[0], 0.5 * (squares[0] / rest[0] + bends)
    return math.sqrt(a / b) / top


def transfer_lr(lr: float, source: Sequence[float], target: Sequence[float]) -> float:
    """Carry the best peak lr of one schedule to another one of the same length.

    The lengths of the two sequences need not be equal, but the bound then assumes that a run which is n times as long
    needs a peak about √n times as low. Real networks do not keep to this, so measure at the other length instead.

    Args:
        lr: The best peak under ``source``.
        source: Factors of the peak at each step, >= 0, such as ``Cosine().factors(1000)``.
        target: Factors of the other schedule.

    Example:
        >>> from lr_lightning.schedules import Constant, Cosine
        >>> round(transfer_lr(0.1, Constant().factors(1000), Cosine().factors(1000)), 3)
        0.282
    """
    return lr * (best_scale(target) / best_scale(source))


def sampled_factors(schedule: Schedule, clock: Clock) -> list[float]:
    """Return the factor at every step of a clock with a known total, or at 10,000 steps that are spread evenly."""
    total = clock.need_total(type(schedule).__name__)
    points = min(total, _MOST_POINTS)
    return [schedule(index * total // points, clock) for index in range(points)]
