"""Durations, the clock that turns them into steps, pieces laid end to end, and the clock of a planned run."""

import re
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lr_lightning.errors import DurationError
from lr_lightning.schedules import Clock, Duration, parse_duration
from lr_lightning.schedules.clock import epoch_clock, fit_pieces, half_up, updates_per_epoch


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
def test_a_duration_is_read(text: Any, amount: Any, unit: str) -> None:
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
def test_a_duration_is_refused(value: Any, message: str) -> None:
    parse_duration(1, "warmup")  # equal to True and 1.0, which a cache must not confuse
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_duration(value, "warmup")


@pytest.mark.parametrize("value", [0, "0 epochs", "0%"])
def test_zero_is_refused_where_it_makes_no_sense(value: Any) -> None:
    with pytest.raises(ValueError, match="every must be > 0"):
        parse_duration(value, "every", positive=True)


def test_halves_round_up() -> None:
    assert [half_up(Fraction(n, 4)) for n in (1, 2, 3, 6, 10)] == [0, 1, 1, 2, 3]


@pytest.mark.parametrize(
    ("duration", "steps"),
    [(7, 7), ("7 steps", 7), ("10%", 3), ("50%", 13), ("2 epochs", 5), ("3 epochs", 8), ("0.4 epochs", 1)],
)
def test_steps_of_a_duration(duration: Any, steps: int) -> None:
    assert Clock(25, steps_per_epoch=2.5).steps(duration) == steps  # 2.5, 12.5, 7.5: halves up


def test_a_piece_has_its_own_hundred_percent_and_its_own_first_epoch() -> None:
    piece = Clock(1000, epoch_starts=(0, 100, 110, 130)).slice(100, 40)
    assert piece.steps("50%") == 20
    assert [piece.steps(f"{n} epochs") for n in (1, 2, 3)] == [10, 30, 50]  # after the list: as long as its last


def test_a_piece_that_starts_within_an_epoch() -> None:
    piece = Clock(epoch_starts=(0, 100, 120)).slice(50, None)
    assert piece.steps("1 epoch") == 60  # half of 100, half of 20
    assert piece.slice(50, None).steps("1 epoch") == 20


@given(st.integers(1, 60), st.sampled_from([1, 3, 2.5, 7.3]), st.integers(0, 100), st.integers(0, 30))
@settings(deadline=None, derandomize=True, max_examples=100)
def test_count_is_the_inverse_of_steps(quarters: int, per_epoch: float, step: int, origin: int) -> None:
    duration = f"{quarters / 4} epochs"
    for clock in (Clock(steps_per_epoch=per_epoch), Clock(epoch_starts=(0, 4, 5, 30)).slice(origin, None)):
        count = clock.count(duration, step)
        assert clock.steps(duration, times=count) <= step < clock.steps(duration, times=count + 1)


def test_roundings_do_not_add_up() -> None:
    clock = Clock(steps_per_epoch=390.625)
    assert clock.steps("1 epoch", times=200) == 78_125


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"total": -1}, "total must be >= 0, got -1"),
        ({"steps_per_epoch": 0}, "steps_per_epoch must be > 0, got 0"),
        ({"steps_per_epoch": float("nan")}, "steps_per_epoch must be > 0, got nan"),
        ({"epoch_starts": (0,)}, "epoch_starts must rise from 0 and have at least 2 entries, got (0,)"),
        ({"epoch_starts": (1, 2)}, "epoch_starts must rise from 0"),
        ({"epoch_starts": (0, 5, 5)}, "epoch_starts must rise from 0"),
        ({"epoch_starts": (0, 5), "steps_per_epoch": 5}, "give steps_per_epoch or epoch_starts, not both"),
    ],
)
def test_bad_clocks(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Clock(**arguments)


def test_missing_facts_are_named() -> None:
    with pytest.raises(ValueError, match=re.escape("the duration '5%' needs to know the number of steps and total_st")):
        Clock().steps("5%")
    with pytest.raises(
        ValueError, match=re.escape("the duration '5 epochs' needs to know where epochs start and steps")
    ):
        Clock(100).steps("5 epochs")


@pytest.mark.parametrize(
    ("total", "durations", "layout"),
    [
        (1000, ["5%", None, "20%"], ((0, 50), (50, 750), (800, 200))),
        (1000, [200], ((0, 200),)),
        (1, ["50%", "50%"], ((0, 1), (1, 0))),  # both round up to 1
        (3, ["50%", None, "50%"], ((0, 2), (2, 0), (2, 1))),
        (0, ["50%", None, "50%"], ((0, 0), (0, 0), (0, 0))),
        (None, [10, None], ((0, 10), (10, None))),
        (None, [10, 20], ((0, 10), (10, 20))),
    ],
)
def test_pieces_end_to_end(total: int | None, durations: Any, layout: Any) -> None:
    assert fit_pieces(Clock(total), durations, "Join") == layout


def test_epochs_of_a_last_piece_count_from_the_end() -> None:
    clock = Clock(130, epoch_starts=(0, 100, 110, 130))
    assert fit_pieces(clock, ["1 epoch", None, "1 epoch"], "Join") == ((0, 100), (100, 10), (110, 20))


@pytest.mark.parametrize(
    ("durations", "message"),
    [
        ([500, None], "Join: 500 (500 steps) > 400 steps in all."),
        (["300 steps", None, "50%"], "Join: 300 (300 steps) + 200 (50%) = 500 > 400 steps in all."),
        (["3 epochs", "1 epoch", 150], "Join: 225 (3 epochs) + 75 (1 epoch) + 150 (150 steps) = 450 > 400 steps"),
    ],
)
def test_what_does_not_fit_shows_the_sum(durations: Any, message: str) -> None:
    with pytest.raises(DurationError, match=re.escape(message)):
        fit_pieces(Clock(400, steps_per_epoch=75), durations, "Join")


def test_a_plan_of_epochs() -> None:
    assert updates_per_epoch(10, 4) == 3
    assert updates_per_epoch(8, 4) == 2
    assert epoch_clock([10, 10], ends=False) == Clock(None, steps_per_epoch=10)
    assert epoch_clock([10, 5], ends=True, totals=[40]) == Clock(15, epoch_starts=(0, 10, 15))
    with pytest.raises(ValueError, match="batches and accumulate must be >= 1, got 0 and 1"):
        updates_per_epoch(0)
