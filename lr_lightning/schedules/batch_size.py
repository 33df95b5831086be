"""Growing the batch instead of decaying the rate: planned batch sizes and counts of updates, as plain arithmetic."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from lr_lightning._checks import check_number
from lr_lightning.errors import ArgumentError
from lr_lightning.schedules.base import Schedule
from lr_lightning.schedules.clock import Clock, Duration, DurationLike, half_up, parse_duration

__all__ = ["BatchSize", "grown", "ideal_updates", "milestone_multiples", "mirror_multiples", "parse_milestones"]

_ROUNDING = 1e-9  # of sizes that are whole numbers but for the last bits


@dataclass(frozen=True)
class BatchSize:
    """What one process takes for an update.

    Attributes:
        size: Examples in a batch, >= 1.
        accumulate: Batches in an update, >= 1.

    Example:
        >>> BatchSize(320, accumulate=2).examples
        640
    """

    size: int
    accumulate: int = 1

    @property
    def examples(self) -> int:
        """Examples in an update."""
        return self.size * self.accumulate


def parse_milestones(milestones: Sequence[DurationLike]) -> tuple[Duration, ...]:
    """Read the epochs at which a batch grows.

    Args:
        milestones: ``"60 epochs"`` or ``"30%"`` (of the run's epochs), rising. A batch changes between two epochs only,
            so steps are refused.

    Returns:
        The durations, exact.

    Raises:
        ValueError: There is none, one is no duration in epochs or percent, or they do not rise.

    Example:
        >>> [str(milestone) for milestone in parse_milestones(["60 epochs", "80%"])]
        ['60 epochs', '80%']
    """
    if isinstance(milestones, str) or not isinstance(milestones, Sequence) or not milestones:
        raise ArgumentError(f"must be a list such as ['30%', '60%'], got {milestones!r}", "milestones")
    parsed = tuple(parse_duration(milestone, "milestones", positive=True) for milestone in milestones)
    for duration in parsed:
        if duration.unit == "steps":
            raise ArgumentError(
                f"must be epochs, since a batch grows between two of them, got '{duration}'."
                f" Write '{duration.amount} epochs' or a percentage such as '30%'.",
                "milestones",
            )
    for first, second in pairwise(parsed):
        if first.unit == second.unit and second.amount <= first.amount:
            raise ArgumentError(f"must rise, got '{first}' before '{second}'", "milestones")
    return parsed


def milestone_multiples(
    milestones: Sequence[DurationLike], factor: float, epochs: int | None = None
) -> tuple[float, ...]:
    """How many times its first batch each epoch takes: ``factor ** (milestones reached)``.

    Milestones are rounded to whole epochs, halves up, and never lie before the end of the first epoch.

    Args:
        milestones: As for :func:`parse_milestones`.
        factor: By which the batch grows at each, > 1.
        epochs: Epochs in the run; None where only the steps are limited, which allows no percentages.

    Returns:
        One multiple an epoch; without ``epochs`` up to where the batch stays as it is.

    Raises:
        ValueError: An argument is out of range, percentages have nothing to refer to, or the milestones do not rise.

    Example:
        >>> milestone_multiples(["2 epochs", "75%"], 5, epochs=4)
        (1.0, 1.0, 5.0, 25.0)
    """
    check_number("factor", factor, low=1.0, above=True)
    at = [_epoch(milestone, epochs) for milestone in parse_milestones(milestones)]
    if sorted(at) != at:  # of different units
        given = ", ".join(f"{epoch} ({milestone})" for epoch, milestone in zip(at, milestones, strict=True))
        raise ValueError(f"milestones must rise, got epochs {given} of {epochs}")
    listed = max(at) + 1 if epochs is None else epochs
    return tuple(float(factor ** sum(epoch >= start for start in at)) for epoch in range(listed))


def _epoch(milestone: Duration, epochs: int | None) -> int:
    if milestone.unit == "epochs":
        return max(1, half_up(milestone.amount))
    if epochs is None:
        raise ValueError(f"milestones: '{milestone}' of what? Give Trainer(max_epochs=...), or write it in epochs.")
    return max(1, half_up(milestone.amount * epochs / 100))


def mirror_multiples(schedule: Schedule, epochs: int, updates: int) -> tuple[float, ...]:
    """How many times its first batch each epoch takes, for the batch to grow as this schedule would lower the rate.

    Formula: ``highest factor so far / factor at the epoch's start``, both as they would be without growth. So a
    warm-up leaves the batch as it is.

    Args:
        schedule: The lr schedule to mirror.
        epochs: Epochs in the run, >= 1.
        updates: Updates in an epoch of the first batch size, >= 1.

    Returns:
        One multiple an epoch, not falling; inf where the schedule is at 0.

    Raises:
        ValueError: The schedule rises again after it has fallen: the batch would have to shrink.

    Example:
        >>> from lr_lightning.schedules import Step
        >>> mirror_multiples(Step("2 epochs", gamma=0.2), epochs=5, updates=391)
        (1.0, 1.0, 5.0, 5.0, 25.0)
    """
    clock = Clock(epochs * updates, steps_per_epoch=updates)
    factors = [schedule(epoch * updates, clock) for epoch in range(epochs)]
    peak, multiples = 0.0, []
    for epoch, factor in enumerate(factors):
        peak = max(peak, factor)
        # a quotient of two rounded factors: whole multiples are meant where they are this close
        multiple = math.inf if factor == 0 else peak / factor
        multiples.append(float(round(multiple)) if _close_to_whole(multiple) else multiple)
        if epoch and multiples[-1] < multiples[-2] * (1 - _ROUNDING):
            raise ValueError(
                f"mirror: {schedule!r} rises again in epoch {epoch}, and a batch can only grow."
                " Give a schedule that does not rise after it has fallen."
            )
    return tuple(multiples)


def _close_to_whole(value: float) -> bool:
    return math.isfinite(value) and abs(value - round(value)) <= _ROUNDING * value


def grown(
    examples: float, base: BatchSize, *, largest: int | None = None, at_least: int | None = None, fixed: bool = False
) -> BatchSize:
    """Bring an update to so many examples: by its batch's size as far as that goes, beyond it by accumulation.

    Args:
        examples: Examples in the update, finite.
        base: The size and accumulation at the start; neither becomes smaller.
        largest: Most examples in a batch; None for no limit.
        at_least: The size reached before, which the new one does not fall below.
        fixed: The size cannot change.

    Returns:
        The nearest size and accumulation. Where ``largest`` is passed, batches are of nearly equal size below it.

    Example:
        >>> grown(640, BatchSize(128))
        BatchSize(size=640, accumulate=1)
        >>> grown(1600, BatchSize(64), largest=512)
        BatchSize(size=400, accumulate=4)
        >>> grown(640, BatchSize(64, accumulate=2), fixed=True)
        BatchSize(size=64, accumulate=10)
    """
    size = max(base.size, at_least or base.size)
    if not fixed:
        batch = examples / base.accumulate
        parts = 1 if largest is None else max(1, math.ceil(batch / max(largest, base.size) - _ROUNDING))
        size = max(size, math.floor(batch / parts + 0.5))
    return BatchSize(size, max(base.accumulate, math.floor(examples / size + 0.5)))


def ideal_updates(examples: int, sizes: Iterable[int]) -> Fraction:
    """Updates if every example were used exactly once an epoch: ``sum of N / batch over the epochs``.

    Source: Smith, Kindermans, Ying & Le 2017 (1711.00489), section 5.1, whose counts these are.

    Args:
        examples: N, the examples in an epoch.
        sizes: Examples in an update, one an epoch.

    Returns:
        The count, not rounded.

    Example:
        >>> ideal_updates(50_000, [128] * 200)
        Fraction(78125, 1)
        >>> ideal_updates(50_000, [128] * 60 + [640] * 60 + [3200] * 40 + [16000] * 40)
        Fraction(28875, 1)
    """
    return sum((Fraction(examples, size) for size in sizes), Fraction())
