"""When to stop early: Prechelt's criteria, and the phases of a schedule in which none may be asked. Pure functions."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from lr_lightning.diagnosis.prechelt import STRIP, generalization_loss, progress_quotient, successive_rises

__all__ = ["CRITERIA", "THRESHOLDS", "Phases", "stop_reason"]

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
