"""Why a finder suggests no learning rate: a value to decide by, and the sentences for people."""

from dataclasses import dataclass
from enum import Enum
from typing import Literal

__all__ = ["Abstention", "Cause"]

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
