"""What every schedule is: a frozen value that maps a step and a clock to a factor."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Self

from lr_lightning._checks import check_choice, check_count, check_number
from lr_lightning.schedules.clock import Clock

__all__ = ["Schedule", "blend", "check_choice", "check_count", "check_number", "check_schedule", "ramp"]


class Schedule(ABC):
    """A pure function from a step to a factor of the peak.

    No optimizer, no counter, no state: the factor at step t needs no earlier step, so a schedule can be drawn before
    training and resumes by definition. At ``step == clock.total`` it is at its end value, and it stays there.
    """

    def __call__(self, step: int, clock: Clock) -> float:
        """The factor at a step.

        Args:
            step: Updates done before this one, >= 0.
            clock: The total and the epochs.

        Returns:
            A finite factor >= 0.

        Raises:
            ValueError: ``step`` is negative, or the clock does not know what the schedule needs.
            DurationError: Durations do not fit into ``clock.total``.
        """
        if step < 0:
            raise ValueError(f"step must be >= 0, got {step}")
        total = clock.total
        return self._factor(step if total is None or step < total else total, clock)

    @abstractmethod
    def _factor(self, step: int, clock: Clock) -> float:
        """The factor, with ``step`` already cut at the total."""

    @abstractmethod
    def describe(self, clock: Clock) -> str:
        """One line that says what the schedule does on this clock."""

    @property
    @abstractmethod
    def needs_total(self) -> bool:
        """Whether the schedule needs a known number of steps."""

    def check(self, clock: Clock) -> None:
        """Raise now what a call would raise later, in the middle of a run.

        Raises:
            ValueError: The clock does not know what the schedule needs.
            DurationError: Durations do not fit.
        """
        self(0, clock)

    def factors(self, total_steps: int, steps_per_epoch: float | None = None) -> list[float]:
        """Preview without training.

        Args:
            total_steps: Number of steps in the run.
            steps_per_epoch: Steps in an epoch, for durations in epochs.

        Returns:
            The factor used at each of the ``total_steps`` steps.
        """
        clock = Clock(total_steps, steps_per_epoch)
        return [self(step, clock) for step in range(total_steps)]

    @property
    def has_base(self) -> bool:
        """Whether a base_lr is among its parameters, however nested: triangular cycles have one."""
        found: list[bool] = []

        def look(child: "Schedule") -> "Schedule":
            found.append(child.has_base)
            return child

        self._map(look)
        return any(found)

    def with_base(self, ratio: float) -> "Schedule":
        """The same schedule with a new lower bound wherever it is cyclical, however nested.

        Args:
            ratio: base_lr / max_lr, in [0, 1].

        Returns:
            A new value; the schedule itself if nothing in it is cyclical.

        Raises:
            ValueError: ``ratio`` is outside [0, 1].
        """
        check_number("ratio", ratio, high=1.0)
        return self._with_base(ratio)

    def _with_base(self, ratio: float) -> "Schedule":
        return self._map(lambda child: child._with_base(ratio))

    def _with_floor(self, ratio: float) -> "Schedule":
        """The same schedule with its lowest value moved: what a repetition does to its piece."""
        return self._map(lambda child: child._with_floor(ratio))

    def _map(self, change: Callable[["Schedule"], "Schedule"]) -> Self:
        """The same schedule with its parts changed; one without parts is unchanged."""
        return self


def check_schedule(name: str, value: object) -> None:
    """Refuse what is no schedule.

    Raises:
        ValueError: ``value`` is not a Schedule.
    """
    if not isinstance(value, Schedule):
        raise ValueError(f"{name} must be a schedule such as Cosine(), got {value!r}")


def ramp(shape: str, start: float, end: float, progress: float) -> float:
    """Move from ``start`` to ``end`` as ``progress`` goes from 0 to 1; exact at both ends.

    Args:
        shape: ``"linear"``, ``"cosine"`` (half a period) or ``"exponential"`` (a constant ratio a step).
        start: The value at 0.
        end: The value at 1.
        progress: Share done.
    """
    if progress <= 0.0:
        return float(start)
    if progress >= 1.0:
        return float(end)
    if shape == "linear":
        return start + (end - start) * progress
    if shape == "cosine":
        return end + (start - end) / 2.0 * (math.cos(math.pi * progress) + 1.0)
    return float(start * (end / start) ** progress)


def blend(start: float, end: float, weight: float) -> float:
    """``weight`` of ``start`` and the rest of ``end``; exact at both, and never outside them.

    Args:
        start: The value at weight 1.
        end: The value at weight 0.
        weight: Share of ``start``, in [0, 1].
    """
    # a + (b - a) need not be b in floating point
    if weight >= 1.0:
        return float(start)
    value = end + (start - end) * weight
    return float(min(max(value, min(start, end)), max(start, end)))
