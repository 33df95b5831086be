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
    """The examples that one process uses for an update: the size of a batch, and batches per update.

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
    """Read the epochs at which a batch grows: rising, in epochs or percent of the run's epochs.

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

    Milestones are rounded to whole epochs, halves up, and are never before the end of the first epoch. Without
    ``epochs`` (only the steps are limited) the list ends with the last milestone, and no milestone may be a percentage.

    >>> milestone_multiples(["2 epochs", "75%"], 5, epochs=4)
    (1.0, 1.0, 5.0, 25.0)
    """
    check_number("factor", factor, low=1.0, above=True)
    at = []
    for milestone in parse_milestones(milestones):
        epoch = milestone.amount
        if milestone.unit == "percent":
            if epochs is None:
                raise ArgumentError(
                    f"milestones: '{milestone}' of what? Give Trainer(max_epochs=...), or write it in epochs."
                )
            epoch = epoch * epochs / 100
        at.append(max(1, half_up(epoch)))
    if sorted(at) != at:  # possible with two units
        given = ", ".join(f"{epoch} ({milestone})" for epoch, milestone in zip(at, milestones, strict=True))
        raise ArgumentError(f"must rise, got epochs {given} of {epochs}", "milestones")
    listed = max(at) + 1 if epochs is None else epochs
    return tuple(float(factor ** sum(epoch >= start for start in at)) for epoch in range(listed))


def mirror_multiples(schedule: Schedule, epochs: int, updates: int) -> tuple[float, ...]:
    """Return the batch size of each epoch as a multiple of the first one, growing as the schedule would lower the lr.

    Formula: ``highest factor so far / factor at the epoch's start``, both for a run with ``updates`` in every epoch. So
    a warmup does not change the batch. The multiple is inf if the schedule is at 0.

    >>> from lr_lightning.schedules import Step
    >>> mirror_multiples(Step("2 epochs", gamma=0.2), epochs=5, updates=391)
    (1.0, 1.0, 5.0, 5.0, 25.0)
    """
    clock = Clock(epochs * updates, steps_per_epoch=updates)
    peak, multiples = 0.0, []
    for epoch in range(epochs):
        factor = schedule(epoch * updates, clock)
        peak = max(peak, factor)
        multiple = math.inf if factor == 0 else peak / factor
        # The quotient of two rounded factors may miss a whole multiple by a few bits.
        if math.isfinite(multiple) and abs(multiple - round(multiple)) <= _ROUNDING * multiple:
            multiple = float(round(multiple))
        multiples.append(multiple)
        if epoch and multiples[-1] < multiples[-2] * (1 - _ROUNDING):
            raise ArgumentError(
                f"mirror: {schedule!r} rises again in epoch {epoch}, and a batch can only grow."
                " Give a schedule that does not rise after it has fallen."
            )
    return tuple(multiples)


def grown(
    examples: float, base: BatchSize, *, largest: int | None = None, at_least: int | None = None, fixed: bool = False
) -> BatchSize:
    """Return the nearest update to a number of examples: it grows first by its batch size, then by accumulation.

    Neither falls below ``base``, nor the size below ``at_least``, the size reached before. If ``largest``, the limit on
    a batch, binds, the accumulated batches are of nearly equal size. ``fixed`` keeps the size.

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

    >>> ideal_updates(50_000, [128] * 200)
    Fraction(78125, 1)
    >>> ideal_updates(50_000, [128] * 60 + [640] * 60 + [3200] * 40 + [16000] * 40)
    Fraction(28875, 1)
    """
    return sum((Fraction(examples, size) for size in sizes), Fraction())
