"""One cycle, restarts and triangular cycles."""

import re

import pytest

from lr_lightning.errors import DurationError
from lr_lightning.schedules import (
    Clock,
    Constant,
    Linear,
    OneCycle,
    Restarts,
    Warmup,
)


def test_a_short_cycle_is_found_before_it_comes() -> None:
    schedule = Restarts(Warmup(3, Constant()), "30%")  # 2.7 steps: cycles of 3, 2, ...
    schedule(0, Clock(9))
    with pytest.raises(DurationError, match=re.escape("3 (3 steps) > 2 steps")):
        schedule.check(Clock(9))


def test_one_cycle_touches_its_three_values() -> None:
    schedule, clock = OneCycle("30%", start=0.1, end=0.001), Clock(10)
    assert [schedule(step, clock) for step in (0, 3, 10)] == [0.1, 1.0, 0.001]


def test_restarts_that_end_with_the_run_are_at_their_end() -> None:
    schedule = Restarts(Linear(1.0, 0.25), first=5, decay=0.5)
    clock = Clock(10)
    assert [schedule(step, clock) for step in (0, 5, 10, 11)] == [1.0, 0.5, 0.125, 0.125]
    assert schedule(10, Clock(12)) == 0.25
    assert schedule(0, Clock(0)) == 0.25
