"""Early stopping: Prechelt's measures and criteria, the phases of a schedule, and a run against its peers.

Everything here is a pure function of the losses of successive validations.
Source of the measures: Prechelt 1998, "Early stopping - but when?", section 2. His epochs are validations here.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, takewhile

from lr_lightning.diagnosis.history import Point

STRIP = 5  # validations in a strip, as in the paper
CRITERIA = ("patience", "gl", "pq", "up")
THRESHOLDS = {"gl": 5.0, "pq": 0.75, "up": 3.0}  # Prechelt's own choices: percent, percent for each per mille, strips
_MOST_PQ = 1e6  # in place of infinity, if the training made no progress at all
_GOLDEN = (5**0.5 - 1) / 2
_LOOKS = 200  # points at which a schedule is evaluated
_FALL = 0.9  # share of the present learning rate: a later one below it is a fall worth waiting for
_STEADY = 0.999  # share of the previous learning rate: one above it is not falling
_NOISES = 3.0  # how many times the noise a run must be behind its peers
_HALF_A_POINT = 0.005


# -- Prechelt's measures ---------------------------------------------------------------------------------------------


def generalization_loss(validation: Sequence[float]) -> float:
    """Return GL: how far the last validation loss lies above the lowest so far, in percent.

    Formula: ``100 * (E_va(t) / min E_va - 1)``. Earlier losses that are not finite are left out.

    Returns:
        A number >= 0; nan if the last loss is not finite or the lowest is not positive, because GL is a ratio.

    Example:
        >>> generalization_loss([2.0, 1.0, 1.5])
        50.0
    """
    lowest = min(filter(math.isfinite, validation), default=math.nan)  # a nan at the start would stay lowest
    return 100.0 * (validation[-1] / lowest - 1.0) if lowest > 0 and math.isfinite(validation[-1]) else math.nan


def training_progress(training: Sequence[float], strip: int = STRIP) -> float:
    """Return P_k: how far the mean training loss of the last strip lies above its minimum, in per mille.

    Formula: ``1000 * (mean of the last k / min of the last k - 1)``.

    Returns:
        A number >= 0; nan before the first whole strip, and if a loss is not finite or not positive.

    Example:
        >>> training_progress([1.0, 1.5, 1.0], strip=2)
        250.0
    """
    last = training[-strip:]
    if len(last) < strip or not all(map(math.isfinite, last)) or min(last) <= 0:
        return math.nan
    return 1000.0 * (sum(last) / len(last) / min(last) - 1.0)


def progress_quotient(validation: Sequence[float], training: Sequence[float], strip: int = STRIP) -> float:
    """Return PQ = GL / P_k, the generalization loss for each unit of progress; high if the training loss hardly falls.

    Returns:
        A number >= 0; nan before the first whole strip, and if both GL and P_k are 0.

    Example:
        >>> progress_quotient([1.0, 1.0, 1.5], [1.0, 1.5, 1.0], strip=2)
        0.2
    """
    loss, made = generalization_loss(validation), training_progress(training, strip)
    if made == 0.0:
        return math.inf if loss > 0.0 else math.nan
    return loss / made


def successive_rises(validation: Sequence[float], strip: int = STRIP) -> int:
    """Return UP: the number of successive strips, up to the last whole one, in which the validation loss rose.

    It rose in a strip if the loss at its end is above the loss at the end of the strip before.

    Example:
        >>> successive_rises([3.0, 1.0, 2.0, 3.0], strip=1)
        2
    """
    ends = validation[strip - 1 :: strip]
    rose = [later > earlier for earlier, later in pairwise(ends)]
    return sum(1 for _ in takewhile(bool, reversed(rose)))


def overfit_metrics(points: Sequence[Point]) -> dict[str, float]:
    """Return the known ones of the probe's metrics, the gaps and Prechelt's measures at the last validation."""
    point = points[-1]
    metrics: dict[str, float | None] = {"probe/loss": point.probe_loss, "probe/acc": point.probe_acc}
    val = [p.val_loss for p in points]
    if not math.isnan(point.val_loss) or point.val_losses is not None:
        loss = generalization_loss(val)
        metrics["overfit/gap_loss"] = point.val_loss - point.probe_loss
        metrics["overfit/gl"] = loss if math.isfinite(loss) else None
        # The first strip is shorter, because a callback that monitors PQ needs it from the first validation on.
        quotient = progress_quotient(val, [p.probe_loss for p in points], min(STRIP, len(val)))
        metrics["overfit/pq"] = 0.0 if math.isnan(quotient) else min(quotient, _MOST_PQ)
        metrics["overfit/up"] = float(successive_rises(val))
    if point.val_acc is not None and point.probe_acc is not None:
        metrics["overfit/gap_acc"] = point.probe_acc - point.val_acc
    return {key: value for key, value in metrics.items() if value is not None}


# -- when to stop ----------------------------------------------------------------------------------------------------


def stop_reason(
    criterion: str, validation: Sequence[float], training: Sequence[float], threshold: float, strip: int = STRIP
) -> str | None:
    """Return why a run should stop by one of Prechelt's criteria, or None if it should not.

    Args:
        criterion: ``"gl"``: the generalization loss is above the threshold. ``"pq"``, asked at the end of a strip: its
            quotient with the progress is above the threshold. ``"up"``, asked at the end of a strip: the loss rose in
            ``threshold`` successive strips.
        validation: Losses of the validations that count, oldest first; at least one.
        training: Training losses at the same validations; only ``"pq"`` uses them.
        threshold: In percent for ``"gl"``, in percent for each per mille for ``"pq"``, in strips for ``"up"``.
        strip: Number of validations in a strip.

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
        if not quotient > threshold:
            return None
        return f"the generalization loss for each unit of progress, PQ, is {quotient:.3g}, above {threshold:g}"
    rises = successive_rises(validation, strip)
    return f"the loss rose in {rises} successive strips of {strip} validations" if rises >= threshold else None


@dataclass(frozen=True)
class Phases:
    """The validations at which a schedule allows a stopping criterion to be evaluated.

    A loss rises and falls with the learning rate. To stop while it rises, or before it falls, would mistake the
    schedule's effect for the model's. So these validations count:

    - If the schedule rises again after a fall (cyclical): the low end of each cycle.
    - Otherwise: not while the learning rate rises (warmup), and not while it stays constant and a fall is still to come
      (before the cooldown of WSD, before the drop of a step schedule).
    """

    factor: Callable[[int], float]  # the schedule's, at a step
    total: int | None = None  # steps of the run
    _known: dict[str, bool] = field(default_factory=dict, init=False, repr=False, compare=False)

    def counts(self, step: int, before: int) -> bool:
        """Return whether a validation counts, from the steps up to it and up to the previous one (0 without one)."""
        interval = max(1, step - before)
        last, now = self.factor(max(0, before - 1)), self.factor(step - 1)
        next_step = step + interval - 1
        following = self.factor(next_step if self.total is None else max(0, min(next_step, self.total - 1)))
        if self._is_cyclical(step + 10 * interval):
            return now <= last and now <= following
        if now > last / _STEADY:
            return False
        if now < last * _STEADY and following < now * _STEADY:
            return True  # a continuous fall, not a single drop
        stop = self.total or step + 10 * interval
        steps = {*range(min(step, stop - 1), stop, max(1, (stop - step) // _LOOKS)), stop - 1}
        return min(self.factor(t) for t in steps) >= _FALL * now

    def _is_cyclical(self, horizon: int) -> bool:
        """Return whether the factor rises again somewhere after a fall."""
        if "cyclical" in self._known:
            return self._known["cyclical"]
        fallen, lowest, cyclical = False, math.inf, False
        for value in (self.factor(t) for t in _scattered(self.total or horizon)):
            cyclical = cyclical or (fallen and value > 1.1 * lowest + 0.01)
            fallen = fallen or value < lowest * _STEADY < math.inf
            lowest = value if value < lowest or not fallen else lowest
        if self.total is not None:
            self._known["cyclical"] = cyclical
        return cyclical


def _scattered(stop: int) -> list[int]:
    """Return steps at uneven distances: even ones could meet every cycle at the same phase."""
    return sorted({int(stop * (i * _GOLDEN % 1.0)) for i in range(10 * _LOOKS)} | {0, max(0, stop - 1)})


# -- a run against its peers -----------------------------------------------------------------------------------------


def dominated(own: Sequence[float], peers: Sequence[Sequence[float]], *, higher: bool, fewest: int = 4) -> str | None:
    """Return why a run is clearly worse than its peers at the same validation, or None if it is not.

    The run's best value so far must lie below the median of its peers by more than the best peer lies above it, and by
    more than three times the jitter of the run's own values. So if half of the peers are about as good as the best, a
    run that is a little worse is dominated once that is beyond its noise; if the peers differ widely, it must be far
    off. The peers are runs of the same schedule and length; those with fewer values are left out. There must be at
    least ``fewest`` of them.

    Example:
        >>> dominated([0.10, 0.12], [[0.5, 0.90], [0.4, 0.88], [0.6, 0.91], [0.1, 0.86]], higher=True)
        'at 0.12 after 2 validations, where its 4 peers had 0.89 (median) and 0.91 (best)'
        >>> dominated([0.60, 0.88], [[0.5, 0.90], [0.4, 0.88], [0.6, 0.91], [0.1, 0.80]], higher=True)
    """
    count = len(own)
    sign = 1.0 if higher else -1.0
    starts = ([sign * v for v in peer[:count] if math.isfinite(v)] for peer in peers if len(peer) >= count)
    reached = [max(values) for values in starts if values]
    if not count or len(reached) < fewest:
        return None
    if not any(map(math.isfinite, own)):
        return f"no finite value in {count} validations"
    best_own = max(sign * v for v in own if math.isfinite(v))
    median, best = statistics.median(reached), max(reached)
    moves = [abs(b - a) for a, b in pairwise(own[-6:]) if math.isfinite(a) and math.isfinite(b)]
    jitter = statistics.median(moves) / math.sqrt(2) if len(moves) > 1 else 0.0
    if median - best_own <= max(best - median, _NOISES * jitter):
        return None
    return (
        f"at {sign * best_own:.4g} after {count} validations, where its {len(reached)} peers had "
        f"{sign * median:.4g} (median) and {sign * best:.4g} (best)"
    )


def out_of_reach(
    previews: Sequence[float],
    best_previews: Sequence[float],
    best: float,
    progress: float,
    *,
    higher: bool,
    hope: float = 2.0,
    near: float = 0.05,
    fewest: int = 3,
) -> str | None:
    """Return why a run will not come near the best finished one, by what a cooldown would reach; None if it may.

    Formula: the run is hopeless if ``p - hope * max(P - B, f * log(1 / progress)) > (1 + near) * B``. Here p is its
    lowest preview, P the lowest that the best run had by then, and B what that one reached; f is the fall of the run's
    previews, by the logarithm of the updates, since half of them. So in its rest the run may gain twice as much as the
    best one did, or fall on at twice its own pace. An accuracy counts as the error, 1 - accuracy, and may miss the best
    by half a point more. The two constants were chosen in ``benchmarks/pruning_replay.py``.

    Args:
        previews: The run's previews, oldest first, at equal distances.
        best_previews: Those of the best finished run, up to the same validation.
        best: What that run reached.
        progress: Share of the run that is done, in (0, 1].
        higher: Whether a higher value is better, as of an accuracy; otherwise it is a loss.
        hope: How many times as much as expected the run may gain.
        near: Share of the best loss by which a run may miss it and be as good.
        fewest: Number of previews before which no run is judged.

    Example:
        >>> out_of_reach([2.0, 1.6, 1.5, 1.4], [1.2, 0.8, 0.7, 0.6], 0.5, progress=0.33, higher=False)
        'a cooldown would have reached 1.4, and hardly less than 0.76 at the end, where the best run has 0.5'
        >>> out_of_reach([2.0, 1.6, 0.9, 0.8], [1.2, 0.8, 0.7, 0.6], 0.5, progress=0.33, higher=False)
    """
    own, others = (
        [1.0 - value if higher else value for value in values if math.isfinite(value)]
        for values in (previews, best_previews)
    )
    if len(own) < fewest or not others or progress <= 0:
        return None
    goal, lowest, half = 1.0 - best if higher else best, min(own), len(own) // 2
    fall = (own[half - 1] - lowest) / math.log(len(own) / half)
    reach = lowest - hope * max(min(others) - goal, fall * math.log(1 / progress))
    if reach <= goal + near * abs(goal) + (_HALF_A_POINT if higher else 0.0):
        return None
    now, end = (1.0 - loss if higher else loss for loss in (lowest, reach))
    return (
        f"a cooldown would have reached {now:.4g}, and hardly {'more' if higher else 'less'} than {end:.2g} at the "
        f"end, where the best run has {best:.4g}"
    )
