"""The arguments of LRSchedule: what is refused when it is made, and what when the run's length is known."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from lightning.pytorch.utilities import rank_zero_warn

from lr_lightning.callbacks.group_driver import GroupDriver
from lr_lightning.schedules import Clock, DurationError, Schedule

__all__ = ["check_plan", "each_of", "group_schedules", "of_kind", "schedules_of", "stretched", "totals_of"]

_T = TypeVar("_T")
_LONGEST_DEV_RUN = 2**40


def check_plan(driver: GroupDriver, clock: Clock) -> None:
    """Raise now what would be raised in the middle of the run."""
    for schedule in driver.schedules:
        if clock.total is None and schedule.needs_total:
            raise ValueError(
                f"LRSchedule: {schedule!r} needs the number of steps, and nothing says it here (a loader without a"
                " length, or only max_time). Give LRSchedule(total_steps=...) or Trainer(max_steps=...), or take a"
                " schedule that needs none, such as Constant() or InverseSqrt(...)."
            )
        schedule.check(clock)
    if absent := driver.absent_groups():
        rank_zero_warn(f"LRSchedule(groups=...): no param group is called {absent} now; one added later may be.")


def stretched(driver: GroupDriver, clock: Clock) -> Clock:
    """A clock that is long enough for the durations, for a development run, which is the first steps of such a run."""
    total = clock.total
    while total is not None and total < _LONGEST_DEV_RUN:
        longer = Clock(total, clock.steps_per_epoch, clock.epoch_starts)
        try:
            for schedule in driver.schedules:
                schedule.check(longer)
        except DurationError:
            total = max(1, 2 * total)
        else:
            return longer
    return clock


def each_of(value: Schedule | tuple[Schedule, ...]) -> tuple[Schedule, ...]:
    """One schedule or several, as several."""
    return value if isinstance(value, tuple) else (value,)


def schedules_of(value: Schedule | Sequence[Schedule]) -> Schedule | tuple[Schedule, ...]:
    """``schedule``, or one for each optimizer; anything else is refused."""
    every = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    for schedule in every:
        if not isinstance(schedule, Schedule):
            raise ValueError(f"schedule must be a schedule such as Cosine(), or one for each optimizer, got {value!r}")
    return value if isinstance(value, Schedule) else tuple(value)


def totals_of(value: int | Sequence[int] | None) -> int | tuple[int, ...] | None:
    """``total_steps``, or one for each optimizer; anything else is refused."""
    every = tuple(value) if isinstance(value, Sequence) else () if value is None else (value,)
    for total in every:
        if not isinstance(total, int) or isinstance(total, bool) or total < 1:
            raise ValueError(f"total_steps must be a whole number >= 1, or one for each optimizer, got {value!r}")
    return value if value is None or isinstance(value, int) else every


def group_schedules(value: Mapping[int | str, Schedule] | None) -> dict[int | str, Schedule]:
    """``groups``; what does not map indices or names to schedules is refused."""
    for key, schedule in (value or {}).items():
        if not isinstance(key, int | str) or not isinstance(schedule, Schedule):
            raise ValueError(
                f"groups must map indices or names of param groups to schedules, got {key!r}: {schedule!r}"
            )
    return dict(value or {})


def of_kind(name: str, value: _T | None, kind: type[Any]) -> _T | None:
    """An argument that is of one class or None; anything else is refused."""
    if value is not None and not isinstance(value, kind):
        raise ValueError(f"{name} must be a {kind.__name__}, got {value!r}")
    return value
