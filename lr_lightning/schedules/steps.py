"""Schedules that drop at given times, and one that is a function of your own. Below, t is the step."""

from collections.abc import Callable
from dataclasses import dataclass

from lr_lightning.schedules.base import Schedule, check_number
from lr_lightning.schedules.clock import Clock
from lr_lightning.schedules.durations import DurationError, DurationLike, is_share, parse_duration

__all__ = ["Custom", "MultiStep", "Step"]


@dataclass(frozen=True)
class Step(Schedule):
    """Multiply at regular intervals.

    Formula: ``gamma ** k``, k = the number of whole ``every`` that have passed. Source: torch's StepLR, in closed
    form. In epochs or percent the k-th drop is at the rounded k-fold, so roundings do not add up.

    Attributes:
        every: Duration between two drops, > 0.
        gamma: Factor of each drop, in (0, 1].

    Raises:
        ValueError: ``every`` is no positive duration or ``gamma`` is outside (0, 1].

    Example:
        >>> Step(2, 0.5).factors(5)
        [1.0, 1.0, 0.5, 0.5, 0.25]
    """

    every: DurationLike
    gamma: float = 0.1

    def __post_init__(self) -> None:
        parse_duration(self.every, "every", positive=True)
        check_number("gamma", self.gamma, high=1.0, above=True)

    @property
    def needs_total(self) -> bool:
        """Only where ``every`` is a percentage."""
        return is_share(self.every)

    def _factor(self, step: int, clock: Clock) -> float:
        return float(self.gamma ** clock.count(self.every, step))

    def describe(self, clock: Clock) -> str:
        """One line, such as ``x 0.1 every 30 epochs (3000 steps)``."""
        return f"x {self.gamma:g} every {parse_duration(self.every)} ({clock.steps(self.every)} steps)"


@dataclass(frozen=True)
class MultiStep(Schedule):
    """Multiply at given times.

    Formula: ``gamma ** k``, k = the number of milestones <= t. Source: torch's MultiStepLR, in closed form.

    Attributes:
        at: Milestones, durations from the start of the piece; at least one. One beyond the end is an error.
        gamma: Factor of each drop, in (0, 1].

    Raises:
        ValueError: A milestone is no duration, there is none, or ``gamma`` is outside (0, 1].

    Example:
        >>> MultiStep(at=("50%", "75%"), gamma=0.5).factors(4)
        [1.0, 1.0, 0.5, 0.25]
    """

    at: tuple[DurationLike, ...]
    gamma: float = 0.1

    def __post_init__(self) -> None:
        if isinstance(self.at, int | str) or not self.at:
            raise ValueError(f"at must be a list of at least one duration, got {self.at!r}")
        object.__setattr__(self, "at", tuple(self.at))  # a list, as config files give, would not hash
        for milestone in self.at:
            parse_duration(milestone, "at")
        check_number("gamma", self.gamma, high=1.0, above=True)

    @property
    def needs_total(self) -> bool:
        """Only where a milestone is a percentage."""
        return any(map(is_share, self.at))

    def _factor(self, step: int, clock: Clock) -> float:
        return float(self.gamma ** sum(milestone <= step for milestone in self._milestones(clock)))

    def _milestones(self, clock: Clock) -> list[int]:
        steps = [clock.steps(milestone) for milestone in self.at]
        last = max(steps)
        if clock.total is not None and last > clock.total:
            late = parse_duration(self.at[steps.index(last)])
            raise DurationError(
                f"MultiStep: the milestone {late} is at step {last} > {clock.total} steps in all, so it never comes."
                " Move it or train longer."
            )
        return steps

    def describe(self, clock: Clock) -> str:
        """One line, such as ``x 0.1 at steps 500, 750``."""
        return f"x {self.gamma:g} at steps {', '.join(str(step) for step in sorted(self._milestones(clock)))}"


@dataclass(frozen=True)
class Custom(Schedule):
    """A function of your own. It must be pure: the same step and clock give the same factor.

    Attributes:
        function: Called as ``function(step, clock)`` with 0 <= step <= total; returns a finite factor >= 0.
        uses_total: Whether ``function`` reads ``clock.total``, so that a missing one is an early error.

    Raises:
        ValueError: ``function`` is not callable; later, when it returns a factor that is negative or not finite.

    Example:
        >>> Custom(lambda step, clock: 1 / (1 + step)).factors(3)[:2]
        [1.0, 0.5]
    """

    function: Callable[[int, Clock], float]
    uses_total: bool = False

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise ValueError(f"function must be callable as function(step, clock), got {self.function!r}")

    @property
    def needs_total(self) -> bool:
        """As declared by ``uses_total``."""
        return self.uses_total

    def _factor(self, step: int, clock: Clock) -> float:
        if self.uses_total:
            clock.need_total("Custom")
        value = self.function(step, clock)
        check_number(f"Custom: the factor at step {step}", value)
        return float(value)

    def describe(self, clock: Clock) -> str:
        """One line with the function's name."""
        return f"custom {getattr(self.function, '__qualname__', repr(self.function))}"
