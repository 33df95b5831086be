"""How far a search has come: what the trials of its study say, as Optuna keeps them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState

__all__ = ["Standing", "attempt_of", "order", "result_of", "ticket_of"]


def ticket_of(trial: FrozenTrial) -> int:
    """The number of a trial's ticket."""
    return int(trial.user_attrs.get("ticket", trial.number))


def attempt_of(trial: FrozenTrial) -> int:
    """How often its ticket had been taken up before."""
    return int(trial.user_attrs.get("attempt", 0))


def result_of(trial: FrozenTrial) -> Mapping[str, Any]:
    """What is recorded of a trial besides its value; empty where it has not ended."""
    found: Mapping[str, Any] = trial.user_attrs.get("result", {})
    return found


def order(trial: FrozenTrial, *, higher: bool) -> tuple[bool, float, float]:
    """What to sort trials by: the best first, of equal ones that with the lowest validation loss; no value: last.

    Args:
        trial: The trial.
        higher: Whether a higher value is better.
    """
    if trial.state != TrialState.COMPLETE or trial.value is None:
        return True, 0.0, 0.0
    loss = result_of(trial).get("val_loss")
    return False, -trial.value if higher else trial.value, math.inf if loss is None else float(loss)


@dataclass(frozen=True)
class Standing:
    """How far a search has come.

    Attributes:
        ended: For each ticket that is done with, the trial that ended it.
        left: Tickets that wait or are being run.
        best: The best trial that is complete; of equal ones that with the lowest validation loss.
        equal: How many have its value.
    """

    ended: dict[int, FrozenTrial]
    left: int
    best: FrozenTrial | None
    equal: int = 0

    @staticmethod
    def of(trials: Sequence[FrozenTrial], limit: float, *, higher: bool) -> "Standing":
        """The standing of a search.

        Args:
            trials: All there are of it.
            limit: Tickets from this number on are not asked for.
            higher: Whether a higher value is better.
        """
        last = {ticket_of(t): t for t in sorted(trials, key=lambda t: t.number)}
        ended = {number: t for number, t in sorted(last.items()) if t.state.is_finished()}
        left = sum(number < limit for number in last.keys() - ended.keys())
        complete = [t for t in trials if t.state == TrialState.COMPLETE and t.value is not None]
        best = min(complete, key=lambda t: order(t, higher=higher), default=None)
        equal = sum(t.value == best.value for t in complete) if best is not None else 0
        return Standing(ended, left, best, equal)
