"""The base of all schedules, frozen values that map a step and a clock to a factor; and functions as schedules."""

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from textwrap import fill
from typing import TYPE_CHECKING, Self

from lr_lightning._checks import check_number
from lr_lightning.errors import ArgumentError
from lr_lightning.schedules.clock import Clock

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Custom", "Schedule", "ScheduleLike", "as_schedule", "blend", "ramp", "set_fields"]


class Schedule(ABC):
    """A pure function from a step to a factor of the peak.

    A schedule has no optimizer, no counter and no state: the factor at step t needs no earlier step. So a schedule can
    be drawn before training, and a resumed run continues on the same curve. At ``step == clock.total`` a schedule has
    its end value, and it stays there.

    Every schedule checks its arguments: one outside of the range that its docstring gives raises an ArgumentError.
    """

    def __call__(self, step: int, clock: Clock) -> float:
        """Return the factor, finite and >= 0, at a step: the number of updates before this one.

        Raises:
            ArgumentError: ``step`` is negative, or the clock does not know what the schedule needs.
            DurationError: Durations do not fit into ``clock.total``.
        """
        if step < 0:
            raise ArgumentError(f"step must be >= 0, got {step}")
        total = clock.total
        return self._factor(step if total is None or step < total else total, clock)

    @abstractmethod
    def _factor(self, step: int, clock: Clock) -> float:
        """Return the factor; ``step`` is at most the total."""

    @abstractmethod
    def describe(self, clock: Clock) -> str:
        """Say in one line what the schedule does on this clock."""

    @property
    @abstractmethod
    def needs_total(self) -> bool:
        """Whether the schedule needs a known number of steps."""

    def check(self, clock: Clock) -> None:
        """Raise now what a later call would raise in the middle of a run."""
        self(0, clock)

    def factors(self, total_steps: int, steps_per_epoch: float | None = None) -> list[float]:
        """Preview the factor at each step, shape [total_steps]; durations in epochs need ``steps_per_epoch``."""
        clock = Clock(total_steps, steps_per_epoch)
        return [self(step, clock) for step in range(total_steps)]

    def plot(self, total_steps: int, steps_per_epoch: float | None = None, ax: "Axes | None" = None) -> "Figure":
        """Draw the factor at each step, without training; return the figure, whose ``savefig("lr.png")`` saves it.

        Durations in epochs need ``steps_per_epoch``. Several schedules can share one ``ax``; the default is a new one.

        Raises:
            ImportError: matplotlib is not installed.
        """
        from lr_lightning._plotting import SERIES, axes_of, style_axes

        factors = self.factors(total_steps, steps_per_epoch)
        figure, axes = axes_of(ax)
        label, colour = self.describe(Clock(total_steps, steps_per_epoch)), SERIES[len(axes.lines) % len(SERIES)]
        axes.plot(range(total_steps), factors, linewidth=2, color=colour, label=fill(label, 80 if ax is None else 45))
        style_axes(axes, x="step", y="factor of the peak lr")
        above = {"loc": "lower left", "bbox_to_anchor": (0, 1), "frameon": False}
        axes.legend(fontsize=9, **(above if ax is None else {}))
        return figure  # type: ignore[no-any-return]

    @property
    def has_base(self) -> bool:
        """Whether the schedule, or a schedule inside it, is cyclical above a base_lr."""
        found: list[bool] = []

        def look(part: "Schedule") -> "Schedule":
            found.append(part.has_base)
            return part

        self._map(look)
        return any(found)

    def with_base(self, ratio: float) -> "Schedule":
        """Return the same schedule with ``ratio``, base_lr / max_lr in [0, 1], for each cyclical schedule inside it."""
        check_number("ratio", ratio, high=1.0)
        return self._with_base(ratio)

    def _with_base(self, ratio: float) -> "Schedule":
        return self._map(lambda part: part._with_base(ratio))

    def _with_floor(self, ratio: float) -> "Schedule":
        """Return the same schedule with another lowest value; a repetition gives its piece a base_lr this way."""
        return self._map(lambda part: part._with_floor(ratio))

    def _map(self, change: Callable[["Schedule"], "Schedule"]) -> Self:
        """Return the same schedule with ``change`` applied to each schedule it is made of."""
        return self


ScheduleLike = Schedule | Callable[[int, Clock], float]
"""A schedule, or a plain function of step and clock that returns a factor."""


@dataclass(frozen=True)
class Custom(Schedule):
    """A function of yours as a schedule. It must be pure: the same step and clock give the same factor.

    Attributes:
        function: Called as ``function(step, clock)`` with 0 <= step <= total; must return a finite factor >= 0.
        uses_total: Whether ``function`` reads ``clock.total``. If True, an unknown total is an error before training.

    Example:
        >>> Custom(lambda step, clock: 1 / (1 + step)).factors(3)[:2]
        [1.0, 0.5]
    """

    function: Callable[[int, Clock], float]
    uses_total: bool = False

    def __post_init__(self) -> None:
        if not _takes_step_and_clock(self.function):
            raise ArgumentError(f"must be callable as function(step, clock), got {self.function!r}", "function")

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
        """Name the function."""
        return f"custom {getattr(self.function, '__qualname__', type(self.function).__name__)}"


def as_schedule(name: str, value: object) -> Schedule:
    """Return a schedule unchanged, and a plain function as a :class:`Custom`; ``name`` is the argument's."""
    if isinstance(value, Schedule):
        return value
    if _takes_step_and_clock(value):
        return Custom(value)  # type: ignore[arg-type]
    raise ArgumentError(f"must be a schedule such as Cosine() or a function(step, clock), got {value!r}", name)


def _takes_step_and_clock(value: object) -> bool:
    if not callable(value) or isinstance(value, type):  # a class that was not called, such as Cosine
        return False
    try:
        inspect.signature(value).bind(0, Clock())
    except TypeError:
        return False
    except ValueError:  # some callables written in C have no signature
        return True
    return True


def set_fields(schedule: Schedule, **values: object) -> None:
    """Set the fields of a frozen schedule; for a constructor that accepts more than it stores."""
    for name, value in values.items():
        object.__setattr__(schedule, name, value)


def ramp(shape: str, start: float, end: float, progress: float) -> float:
    """Move from ``start`` to ``end`` as ``progress`` goes from 0 to 1; exact at both ends.

    The shapes: ``"linear"``, ``"cosine"`` (half a period) and ``"exponential"`` (a constant ratio per step).
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
    """Return ``weight * start + (1 - weight) * end``, weight in [0, 1]; exact at both ends, never outside them."""
    # a + (b - a) need not be b in floating point
    if weight >= 1.0:
        return float(start)
    value = end + (start - end) * weight
    return float(min(max(value, min(start, end)), max(start, end)))
