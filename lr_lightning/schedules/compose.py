"""Schedules made of other schedules. In the formulas, t is the step and T the number of steps."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self, get_args

from lr_lightning._checks import check_choice, check_number
from lr_lightning.errors import ArgumentError
from lr_lightning.schedules.base import Schedule, ScheduleLike, as_schedule, blend, ramp, set_fields
from lr_lightning.schedules.clock import Clock, DurationLike, fit_pieces, is_share, parse_duration

__all__ = ["WSD", "Join", "Product", "Shifted", "Warmup", "WithCooldown"]

_WarmupShape = Literal["linear", "cosine", "exponential"]
_CooldownShape = Literal["1-sqrt", "linear", "cosine"]
_Piece = tuple[ScheduleLike, DurationLike | None]
_EXPONENTIAL_LOW = 0.01  # where an exponential warmup starts, as a share of its end
_COOLDOWNS: dict[str, Callable[[float], float]] = {
    "1-sqrt": lambda progress: 1.0 - math.sqrt(progress),
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
}


@dataclass(frozen=True, init=False)
class Warmup(Schedule):
    """Rise to where another schedule starts, then follow that schedule.

    Formula, with n = the duration in steps and a = ``then`` at its start, for t < n and the linear shape:
    ``a * (t + 1) / n`` if ``start`` is None: no update is wasted on a learning rate of 0, and step n - 1 is already at
    a. ``s + (a - s) * t / n`` if ``start`` is s. The other shapes replace the straight line; without ``start`` the
    exponential one rises from a / 100. For t >= n: ``then`` at t - n, in the steps that are left. Source: Goyal et al.
    2017, "Accurate, large minibatch SGD" (arXiv 1706.02677), section 2.2.

    Attributes:
        duration: Length of the rise; may be 0. Longer than the run, it raises a DurationError when called.
        then: What follows; a plain function is accepted as well.
        shape: ``"linear"``, ``"cosine"`` (half a period) or ``"exponential"``.
        start: Factor at t = 0, >= 0 (> 0 for the exponential shape); None for the rule above.

    Example:
        >>> from lr_lightning.schedules import Linear
        >>> Warmup(4, Linear()).factors(8)
        [0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25]
        >>> Warmup("50%", Linear(), start=0).factors(4)
        [0.0, 0.5, 1.0, 0.5]
    """

    duration: DurationLike
    then: Schedule
    shape: _WarmupShape = "linear"
    start: float | None = None

    def __init__(
        self, duration: DurationLike, then: ScheduleLike, shape: _WarmupShape = "linear", start: float | None = None
    ) -> None:
        parse_duration(duration)
        check_choice("shape", shape, get_args(_WarmupShape))
        if start is not None:
            check_number("start", start, above=shape == "exponential")
        set_fields(self, duration=duration, then=as_schedule("then", then), shape=shape, start=start)

    @property
    def needs_total(self) -> bool:
        """If the duration is a percentage or ``then`` needs a total."""
        return is_share(self.duration) or self.then.needs_total

    def _layout(self, clock: Clock) -> tuple[tuple[int, int | None], ...]:
        return fit_pieces(clock, (self.duration, None), "Warmup")

    def _factor(self, step: int, clock: Clock) -> float:
        (_, length), (then_start, left) = self._layout(clock)
        length = length or 0
        if step >= length:
            return self.then(step - then_start, clock.slice(then_start, left))
        # If no step is left for `then`, it is at its end; the rise still aims at its beginning.
        goal = self.then(0, clock.slice(then_start, None if left is None else max(1, left)))
        if goal == 0.0 and self.shape == "exponential":
            raise ArgumentError("Warmup: an exponential rise cannot end at 0, where `then` starts. Use shape='linear'.")
        if self.start is not None:
            return ramp(self.shape, self.start, goal, step / length)
        low = _EXPONENTIAL_LOW * goal if self.shape == "exponential" else 0.0
        return ramp(self.shape, low, goal, (step + 1) / length)

    def check(self, clock: Clock) -> None:
        """Check both pieces."""
        super().check(clock)
        _, (then_start, left) = self._layout(clock)
        self.then.check(clock.slice(then_start, left))

    def describe(self, clock: Clock) -> str:
        """Say it in one line, such as ``linear warmup over 50 steps, then cosine 1 to 0 over 950 steps``."""
        (_, length), (then_start, left) = self._layout(clock)
        return f"{self.shape} warmup over {length} steps, then {self.then.describe(clock.slice(then_start, left))}"

    def _map(self, change: Callable[[Schedule], Schedule]) -> Self:
        then = change(self.then)
        return self if then == self.then else replace(self, then=then)


@dataclass(frozen=True, init=False)
class Join(Schedule):
    """One schedule after another.

    Formula: piece i starts at step s_i, has its own length as its total, and gives ``piece_i(t - s_i)`` for
    s_i <= t < s_(i+1). At most one duration is None: that piece takes the steps that the others leave. Percentages are
    of the whole. Epochs count from each piece's start; for pieces after the None they count back from the end. After
    the last piece the factor stays at its end value.

    Attributes:
        pieces: (schedule, duration) pairs, as arguments or as one list. A plain function is accepted as a schedule.

    Raises:
        ArgumentError: There is no pair, an entry is not a pair of schedule and duration, or two durations are None.
        DurationError: When called: the durations add up to more than the run.

    Example:
        >>> from lr_lightning.schedules import Linear
        >>> Join((Linear(0, 1), 2), (Linear(1, 0), None)).factors(6)
        [0.0, 0.5, 1.0, 0.75, 0.5, 0.25]
        >>> Join([(Linear(0, 1), 2), (lambda step, clock: 0.5, None)]).factors(4)
        [0.0, 0.5, 0.5, 0.5]
    """

    pieces: tuple[tuple[Schedule, DurationLike | None], ...]
    _durations: tuple[DurationLike | None, ...] = field(init=False, repr=False, compare=False)

    def __init__(self, pieces: Sequence[_Piece] | _Piece = (), *more: _Piece) -> None:
        one_list = _is_list(pieces) and not more and all(map(_is_list, pieces))
        pairs: Any = pieces if one_list else (pieces, *more)
        if not pairs:
            raise ArgumentError("Join needs at least one (schedule, duration) pair")
        checked = []
        for pair in pairs:
            if not _is_list(pair) or len(pair) != 2:
                raise ArgumentError(f"Join expects (schedule, duration) pairs, got {pair!r}")
            checked.append((as_schedule("Join: the first of each pair", pair[0]), pair[1]))
            if pair[1] is not None:
                parse_duration(pair[1])
        durations = tuple(duration for _, duration in checked)
        if durations.count(None) > 1:
            raise ArgumentError(
                "Join: at most one duration may be None (the rest of the run). Give the others a length."
            )
        set_fields(self, pieces=tuple(checked), _durations=durations)

    def __repr__(self) -> str:
        return f"Join({', '.join(f'({schedule!r}, {duration!r})' for schedule, duration in self.pieces)})"

    @property
    def needs_total(self) -> bool:
        """If a duration is a percentage, a piece follows the open one, or the open one needs a total."""
        last = len(self.pieces) - 1
        return any(
            (schedule.needs_total or i < last) if duration is None else is_share(duration)
            for i, (schedule, duration) in enumerate(self.pieces)
        )

    def _layout(self, clock: Clock) -> tuple[tuple[int, int | None], ...]:
        return fit_pieces(clock, self._durations, "Join")

    def _factor(self, step: int, clock: Clock) -> float:
        layout = self._layout(clock)
        index = len(layout) - 1
        while step < layout[index][0]:
            index -= 1
        start, length = layout[index]
        return self.pieces[index][0](step - start, clock.slice(start, length))

    def check(self, clock: Clock) -> None:
        """Check every piece."""
        for (schedule, _), (start, length) in zip(self.pieces, self._layout(clock), strict=True):
            schedule.check(clock.slice(start, length))

    def describe(self, clock: Clock) -> str:
        """Join the lines of the pieces with ``, then``."""
        return ", then ".join(
            schedule.describe(clock.slice(start, length)) + ("" if length is None else f" (to step {start + length})")
            for (schedule, _), (start, length) in zip(self.pieces, self._layout(clock), strict=True)
        )

    def _map(self, change: Callable[[Schedule], Schedule]) -> Self:
        changed = type(self)([(change(schedule), duration) for schedule, duration in self.pieces])
        return self if changed == self else changed


@dataclass(frozen=True, init=False)
class Product(Schedule):
    """The product of several schedules. Formula: ``a(t) * b(t) * ...``, each over the whole piece.

    Give at least one schedule, as arguments or as one list. A plain function is accepted as a schedule.

    Example:
        >>> from lr_lightning.schedules import Constant, Linear
        >>> Product(Linear(), Constant(0.5)).factors(2)
        [0.5, 0.25]
    """

    schedules: tuple[Schedule, ...]

    def __init__(self, schedules: Sequence[ScheduleLike] | ScheduleLike = (), *more: ScheduleLike) -> None:
        every: Any = schedules if _is_list(schedules) and not more else (schedules, *more)
        if not every:
            raise ArgumentError("Product needs at least one schedule")
        set_fields(self, schedules=tuple(as_schedule("Product: each argument", schedule) for schedule in every))

    def __repr__(self) -> str:
        return f"Product({', '.join(map(repr, self.schedules))})"

    @property
    def needs_total(self) -> bool:
        """If one of the schedules needs a total."""
        return any(schedule.needs_total for schedule in self.schedules)

    def _factor(self, step: int, clock: Clock) -> float:
        return math.prod([schedule(step, clock) for schedule in self.schedules], start=1.0)

    def check(self, clock: Clock) -> None:
        """Check every schedule."""
        for schedule in self.schedules:
            schedule.check(clock)

    def describe(self, clock: Clock) -> str:
        """Join the lines of the schedules with ``times``."""
        return " times ".join(schedule.describe(clock) for schedule in self.schedules)

    def _map(self, change: Callable[[Schedule], Schedule]) -> Self:
        changed = type(self)([change(schedule) for schedule in self.schedules])
        return self if changed == self else changed


@dataclass(frozen=True)
class WSD(Schedule):
    """Warmup, stable, decay.

    The clock's total is required, because the cooldown ends there. A run that is resumed before its cooldown may have
    another total: unless ``warmup`` is a percentage, no factor before the cooldown depends on it.

    Formula: ``(t + 1) / n`` for t < n, then 1 until T - c, then from 1 to ``end`` over c steps in ``shape``. Source: Hu
    et al. 2024, "MiniCPM" (arXiv 2404.06395), section 4; cooldown shapes of Hägele et al. 2024 (arXiv 2405.18392).

    Attributes:
        warmup: Length n of the rise; may be 0.
        cooldown: Length c of the fall, at the end; may be 0. A DurationError when called: n + c is more than the run.
        shape: Shape of the fall: ``"1-sqrt"``, ``"linear"`` or ``"cosine"``.
        end: Factor at t = T, >= 0.

    Example:
        >>> WSD(warmup=2, cooldown="50%", shape="linear").factors(8)
        [0.5, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25]
    """

    warmup: DurationLike = "5%"
    cooldown: DurationLike = "20%"
    shape: _CooldownShape = "1-sqrt"
    end: float = 0.0

    def __post_init__(self) -> None:
        parse_duration(self.warmup, "warmup")
        parse_duration(self.cooldown, "cooldown")
        check_choice("shape", self.shape, get_args(_CooldownShape))
        check_number("end", self.end)

    needs_total = True

    def _layout(self, clock: Clock) -> tuple[tuple[int, int | None], ...]:
        clock.need_total("WSD")
        return fit_pieces(clock, (self.warmup, None, self.cooldown), "WSD")

    def _factor(self, step: int, clock: Clock) -> float:
        (_, rise), _, (fall_start, fall) = self._layout(clock)
        if step >= fall_start:
            progress = (step - fall_start) / fall if fall else 1.0
            return blend(1.0, self.end, _COOLDOWNS[self.shape](progress))
        return 1.0 if not rise or step >= rise else (step + 1) / rise

    def describe(self, clock: Clock) -> str:
        """Say it in one line: ``linear warmup over 50 steps, 1 until step 800, then 1-sqrt to 0 over 200 steps``."""
        (_, rise), _, (fall_start, fall) = self._layout(clock)
        fall_text = f"then {self.shape} to {self.end:g} over {fall} steps"
        return f"linear warmup over {rise} steps, 1 until step {fall_start}, {fall_text}"


@dataclass(frozen=True)
class Shifted(Schedule):
    """A schedule that starts at a later step, and has the steps that are left as its total.

    Formula: ``then(t - start)`` for t >= start; until then the first value.

    Example:
        >>> from lr_lightning.schedules import Linear
        >>> Shifted(2, Linear()).factors(6)
        [1.0, 1.0, 1.0, 0.75, 0.5, 0.25]
    """

    start: int
    then: Schedule

    @property
    def needs_total(self) -> bool:
        """If ``then`` needs a total."""
        return self.then.needs_total

    def _rest(self, clock: Clock) -> Clock:
        return clock.slice(self.start, None if clock.total is None else max(0, clock.total - self.start))

    def _factor(self, step: int, clock: Clock) -> float:
        return self.then(max(0, step - self.start), self._rest(clock))

    def check(self, clock: Clock) -> None:
        """Check the schedule on the steps that are left."""
        self.then.check(self._rest(clock))

    def describe(self, clock: Clock) -> str:
        """Say it in one line, such as ``from step 500 on linear 1 to 0 over 400 steps``."""
        return f"from step {self.start} on {self.then.describe(self._rest(clock))}"

    def _map(self, change: Callable[[Schedule], Schedule]) -> Self:
        return replace(self, then=change(self.then))


@dataclass(frozen=True)
class WithCooldown(Schedule):
    """Follow a schedule, and from one step on a straight line to zero.

    Formula: the schedule for t < ``start``; from then on its value at ``start``, times ``1 - (t - start) / length``, or
    unchanged if ``length`` is None. Before that step the schedule reads the clock ``planned``. The run now ends earlier
    than that clock says.

    Example:
        >>> WithCooldown(WSD(0, "25%"), 2, 4, Clock(100)).factors(6)
        [1.0, 1.0, 1.0, 0.75, 0.5, 0.25]
    """

    schedule: Schedule
    start: int
    length: int | None
    planned: Clock

    needs_total = False

    def _factor(self, step: int, clock: Clock) -> float:
        value = self.schedule(min(step, self.start), self.planned)
        if self.length is None or step < self.start:
            return value
        return value * max(0.0, 1.0 - (step - self.start) / self.length)

    def describe(self, clock: Clock) -> str:
        """Say it in one line, such as ``constant 1, left at step 500 for a line to 0 over 100 steps``."""
        rest = "held" if self.length is None else f"left at step {self.start} for a line to 0 over {self.length} steps"
        return f"{self.schedule.describe(self.planned)}, {rest}"


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)
