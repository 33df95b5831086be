"""Grow the batch instead of decaying the lr: plan batch sizes and count updates, as plain arithmetic."""

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

_ROUNDING = 1e-9  # relative error of sizes that are whole numbers except for rounding


@dataclass(frozen=True)
class BatchSize:
    """The examples that one process uses for an update.

    Attributes:
        size: Examples per batch, >= 1.
        accumulate: Batches per update, >= 1.

    Example:
        >>> BatchSize(320, accumulate=2).examples
        640
    """

    size: int
    accumulate: int = 1

    @property
    def examples(self) -> int:
        """Examples per update."""
        return self.size * self.accumulate


def parse_milestones(milestones: Sequence[DurationLike]) -> tuple[Duration, ...]:
    """Read the epochs at which a batch grows.

    Args:
        milestones: ``"60 epochs"`` or ``"30%"`` (of the run's epochs), rising. Steps are refused, since a batch can
            only change between two epochs.

    Raises:
        ArgumentError: There is no milestone, one is no duration in epochs or percent, or they do not rise.

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
    """Return the batch size of each epoch as a multiple of the first one: ``factor ** (milestones reached)``.

    Milestones are rounded to whole epochs, halves up, and are never before the end of the first epoch.

    Args:
        milestones: As for :func:`parse_milestones`.
        factor: Growth of the batch at each milestone, > 1.
        epochs: Epochs in the run; None if only its steps are limited, and then no milestone may be a percentage.

    Returns:
        One multiple per epoch; without ``epochs`` up to the last milestone.

    Raises:
        ArgumentError: An argument is out of range, a percentage has no ``epochs``, or the milestones do not rise.

    Example:
        >>> milestone_multiples(["2 epochs", "75%"], 5, epochs=4)
        (1.0, 1.0, 5.0, 25.0)
    """
    check_number("factor", factor, low=1.0, above=True)
    at = [_epoch(milestone, epochs) for milestone in parse_milestones(milestones)]
    if sorted(at) != at:  # possible with two units
        given = ", ".join(f"{epoch} ({milestone})" for epoch, milestone in zip(at, milestones, strict=True))
        raise ArgumentError(f"must rise, got epochs {given} of {epochs}", "milestones")
    listed = max(at) + 1 if epochs is None else epochs
    return tuple(float(factor ** sum(epoch >= start for start in at)) for epoch in range(listed))


def _epoch(milestone: Duration, epochs: int | None) -> int:
    if milestone.unit == "epochs":
        return max(1, half_up(milestone.amount))
    if epochs is None:
        raise ArgumentError(f"milestones: '{milestone}' of what? Give Trainer(max_epochs=...), or write it in epochs.")
    return max(1, half_up(milestone.amount * epochs / 100))


def mirror_multiples(schedule: Schedule, epochs: int, updates: int) -> tuple[float, ...]:
    """Return the batch size of each epoch as a multiple of the first one, growing as the schedule would lower the lr.

    Formula: ``highest factor so far / factor at the epoch's start``, both for a run without growth. So a warm-up does
    not change the batch.

    Args:
        schedule: The lr schedule to mirror.
        epochs: Epochs in the run, >= 1.
        updates: Updates per epoch with the first batch size, >= 1.

    Returns:
        One multiple per epoch, never falling; inf if the schedule is at 0.

    Raises:
        ArgumentError: The schedule rises after it has fallen, so the batch would have to shrink.

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
        # The quotient of two rounded factors may miss a whole multiple by a few bits.
        multiple = math.inf if factor == 0 else peak / factor
        multiples.append(float(round(multiple)) if _close_to_whole(multiple) else multiple)
        if epoch and multiples[-1] < multiples[-2] * (1 - _ROUNDING):
            raise ArgumentError(
                f"mirror: {schedule!r} rises again in epoch {epoch}, and a batch can only grow."
                " Give a schedule that does not rise after it has fallen."
            )
    return tuple(multiples)


def _close_to_whole(value: float) -> bool:
    return math.isfinite(value) and abs(value - round(value)) <= _ROUNDING * value


def grown(
    examples: float, base: BatchSize, *, largest: int | None = None, at_least: int | None = None, fixed: bool = False
) -> BatchSize:
    """Grow an update to a number of examples: first by its batch size, then by accumulation.

    Args:
        examples: Examples per update, finite.
        base: Size and accumulation at the start; neither becomes smaller.
        largest: Most examples per batch; None for no limit.
        at_least: The size reached before; the new size is not below it.
        fixed: Keep the size and grow by accumulation only.

    Returns:
        The nearest size and accumulation. If ``largest`` binds, the accumulated batches are of nearly equal size.

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
    """Count the updates of a run in which each epoch uses every example once: the sum of N / batch over the epochs.

    Source: the counts of Smith, Kindermans, Ying & Le 2017 (arXiv 1711.00489), section 5.1.

    Args:
        examples: N, the examples in an epoch.
        sizes: Examples per update, one entry per epoch.

    Returns:
        The count, not rounded.

    Example:
        >>> ideal_updates(50_000, [128] * 200)
        Fraction(78125, 1)
        >>> ideal_updates(50_000, [128] * 60 + [640] * 60 + [3200] * 40 + [16000] * 40)
        Fraction(28875, 1)
    """
    return sum((Fraction(examples, size) for size in sizes), Fraction())
