"""Why a finder suggests no learning rate: a value to decide by, and the sentences for people."""

from dataclasses import dataclass
from enum import Enum
from typing import Literal

__all__ = ["Abstention", "Cause"]


class Cause(Enum):
    """A reason for no suggestion.

    Attributes:
        template: The reason as a clause; ``{}`` stands for the number of the abstention.
        advice: What to try, in one sentence.
        widen: The end of the range that a second test should move outwards; None if another range does not help.
    """

    TOO_FEW_POINTS = (
        "too few points: {:.0f}, and at least 10 are needed",
        "Lower min_lr or give num_steps=100.",
        "min_lr",
    )
    NO_UPPER_EDGE = (
        "no upper edge found in this range: the curve improves and does not turn",
        "Raise max_lr.",
        "max_lr",
    )
    FLAT = (
        "the curve is flat: nothing stands out from its noise",
        "Raise max_lr, or give num_steps=300 or repeats=3.",
        "max_lr",
    )
    RISES_AT_ONCE = ("the curve gets worse from the start of this range", "Lower min_lr.", "min_lr")
    WITHIN_NOISE = (
        "the curve does not improve by more than its noise before it gets worse",
        "Give num_steps=300 or repeats=3.",
    )
    TOO_NOISY = (
        "too noisy: resampling the noise moves the answer by a factor of {:.0f}",
        "Give num_steps=300 or repeats=3.",
    )
    ALL_DIVERGED = ("every learning rate of the grid diverged", "Lower min_lr.", "min_lr")
    LOWEST_IS_BEST = (
        "the lowest learning rate of the grid, {:g}, is the best: a lower one may be better",
        "Lower min_lr.",
        "min_lr",
    )
    HIGHEST_IS_BEST = (
        "the highest learning rate of the grid, {:g}, is the best: a higher one may be better",
        "Raise max_lr.",
        "max_lr",
    )
    NO_PROGRESS = ("no learning rate of the grid lowered the loss beyond its noise", "Give more num_steps.")

    def __init__(self, template: str, advice: str, widen: Literal["min_lr", "max_lr"] | None = None) -> None:
        self.template, self.advice, self.widen = template, advice, widen


@dataclass(frozen=True)
class Abstention:
    """Why there is no suggestion.

    Attributes:
        cause: The reason.
        number: The number in its sentence, if it has one: of points, a factor, or a learning rate.
    """

    cause: Cause
    number: float = 0.0

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
