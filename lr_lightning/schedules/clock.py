"""Time as a schedule sees it: durations, the clock that turns them into steps, and the clock of a planned run."""

import itertools
import math
import re
from bisect import bisect_right
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from typing import Literal

from lr_lightning.errors import ArgumentError, DurationError

__all__ = [
    "Clock",
    "Duration",
    "DurationLike",
    "epoch_clock",
    "fit_pieces",
    "half_up",
    "is_share",
    "parse_duration",
    "updates_per_epoch",
]

_PATTERN = re.compile(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*(steps?|epochs?|%)?\s*", re.ASCII)
_HOW = "Write a whole number of steps (500 or '500 steps'), '5 epochs', or '10%'."


@dataclass(frozen=True)
class Duration:
    """A length of time with its unit.

    Attributes:
        amount: How many of ``unit``, exact, never negative. For ``"percent"`` 10 means ten percent.
        unit: ``"steps"``, ``"epochs"`` or ``"percent"`` (of the piece the duration stands in).
    """

    amount: Fraction
    unit: Literal["steps", "epochs", "percent"]

    def __str__(self) -> str:
        number = f"{float(self.amount):g}" if self.amount.denominator > 1 else str(self.amount)
        if self.unit == "percent":
            return f"{number}%"
        return f"{number} {self.unit[:-1] if self.amount == 1 else self.unit}"


DurationLike = int | str | Duration
"""What a person may write for a duration: ``500``, ``"500 steps"``, ``"5 epochs"``, ``"10%"``."""


@lru_cache(maxsize=4096, typed=True)  # typed: 1, 1.0 and True are one key otherwise
def parse_duration(value: DurationLike, name: str = "duration", *, positive: bool = False) -> Duration:
    """Read a duration: ``500``, ``"500"``, ``"500 steps"``, ``"2.5 epochs"``, ``"10%"`` or a ``Duration``.

    The errors name the argument ``name``; ``positive`` refuses a duration of zero.

    Raises:
        ArgumentError: ``value`` is not a duration, such as a bare float (0.1 of what?).

    Example:
        >>> parse_duration("2.5 epochs")
        Duration(amount=Fraction(5, 2), unit='epochs')
        >>> str(parse_duration(500))
        '500 steps'
    """
    if isinstance(value, Duration):
        duration = value
    elif isinstance(value, float):
        raise ArgumentError(f"must have a unit, got the bare float {value!r}: {value!r} of what? {_HOW}", name)
    elif isinstance(value, int) and not isinstance(value, bool):
        duration = Duration(Fraction(value), "steps")
    elif isinstance(value, str):
        duration = _parse_text(value, name)
    else:
        raise ArgumentError(f"must be a duration, got {value!r}. {_HOW}", name)
    if duration.amount < 0 or (positive and duration.amount == 0):
        raise ArgumentError(f"must be {'>' if positive else '>='} 0, got {str(value)!r}. {_HOW}", name)
    return duration


def _parse_text(text: str, name: str) -> Duration:
    match = _PATTERN.fullmatch(text)
    if match is None:
        raise ArgumentError(f"must be a duration, got {text!r}. {_HOW}", name)
    amount, unit = Fraction(match[1]), match[2] or "steps"
    if unit == "%":
        if amount > 100:
            raise ArgumentError(f"must be at most '100%', got {text!r}", name)
        return Duration(amount, "percent")
    if unit.startswith("epoch"):
        return Duration(amount, "epochs")
    if amount.denominator != 1:
        raise ArgumentError(f"must be a whole number of steps, got {text!r}. {_HOW}", name)
    return Duration(amount, "steps")


def is_share(value: DurationLike) -> bool:
    """Check whether a duration is a percentage, so that it needs the length of the piece it stands in."""
    return parse_duration(value).unit == "percent"


def half_up(value: Fraction) -> int:
    """Round to the nearest integer, halves up.

    >>> [half_up(Fraction(n, 2)) for n in (1, 3, 4)]
    [1, 2, 2]
    """
    return (2 * value.numerator + value.denominator) // (2 * value.denominator)


@dataclass(frozen=True)
class Clock:
    """What a schedule knows about time, in steps. A schedule asks only for what it needs.

    Attributes:
        total: Number of steps in the piece, None if it has no known end.
        steps_per_epoch: Steps in an epoch if all epochs are equal; may be fractional.
        epoch_starts: Steps at which epochs start if epochs differ: rising from 0, at least two entries. The last one is
            the end of the last known epoch; later epochs are as long as that one.
        origin: Where this piece begins, in steps of the run.

    Raises:
        ArgumentError: An argument is out of range, both descriptions of epochs are given, or a method is asked for a
            duration in epochs or percent that the clock does not know.

    Example:
        >>> Clock(1000, steps_per_epoch=100).steps("2.5 epochs")
        250
        >>> Clock(1000).slice(200, 500).steps("10%")
        50
        >>> Clock(40, epoch_starts=(0, 20, 30, 40)).steps("2 epochs")
        30
    """

    total: int | None = None
    steps_per_epoch: float | None = None
    epoch_starts: tuple[int, ...] | None = None
    origin: int = 0
    # A cache of pure results, so that a duration costs one dict lookup per step. Not part of the value.
    _memo: dict[Hashable, object] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.total is not None and self.total < 0:
            raise ArgumentError(f"total must be >= 0, got {self.total}")
        if self.steps_per_epoch is not None:
            if self.epoch_starts is not None:
                raise ArgumentError("give steps_per_epoch or epoch_starts, not both")
            if not (math.isfinite(self.steps_per_epoch) and self.steps_per_epoch > 0):
                raise ArgumentError(f"steps_per_epoch must be > 0, got {self.steps_per_epoch}")
        if self.epoch_starts is not None:
            starts = tuple(self.epoch_starts)
            if len(starts) < 2 or starts[0] != 0 or any(b <= a for a, b in itertools.pairwise(starts)):
                raise ArgumentError(f"epoch_starts must rise from 0 and have at least 2 entries, got {starts}")
            object.__setattr__(self, "epoch_starts", starts)

    def slice(self, start: int, length: int | None) -> "Clock":
        """Return the clock of a piece: percentages are of its ``length``, epochs count from its ``start``."""
        key = ("slice", start, length)
        piece = self._memo.get(key)
        if not isinstance(piece, Clock):
            piece = self._memo[key] = Clock(length, self.steps_per_epoch, self.epoch_starts, self.origin + start)
        return piece

    def need_total(self, who: str) -> int:
        """Return the total; an unknown one is an ArgumentError that names ``who`` and the missing argument."""
        if self.total is None:
            raise ArgumentError(
                f"{who} needs to know the number of steps and total_steps= is missing."
                " Give LRSchedule(total_steps=...), factors(total_steps=...) or Trainer(max_steps=...)."
            )
        return self.total

    def exact(self, duration: DurationLike, *, start: int = 0, times: int = 1) -> Fraction:
        """Return ``times`` durations from the step ``start`` of this clock, in steps, not rounded."""
        duration = parse_duration(duration)
        amount = duration.amount * times
        if duration.unit == "steps":
            return amount
        if duration.unit == "percent":
            return amount * self.need_total(f"the duration '{duration}'") / 100
        begin = Fraction(self.origin + start)
        return self._step_at(self._epoch_at(begin, duration) + amount, duration) - begin

    def exact_before(self, duration: DurationLike, end: int) -> Fraction:
        """Return the steps of a duration that ends at the step ``end`` of this clock, not rounded."""
        duration = parse_duration(duration)
        if duration.unit != "epochs":
            return self.exact(duration)
        stop = Fraction(self.origin + end)
        return stop - self._step_at(self._epoch_at(stop, duration) - duration.amount, duration)

    def steps(self, duration: DurationLike, *, times: int = 1) -> int:
        """Return ``times`` durations from the start of this clock in whole steps; their sum is rounded, halves up."""
        key = (duration, times)
        known = self._memo.get(key)
        if not isinstance(known, int):
            known = self._memo[key] = half_up(self.exact(duration, times=times))
        return known

    def count(self, duration: DurationLike, step: int) -> int:
        """Count the durations that have passed at ``step``: the largest k with ``steps(duration, times=k) <= step``.

        >>> [Clock(total=25).count("10%", t) for t in (2, 3, 5, 25)]  # each 2.5 steps: at 3, 5, 8, ...
        [0, 1, 2, 10]
        """
        key = ("count", duration)
        known = self._memo.get(key)
        if isinstance(known, tuple) and known[0] <= step < known[1]:
            return int(known[2])
        count = self._count(parse_duration(duration), step)
        # The count holds from this multiple to the next, and a run asks for consecutive steps.
        self._memo[key] = (self.steps(duration, times=count), self.steps(duration, times=count + 1), count)
        return count

    def _count(self, duration: Duration, step: int) -> int:
        # k durations, rounded, are <= step exactly if they are < step + 1/2 unrounded.
        reach = Fraction(2 * step + 1, 2)
        if duration.unit == "epochs":
            begin = Fraction(self.origin)
            passed = self._epoch_at(begin + reach, duration) - self._epoch_at(begin, duration)
            ratio = passed / duration.amount
        elif (length := self.exact(duration)) > 0:
            ratio = reach / length
        else:  # a percentage of a piece of 0 steps
            return 0
        return math.ceil(ratio) - 1

    def _epoch_length(self, duration: Duration) -> Fraction:
        if self.steps_per_epoch is None:
            raise ArgumentError(
                f"the duration '{duration}' needs to know where epochs start and steps_per_epoch= is missing."
                " Give it, or write the duration in steps."
            )
        # through text, so that 0.1 is exactly a tenth
        return Fraction(str(self.steps_per_epoch))

    def _epoch_at(self, step: Fraction, duration: Duration) -> Fraction:
        """Return the position in epochs of a step of the run."""
        starts = self.epoch_starts
        if starts is None:
            return step / self._epoch_length(duration)
        index = min(bisect_right(starts, step), len(starts) - 1) - 1
        return index + (step - starts[index]) / (starts[index + 1] - starts[index])

    def _step_at(self, epoch: Fraction, duration: Duration) -> Fraction:
        """Return the step of the run at a position in epochs."""
        starts = self.epoch_starts
        if starts is None:
            return epoch * self._epoch_length(duration)
        index = min(max(math.floor(epoch), 0), len(starts) - 2)
        return starts[index] + (epoch - index) * (starts[index + 1] - starts[index])


def fit_pieces(clock: Clock, durations: Sequence[DurationLike | None], who: str) -> tuple[tuple[int, int | None], ...]:
    """Lay pieces end to end; return (start, length) of each in steps. A piece of length None has no known end.

    At most one duration is None: that piece takes the steps that the others leave. A DurationError shows the sum of
    pieces that are longer than the whole.

    >>> fit_pieces(Clock(1000), ["5%", None, 200], "WSD")
    ((0, 50), (50, 750), (800, 200))
    """
    key = ("pieces", *durations)
    known = clock._memo.get(key)
    if isinstance(known, tuple):
        return known
    given = [parse_duration(duration) for duration in durations if duration is not None]
    if len(given) < len(durations) - 1:
        raise ArgumentError("at most one piece may have the duration None")
    rest = durations.index(None) if None in durations else len(durations)  # index of the open piece
    exact: list[Fraction] = []
    tail: list[Fraction] = []
    position = 0
    for duration in given[:rest]:
        exact.append(clock.exact(duration, start=position))
        position += half_up(exact[-1])
    if rest < len(given):
        position = clock.need_total(f"{who}, with a piece that ends before the end,")
    for duration in reversed(given[rest:]):
        tail.append(clock.exact_before(duration, position))
        position -= half_up(tail[-1])
    exact += reversed(tail)
    if clock.total is not None and sum(exact) > clock.total:
        terms = " + ".join(f"{_number(x)} ({duration})" for x, duration in zip(exact, given, strict=True))
        total = f"= {_number(sum(exact, Fraction()))} " if len(exact) > 1 else ""
        raise DurationError(f"{who}: {terms} {total}> {clock.total} steps in all. Shorten a duration or train longer.")
    layout = clock._memo[key] = _place([half_up(x) for x in exact], rest, len(durations), clock.total)
    return layout


def _place(lengths: list[int], rest: int, pieces: int, total: int | None) -> tuple[tuple[int, int | None], ...]:
    """Return (start, length) of each piece, given the rounded lengths of all but the open one at index ``rest``."""
    if total is not None:
        # Pieces that fit exactly may not fit after rounding (50% + 50% of 1 step): shorten later pieces.
        left = total
        for i, length in enumerate(lengths):
            lengths[i] = min(length, left)
            left -= lengths[i]
    every: list[int | None] = [*lengths]
    if rest < pieces:
        every.insert(rest, None if total is None else total - sum(lengths))
    starts = itertools.accumulate((length or 0 for length in every), initial=0)
    return tuple(zip(starts, every, strict=False))


def _number(value: Fraction) -> str:
    return str(value) if value.denominator == 1 else f"{float(value):g}"


def updates_per_epoch(batches: int, accumulate: int = 1) -> int:
    """Count the updates of an epoch: ``ceil(batches / accumulate)``, as the last update may take fewer batches.

    >>> updates_per_epoch(10, accumulate=4)
    3
    """
    if batches < 1 or accumulate < 1:
        raise ArgumentError(f"batches and accumulate must be >= 1, got {batches} and {accumulate}")
    return -(-batches // accumulate)


def epoch_clock(updates: Sequence[int], *, ends: bool, totals: Iterable[int] = ()) -> Clock:
    """Return the clock of a planned run, given the updates of each epoch; later epochs are like the last one.

    The clock's total is the smallest limit: the sum if the run ``ends`` with these epochs, and ``totals``, such as
    max_steps.

    >>> epoch_clock([10, 5, 5], ends=True)
    Clock(total=20, steps_per_epoch=None, epoch_starts=(0, 10, 15, 20), origin=0)
    >>> epoch_clock([10, 10], ends=True, totals=[15])
    Clock(total=15, steps_per_epoch=10, epoch_starts=None, origin=0)
    """
    total = min([*totals, *([sum(updates)] if ends else [])], default=None)
    if len(set(updates)) == 1:
        return Clock(total, steps_per_epoch=updates[0])
    return Clock(total, epoch_starts=tuple(itertools.accumulate(updates, initial=0)))
