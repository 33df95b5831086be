"""Prechelt's three measures of overfitting, as pure functions of the losses of successive validations.

Source: Prechelt 1998, "Early stopping - but when?", section 2. His epochs are validations here.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from lr_lightning.diagnosis.history import Point

__all__ = [
    "CRITERIA",
    "STRIP",
    "THRESHOLDS",
    "Phases",
    "dominated",
    "gaps",
    "generalization_loss",
    "progress",
    "progress_quotient",
    "stop_reason",
    "successive_rises",
]

STRIP = 5
"""Validations in a strip, as in the paper."""


def generalization_loss(validation: Sequence[float]) -> float:
    """GL: how far the last validation loss lies above the lowest so far, in percent.

    Formula: ``100 * (E_va(t) / min E_va - 1)``; losses before the last that are not finite are left out.

    Args:
        validation: Losses, oldest first; at least one.

    Returns:
        A number >= 0; nan where the last loss is not finite or the lowest is not positive, since it is a ratio.

    Example:
        >>> generalization_loss([2.0, 1.0, 1.5])
        50.0
    """
    if not math.isfinite(validation[-1]):
        return math.nan
    lowest = min(filter(math.isfinite, validation))  # a nan at the start would be the lowest for ever
    if lowest <= 0:
        return math.nan
    return 100.0 * (validation[-1] / lowest - 1.0)


def progress(training: Sequence[float], strip: int = STRIP) -> float:
    """P_k: how much lower than its mean the training loss was in the last strip, in per mille.

    Formula: ``1000 * (mean of the last k / min of the last k - 1)``.

    Args:
        training: Losses, oldest first.
        strip: k, the length of a strip, >= 1.

    Returns:
        A number >= 0; nan before the first whole strip, and where it is no ratio.

    Example:
        >>> progress([1.0, 1.5, 1.0], strip=2)
        250.0
    """
    last = training[-strip:]
    if len(last) < strip or not all(map(math.isfinite, last)) or min(last) <= 0:
        return math.nan
    return 1000.0 * (sum(last) / len(last) / min(last) - 1.0)


def progress_quotient(validation: Sequence[float], training: Sequence[float], strip: int = STRIP) -> float:
    """PQ: generalization loss for each unit of progress; high where the training loss no longer falls quickly.

    Formula: ``GL / P_k``.

    Returns:
        A number >= 0; nan before the first whole strip, and where there was neither loss nor progress.

    Example:
        >>> progress_quotient([1.0, 1.0, 1.5], [1.0, 1.5, 1.0], strip=2)
        0.2
    """
    loss, made = generalization_loss(validation), progress(training, strip)
    if math.isnan(loss) or math.isnan(made):
        return math.nan
    if made == 0.0:
        return math.nan if loss == 0.0 else math.inf
    return loss / made


def successive_rises(validation: Sequence[float], strip: int = STRIP) -> int:
    """UP: in how many successive strips, up to the last whole one, the validation loss rose.

    It rose in a strip if the loss at its end is above the loss at the end of the strip before.

    Args:
        validation: Losses, oldest first.
        strip: k, the length of a strip, >= 1.

    Example:
        >>> successive_rises([3.0, 1.0, 2.0, 3.0], strip=1)
        2
    """
    ends = validation[strip - 1 :: strip]
    rises = 0
    for earlier, later in zip(reversed(ends[:-1]), reversed(ends[1:]), strict=True):
        if not later > earlier:
            break
        rises += 1
    return rises


# --- The gaps between validation and probe, and Prechelt's measures, as they stand after each validation.

_MOST_PQ = 1e6  # in place of infinity, where the training made no progress at all


def gaps(points: Sequence[Point]) -> dict[str, float]:
    """What the last validation comes to, by the name it is logged under; what is not known is left out.

    Args:
        points: The validations so far, oldest first; at least one.
    """
    point = points[-1]
    metrics: dict[str, float | None] = {"probe/loss": point.probe_loss, "probe/acc": point.probe_acc}
    val = [p.val_loss for p in points]
    if not math.isnan(point.val_loss) or point.val_losses is not None:
        metrics["overfit/gap_loss"] = point.val_loss - point.probe_loss
        metrics["overfit/gl"] = _finite(generalization_loss(val))
        # From the first validation on, since what is monitored must be there: a first strip is as long as it is.
        quotient = progress_quotient(val, [p.probe_loss for p in points], min(STRIP, len(val)))
        metrics["overfit/pq"] = 0.0 if math.isnan(quotient) else min(quotient, _MOST_PQ)
        metrics["overfit/up"] = float(successive_rises(val))
    if point.val_acc is not None and point.probe_acc is not None:
        metrics["overfit/gap_acc"] = point.probe_acc - point.val_acc
    return {key: value for key, value in metrics.items() if value is not None}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


# --- When to stop early: Prechelt's criteria, and the phases of a schedule in which none may be asked. Pure
# functions.

CRITERIA = ("patience", "gl", "pq", "up")
THRESHOLDS = {"gl": 5.0, "pq": 0.75, "up": 3.0}
"""Prechelt's own choices: percent, percent for each per mille, strips."""

_GOLDEN = (5**0.5 - 1) / 2
_LOOK = 200  # points at which a schedule is looked at
_FALL = 0.9  # a rate below this share of the one now is a fall that is worth waiting for
_STEADY = 0.999  # a rate above this share of the one before is not falling


def stop_reason(
    criterion: str, validation: Sequence[float], training: Sequence[float], threshold: float, strip: int = STRIP
) -> str | None:
    """Why a run should stop by one of Prechelt's criteria, or None.

    Args:
        criterion: ``"gl"``: the generalization loss is above the threshold. ``"pq"``: its quotient with the progress
            is, at the end of a strip. ``"up"``: the loss rose in so many successive strips, at the end of one.
        validation: Losses of the validations that count, oldest first; at least one.
        training: Training losses at the same validations; used by ``"pq"`` alone.
        threshold: See :data:`THRESHOLDS`.
        strip: Validations in a strip.

    Example:
        >>> stop_reason("gl", [1.0, 1.2], [], threshold=5.0)
        'the generalization loss is 20 %, above 5 %'
        >>> stop_reason("up", [1.0, 1.1, 1.2], [], threshold=3, strip=1)
    """
    if criterion == "gl":
        loss = generalization_loss(validation)
        return f"the generalization loss is {loss:.3g} %, above {threshold:g} %" if loss > threshold else None
    if len(validation) % strip:
        return None
    if criterion == "pq":
        quotient = progress_quotient(validation, training, strip)
        return f"loss for progress, PQ, is {quotient:.3g}, above {threshold:g}" if quotient > threshold else None
    rises = successive_rises(validation, strip)
    if rises < threshold:
        return None
    return f"the loss rose in {rises} successive strips of {strip} validations"


@dataclass(frozen=True)
class Phases:
    """In which validations a schedule lets a criterion be asked.

    A loss rises with the rate, and falls when the rate falls: to stop while it rises, or before it falls, takes the
    schedule's effect for the model's. So validations count

    - of a schedule that rises again after a fall (cyclical): at the low end of each cycle;
    - of any other: not while the rate rises (warm-up), and not while it stays and a fall is still to come (before the
      cooldown of WSD, before a step's drop).

    Attributes:
        factor: The schedule's factor at a step.
        total: Steps in the run; None if they are not known.
    """

    factor: Callable[[int], float]
    total: int | None = None
    _known: dict[str, bool] = field(default_factory=dict, init=False, repr=False, compare=False)

    def counts(self, step: int, before: int) -> bool:
        """Whether a validation counts.

        Args:
            step: Updates made so far, >= 1.
            before: Updates made at the validation before; 0 if it is the first.
        """
        interval = max(1, step - before)
        last, now = self.factor(max(0, before - 1)), self.factor(step - 1)
        following = self.factor(self._cut(step + interval - 1))
        if self._is_cyclical(step + 10 * interval):
            return now <= last and now <= following
        if now > last / _STEADY:
            return False
        if now < last * _STEADY and following < now * _STEADY:
            return True  # it is falling, not only at a drop
        lowest = min(self.factor(t) for t in self._points(step, self.total or step + 10 * interval))
        return lowest >= _FALL * now

    def _is_cyclical(self, horizon: int) -> bool:
        """Whether the rate rises again somewhere after it has fallen."""
        if "cyclical" not in self._known:
            fallen, lowest, cyclical = False, math.inf, False
            for value in (self.factor(t) for t in _scattered(self.total or horizon)):
                cyclical = cyclical or (fallen and value > 1.1 * lowest + 0.01)
                fallen = fallen or value < lowest * _STEADY < math.inf
                lowest = value if value < lowest or not fallen else lowest
            if self.total is None:
                return cyclical
            self._known["cyclical"] = cyclical
        return self._known["cyclical"]

    def _cut(self, step: int) -> int:
        return step if self.total is None else max(0, min(step, self.total - 1))

    def _points(self, start: int, stop: int) -> list[int]:
        stride = max(1, (stop - start) // _LOOK)
        return sorted({*range(min(start, stop - 1), stop, stride), stop - 1})


def _scattered(stop: int) -> list[int]:
    """Steps all over a run at uneven distances: even ones may meet every cycle at the same phase."""
    return sorted({int(stop * (i * _GOLDEN % 1.0)) for i in range(10 * _LOOK)} | {0, max(0, stop - 1)})


# --- Whether a run is clearly worse than its peers at the same point of the same schedule. A pure function.

_NOISES = 3.0


def dominated(own: Sequence[float], peers: Sequence[Sequence[float]], *, higher: bool, fewest: int = 4) -> str | None:
    """Why a run is not worth going on with, or None.

    Its best value so far must lie below the median of what its peers had come to at the same validation, by more than
    the best of them lies above that median, and by more than three times the jitter of its own values. So where half
    the peers are about as good as the best, being a little worse is enough only beyond the noise; where they differ
    widely, only a run that is far off is dominated.

    Args:
        own: Values of the validations so far, oldest first.
        peers: The same of other runs of the same schedule and length; those with fewer values are passed over.
        higher: Whether a higher value is better.
        fewest: Peers that are needed.

    Returns:
        The reason with its numbers, or None.

    Example:
        >>> dominated([0.10, 0.12], [[0.5, 0.90], [0.4, 0.88], [0.6, 0.91], [0.1, 0.86]], higher=True)
        'at 0.12 after 2 validations, where its 4 peers had 0.89 (median) and 0.91 (best)'
        >>> dominated([0.60, 0.88], [[0.5, 0.90], [0.4, 0.88], [0.6, 0.91], [0.1, 0.80]], higher=True)
    """
    count = len(own)
    if not count:
        return None
    sign = 1.0 if higher else -1.0
    reached = [max(sign * v for v in peer[:count] if math.isfinite(v)) for peer in peers if _usable(peer, count)]
    if len(reached) < fewest:
        return None
    if not any(map(math.isfinite, own)):
        return f"no finite value in {count} validations"
    best_own = max(sign * v for v in own if math.isfinite(v))
    median, best = statistics.median(reached), max(reached)
    steps = [abs(b - a) for a, b in pairwise(own[-6:]) if math.isfinite(a) and math.isfinite(b)]
    jitter = statistics.median(steps) / math.sqrt(2) if len(steps) > 1 else 0.0
    if median - best_own <= max(best - median, _NOISES * jitter):
        return None
    return (
        f"at {sign * best_own:.4g} after {count} validations, where its {len(reached)} peers had "
        f"{sign * median:.4g} (median) and {sign * best:.4g} (best)"
    )


def _usable(peer: Sequence[float], count: int) -> bool:
    return len(peer) >= count and any(math.isfinite(v) for v in peer[:count])
