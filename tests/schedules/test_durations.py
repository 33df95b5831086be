"""Durations: what a person may write, and what is refused and how."""

import re
from fractions import Fraction
from typing import Any

import pytest

from lr_lightning.schedules import Duration, parse_duration
from lr_lightning.schedules.clock import half_up


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        (500, 500, "steps"),
        ("500", 500, "steps"),
        ("1 step", 1, "steps"),
        (" 500 steps ", 500, "steps"),
        ("5 epochs", 5, "epochs"),
        ("1 epoch", 1, "epochs"),
        ("0.1 epochs", Fraction(1, 10), "epochs"),
        ("10%", 10, "percent"),
        ("2.5 %", Fraction(5, 2), "percent"),
        (".5%", Fraction(1, 2), "percent"),
        (0, 0, "steps"),
    ],
)
def test_reads(text: Any, amount: Any, unit: str) -> None:
    duration = parse_duration(text)
    assert duration == Duration(Fraction(amount), unit)
    assert parse_duration(str(duration)) == duration
    assert parse_duration(duration) == duration


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0.1, "warmup must have a unit, got the bare float 0.1: 0.1 of what? Write a whole number of steps"),
        (1.0, "warmup must have a unit, got the bare float 1.0: 1.0 of what?"),
        (True, "warmup must be a duration, got True."),
        (None, "warmup must be a duration, got None."),
        ("ten", "warmup must be a duration, got 'ten'."),
        ("5 weeks", "warmup must be a duration, got '5 weeks'."),
        ("-5%", "warmup must be a duration, got '-5%'."),
        (-1, "warmup must be >= 0, got '-1'."),
        ("2.5 steps", "warmup must be a whole number of steps, got '2.5 steps'."),
        ("101%", "warmup must be at most '100%', got '101%'"),
    ],
)
def test_refuses(value: Any, message: str) -> None:
    parse_duration(1, "warmup")  # equal to True and 1.0, which a cache must not confuse
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_duration(value, "warmup")


@pytest.mark.parametrize("value", [0, "0 epochs", "0%"])
def test_zero_is_refused_where_it_makes_no_sense(value: Any) -> None:
    with pytest.raises(ValueError, match="every must be > 0"):
        parse_duration(value, "every", positive=True)


def test_halves_round_up() -> None:
    assert [half_up(Fraction(n, 4)) for n in (1, 2, 3, 6, 10)] == [0, 1, 1, 2, 3]
