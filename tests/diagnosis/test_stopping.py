"""Prechelt's criteria stop where they should, and only where the schedule lets them ask."""

import pytest

from lr_lightning.diagnosis.early_stopping import Phases, stop_reason
from lr_lightning.schedules import (
    WSD,
    Clock,
    Constant,
    Cosine,
    InverseSqrt,
    OneCycle,
    Restarts,
    Schedule,
    Step,
    Triangular,
    Warmup,
)


def _first(criterion: str, validation: list[float], training: list[float], threshold: float, strip: int) -> int | None:
    """After how many validations it stops."""
    for n in range(1, len(validation) + 1):
        if stop_reason(criterion, validation[:n], training[:n], threshold, strip):
            return n
    return None


def test_each_criterion_stops_after_the_rise_and_none_without_one() -> None:
    validation = [1.0, 0.8, 0.6, 0.5, 0.52, 0.55, 0.6, 0.65, 0.7, 0.8]
    training = [1.0, 0.8, 0.6, 0.4, 0.3, 0.25, 0.22, 0.21, 0.2, 0.2]
    assert _first("gl", validation, training, 5.0, 5) == 6  # 10 % above the best
    assert _first("gl", validation, training, 50.0, 5) == 10
    assert _first("up", validation, training, 2, 2) == 8  # ends of strips: .8 .5 .55 .65
    assert _first("pq", validation, training, 0.2, 5) == 10
    falling = sorted(validation, reverse=True)
    assert [_first(c, falling, training, t, 2) for c, t in (("gl", 5.0), ("up", 1), ("pq", 0.1))] == [None] * 3


CLOCK = Clock(200, steps_per_epoch=10)


@pytest.mark.parametrize(
    ("schedule", "counting"),
    [
        (Constant(), "xxxxxxxxxxxxxxxxxxxx"),
        (Warmup("10%", Cosine()), "..xxxxxxxxxxxxxxxxxx"),
        (InverseSqrt("5%"), "xxxxxxxxxxxxxxxxxxxx"),
        (WSD(), "................xxxx"),  # the cooldown is its last fifth
        (Step("34%"), ".............xxxxxxx"),  # after the last drop
        (Triangular(0.1, "10%"), "...x...x...x...x...x"),  # the low ends
        (Restarts(Cosine(), "14.3%", 2), ".x.....x...........x"),
        (OneCycle(), "......xxxxxxxxxxxxxx"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Schedule) else "",
)
def test_which_validations_count(schedule: Schedule, counting: str) -> None:
    phases = Phases(lambda step: schedule(step, CLOCK), 200)
    assert "".join("x" if phases.counts(10 * n, 10 * (n - 1)) else "." for n in range(1, 21)) == counting


def test_a_schedule_without_a_known_end() -> None:
    clock = Clock(None)
    cycles = Triangular(0.1, 20)
    phases = Phases(lambda step: cycles(step, clock))
    assert [n for n in range(1, 13) if phases.counts(10 * n, 10 * (n - 1))] == [4, 8, 12]
    flat = Phases(lambda step: 1.0)
    assert all(flat.counts(10 * n, 10 * (n - 1)) for n in range(1, 13))
