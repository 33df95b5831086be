"""The clock a schedule reads: how many steps there are, and where epochs start."""

import math
import re
from bisect import bisect_right
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from typing import Literal

from lr_lightning.errors import ArgumentError, DurationError

__all__ = [
    "Clock",
    "Duration",
    "DurationError",
    "DurationLike",
    "epoch_clock",
    "fit_pieces",
    "half_up",
    "is_share",
    "parse_duration",
    "updates_per_epoch",
]

# --- Durations: a number of steps, of epochs, or a share of the piece they stand in.

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
    """Read a duration as a person writes it.

    Args:
        value: ``500``, ``"500"``, ``"500 steps"``, ``"2.5 epochs"``, ``"10%"`` or a ``Duration``.
        name: The argument's name, for the error message.
        positive: Refuse a duration of zero.

    Returns:
        The duration, exact.

    Raises:
        ValueError: ``value`` is not a duration, such as a bare float (0.1 of what?).

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
    """Whether a duration is a share of the piece it stands in, so that the piece's length must be known."""
    return parse_duration(value).unit == "percent"


def half_up(value: Fraction) -> int:
    """Round to the nearest integer, halves up.

    Example:
        >>> [half_up(Fraction(n, 2)) for n in (1, 3, 4)]
        [1, 2, 2]
    """
    return (2 * value.numerator + value.denominator) // (2 * value.denominator)


@dataclass(frozen=True)
class Clock:
    """What a schedule knows of time, in steps. Both facts are optional; a schedule asks only for what it needs.

    Attributes:
        total: Number of steps in the piece, None if it has no known end.
        steps_per_epoch: Steps in an epoch, where all epochs are equal; may be fractional.
        epoch_starts: Steps at which epochs start, where they differ: rising, from 0, the last one being the end of the
            last known epoch. Later epochs are as long as that one. At least two entries.
        origin: Where this piece begins, in steps of the run; 0 for the run itself.

    Raises:
        ValueError: An argument is out of range, or both descriptions of epochs are given.

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
    # A memo of pure results, so that reading durations costs a dict lookup a step. Not part of the value.
    _memo: dict[Hashable, object] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.total is not None and self.total < 0:
            raise ValueError(f"total must be >= 0, got {self.total}")
        if self.steps_per_epoch is not None:
            if self.epoch_starts is not None:
                raise ValueError("give steps_per_epoch or epoch_starts, not both")
            if not (math.isfinite(self.steps_per_epoch) and self.steps_per_epoch > 0):
                raise ValueError(f"steps_per_epoch must be > 0, got {self.steps_per_epoch}")
        if self.epoch_starts is not None:
            starts = tuple(self.epoch_starts)
            if len(starts) < 2 or starts[0] != 0 or any(b <= a for a, b in pairwise(starts)):
                raise ValueError(f"epoch_starts must rise from 0 and have at least 2 entries, got {starts}")
            object.__setattr__(self, "epoch_starts", starts)

    def slice(self, start: int, length: int | None) -> "Clock":
        """The clock of a piece of this one.

        Args:
            start: Where the piece begins, in steps of this clock.
            length: Its number of steps, None if it has no known end.

        Returns:
            A clock whose percentages are of ``length`` and whose epochs count from ``start``.
        """
        key = ("slice", start, length)
        piece = self._memo.get(key)
        if not isinstance(piece, Clock):
            piece = Clock(length, self.steps_per_epoch, self.epoch_starts, self.origin + start)
            self._memo[key] = piece
        return piece

    def need_total(self, who: str) -> int:
        """The total, or an error that names the missing argument.

        Raises:
            ValueError: The total is unknown.
        """
        if self.total is None:
            raise ValueError(
                f"{who} needs to know the number of steps and total_steps= is missing."
                " Give LRSchedule(total_steps=...), factors(total_steps=...) or Trainer(max_steps=...)."
            )
        return self.total

    def exact(self, duration: DurationLike, *, start: int = 0, times: int = 1) -> Fraction:
        """``times`` durations in steps, not yet rounded, from the step ``start`` of this clock.

        Raises:
            ValueError: The duration is in epochs or percent and the clock does not know them.
        """
        duration = parse_duration(duration)
        amount = duration.amount * times
        if duration.unit == "steps":
            return amount
        if duration.unit == "percent":
            return amount * self.need_total(f"the duration '{duration}'") / 100
        begin = Fraction(self.origin + start)
        return self._step_at(self._epoch_at(begin, duration) + amount, duration) - begin

    def exact_before(self, duration: DurationLike, end: int) -> Fraction:
        """The steps of a duration that ends at the step ``end`` of this clock, not yet rounded."""
        duration = parse_duration(duration)
        if duration.unit != "epochs":
            return self.exact(duration)
        stop = Fraction(self.origin + end)
        return stop - self._step_at(self._epoch_at(stop, duration) - duration.amount, duration)

    def steps(self, duration: DurationLike, *, times: int = 1) -> int:
        """``times`` durations in whole steps from the start of this clock, halves rounded up once, at the end.

        Raises:
            ValueError: The duration is in epochs or percent and the clock does not know them.
        """
        key = (duration, times)
        known = self._memo.get(key)
        if not isinstance(known, int):
            known = half_up(self.exact(duration, times=times))
            self._memo[key] = known
        return known

    def count(self, duration: DurationLike, step: int) -> int:
        """How many whole durations have passed at ``step``: the largest k with ``steps(duration, times=k) <= step``.

        Example:
            >>> [Clock(total=25).count("10%", t) for t in (2, 3, 5, 25)]  # each 2.5 steps: at 3, 5, 8, ...
            [0, 1, 2, 10]
        """
        key = ("count", duration)
        known = self._memo.get(key)
        if isinstance(known, tuple) and known[0] <= step < known[1]:
            return int(known[2])
        count = self._count(parse_duration(duration), step)
        # holds from this multiple to the next one; a run asks for one step after the other
        self._memo[key] = (self.steps(duration, times=count), self.steps(duration, times=count + 1), count)
        return count

    def _count(self, duration: Duration, step: int) -> int:
        # k durations, rounded, are <= step exactly when they are < step + 1/2 unrounded.
        reach = Fraction(2 * step + 1, 2)
        if duration.unit == "epochs":
            begin = Fraction(self.origin)
            passed = self._epoch_at(begin + reach, duration) - self._epoch_at(begin, duration)
            ratio = passed / duration.amount
        elif (length := self.exact(duration)) > 0:
            ratio = reach / length
        else:  # a share of nothing: a piece of 0 steps
            return 0
        return math.ceil(ratio) - 1

    def _epoch_length(self, duration: Duration) -> Fraction:
        if self.steps_per_epoch is None:
            raise ValueError(
                f"the duration '{duration}' needs to know where epochs start and steps_per_epoch= is missing."
                " Give it, or write the duration in steps."
            )
        # through text, so that 0.1 is a tenth
        return Fraction(str(self.steps_per_epoch))

    def _epoch_at(self, step: Fraction, duration: Duration) -> Fraction:
        """Position in epochs of a step of the run."""
        starts = self.epoch_starts
        if starts is None:
            return step / self._epoch_length(duration)
        index = min(bisect_right(starts, step), len(starts) - 1) - 1
        return index + (step - starts[index]) / (starts[index + 1] - starts[index])

    def _step_at(self, epoch: Fraction, duration: Duration) -> Fraction:
        """Step of the run at a position in epochs."""
        starts = self.epoch_starts
        if starts is None:
            return epoch * self._epoch_length(duration)
        index = min(max(math.floor(epoch), 0), len(starts) - 2)
        return starts[index] + (epoch - index) * (starts[index + 1] - starts[index])


def fit_pieces(clock: Clock, durations: Sequence[DurationLike | None], who: str) -> tuple[tuple[int, int | None], ...]:
    """Lay pieces end to end.

    Args:
        clock: The clock of the whole.
        durations: One for each piece. At most one None, which takes what the others leave.
        who: The name for error messages.

    Returns:
        (start, length) of each piece in steps; a length of None has no known end.

    Raises:
        DurationError: The pieces are longer than the whole; shows the sum.
        ValueError: A length needs a total or epochs that the clock does not know.

    Example:
        >>> fit_pieces(Clock(1000), ["5%", None, 200], "WSD")
        ((0, 50), (50, 750), (800, 200))
    """
    key = ("pieces", *durations)
    known = clock._memo.get(key)
    if isinstance(known, tuple):
        return known
    rest = durations.index(None) if None in durations else len(durations)
    exact: list[Fraction] = []
    position = 0
    for duration in durations[:rest]:
        exact.append(clock.exact(_given(duration), start=position))
        position += half_up(exact[-1])
    tail: list[Fraction] = []
    if rest + 1 < len(durations):
        end = clock.need_total(f"{who}, with a piece that ends before the end,")
        for duration in reversed(durations[rest + 1 :]):
            tail.append(clock.exact_before(_given(duration), end))
            end -= half_up(tail[-1])
    exact += reversed(tail)
    if clock.total is not None and sum(exact) > clock.total:
        given = (duration for duration in durations if duration is not None)
        terms = " + ".join(f"{_number(x)} ({parse_duration(d)})" for x, d in zip(exact, given, strict=True))
        total = f"= {_number(sum(exact, Fraction()))} " if len(exact) > 1 else ""
        raise DurationError(f"{who}: {terms} {total}> {clock.total} steps in all. Shorten a duration or train longer.")
    layout = tuple(_place([half_up(x) for x in exact], rest, len(durations), clock.total))
    clock._memo[key] = layout
    return layout


def _place(lengths: list[int], rest: int, pieces: int, total: int | None) -> list[tuple[int, int | None]]:
    """Starts and lengths, given the rounded lengths of all pieces but the one at ``rest``."""
    if total is not None:
        # What fits exactly may not fit once halves are rounded up (50% + 50% of 1 step): later pieces give way.
        left = total
        for i, length in enumerate(lengths):
            lengths[i] = min(length, left)
            left -= lengths[i]
    every: list[int | None] = [*lengths]
    if rest < pieces:
        every.insert(rest, None if total is None else total - sum(lengths))
    placed: list[tuple[int, int | None]] = []
    start = 0
    for piece in every:
        placed.append((start, piece))
        start += piece or 0
    return placed


def _given(duration: DurationLike | None) -> DurationLike:
    if duration is None:
        raise ValueError("at most one piece may have the duration None")
    return duration


def _number(value: Fraction) -> str:
    return str(value) if value.denominator == 1 else f"{float(value):g}"


# --- From batches and accumulation to updates: the one place where steps and epochs are planned.


def updates_per_epoch(batches: int, accumulate: int = 1) -> int:
    """Updates that an epoch makes: the last one may be of fewer batches.

    Args:
        batches: Batches in the epoch, >= 1.
        accumulate: Batches for one update, >= 1.

    Returns:
        ``ceil(batches / accumulate)``.

    Raises:
        ValueError: An argument is < 1.

    Example:
        >>> updates_per_epoch(10, accumulate=4)
        3
    """
    if batches < 1 or accumulate < 1:
        raise ValueError(f"batches and accumulate must be >= 1, got {batches} and {accumulate}")
    return -(-batches // accumulate)


def epoch_clock(updates: Sequence[int], *, ends: bool, totals: Iterable[int] = ()) -> Clock:
    """The clock of a run with these epochs.

    Args:
        updates: Updates in each epoch, at least one epoch; later ones are as the last.
        ends: Whether the run ends with the last of these epochs.
        totals: Further limits on the number of updates, such as max_steps.

    Returns:
        A clock with the smallest of all limits as its total, None if there is no limit.

    Example:
        >>> epoch_clock([10, 5, 5], ends=True)
        Clock(total=20, steps_per_epoch=None, epoch_starts=(0, 10, 15, 20), origin=0)
        >>> epoch_clock([10, 10], ends=True, totals=[15])
        Clock(total=15, steps_per_epoch=10, epoch_starts=None, origin=0)
    """
    limits = [*totals, *([sum(updates)] if ends else [])]
    total = min(limits, default=None)
    if len(set(updates)) == 1:
        return Clock(total, steps_per_epoch=updates[0])
    starts = [0]
    for count in updates:
        starts.append(starts[-1] + count)
    return Clock(total, epoch_starts=tuple(starts))
