"""Cyclical rates whose height shrinks with the length of the run."""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Self

from lr_lightning.schedules import Clock, DurationLike, Schedule, Triangular

__all__ = ["ExpRange"]

_LEFT = 0.1


@dataclass(frozen=True)
class ExpRange(Schedule):
    """`Triangular(mode="exp_range")`, with a shrinkage that suits runs of any length.

    Formula: that of :class:`~lr_lightning.schedules.Triangular`, where gamma = 0.1 ** (1 / T) unless it is given: a
    tenth of the height is left after the T steps of the run. A gamma that suits 40,000 steps (Smith's 0.99994) is
    next to nothing over 300. Source: Smith 2017, "Cyclical learning rates for training neural networks" (arXiv
    1506.01186), section 3.1.

    Attributes:
        base: base_lr / max_lr, in [0, 1].
        up: Duration of the rise, > 0.
        down: Duration of the fall, > 0; as long as ``up`` if None.
        gamma: Shrinkage a step, in (0, 1]; None for the rule above.

    Raises:
        ValueError: An argument is out of range.

    Example:
        >>> [round(factor, 3) for factor in ExpRange(base=0, up=1).factors(4)]
        [0.0, 0.562, 0.0, 0.178]
    """

    base: float
    up: DurationLike
    down: DurationLike | None = None
    gamma: float | None = None

    def __post_init__(self) -> None:
        _triangular(self.base, self.up, self.down, 1.0 if self.gamma is None else self.gamma)

    @property
    def needs_total(self) -> bool:
        """Unless ``gamma`` is given and no duration is a percentage."""
        return self.gamma is None or _triangular(self.base, self.up, self.down, self.gamma).needs_total

    def _factor(self, step: int, clock: Clock) -> float:
        return self._on(clock)(step, clock)

    def _on(self, clock: Clock) -> Triangular:
        gamma = _LEFT ** (1 / max(1, clock.need_total("ExpRange"))) if self.gamma is None else self.gamma
        return _triangular(self.base, self.up, self.down, gamma)

    def describe(self, clock: Clock) -> str:
        """One line, such as ``exp_range 0.25 to 1, 30 steps up, 30 down, gamma 0.992354``."""
        return self._on(clock).describe(clock)

    @property
    def has_base(self) -> bool:
        """Always."""
        return True

    def _with_base(self, ratio: float) -> Self:
        return replace(self, base=ratio)

    _with_floor = _with_base


@lru_cache(maxsize=64, typed=True)
def _triangular(base: float, up: DurationLike, down: DurationLike | None, gamma: float) -> Triangular:
    """The value is made once, not at each step."""
    return Triangular(base, up, down, mode="exp_range", gamma=gamma)
