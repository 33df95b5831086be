"""Planned batch sizes and counts of updates, as plain numbers."""

import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lr_lightning.schedules import Constant, Cosine, Join, MultiStep, Restarts, Step, Warmup
from lr_lightning.schedules.batch_size import (
    BatchSize,
    grown,
    ideal_updates,
    milestone_multiples,
    mirror_multiples,
    parse_milestones,
)
from lr_lightning.schedules.clock import updates_per_epoch

PAPER = ["60 epochs", "120 epochs", "160 epochs"]


def test_the_papers_counts_of_updates() -> None:
    # 1711.00489, section 5.1: WRN-16-4 on CIFAR-10
    sizes = [int(128 * multiple) for multiple in milestone_multiples(PAPER, 5, epochs=200)]
    assert sizes == [128] * 60 + [640] * 60 + [3200] * 40 + [16000] * 40
    assert ideal_updates(50_000, [128] * 200) == 78_125
    assert ideal_updates(50_000, sizes) == 28_875


def test_what_a_loader_gives_for_them() -> None:
    sizes = [int(128 * multiple) for multiple in milestone_multiples(PAPER, 5, epochs=200)]
    assert sum(updates_per_epoch(-(-50_000 // size)) for size in sizes) == 60 * 391 + 60 * 79 + 40 * 16 + 40 * 4
    assert sum(50_000 // size for size in sizes) == 60 * 390 + 60 * 78 + 40 * 15 + 40 * 3


def test_percentages_are_of_the_epochs() -> None:
    assert milestone_multiples(["30%", "60%", "80%"], 5, epochs=200) == milestone_multiples(PAPER, 5, epochs=200)


@pytest.mark.parametrize(
    ("epochs", "expected"), [(1, [1]), (2, [1, 25]), (3, [1, 5, 125]), (5, [1, 1, 5, 25, 125]), (0, [])]
)
def test_short_runs_round_to_epochs_and_never_grow_in_the_first(epochs: int, expected: list[int]) -> None:
    assert list(milestone_multiples(["30%", "60%", "80%"], 5, epochs=epochs)) == expected


def test_without_a_last_epoch_they_are_listed_up_to_where_they_stay() -> None:
    assert milestone_multiples(["1 epoch", "3 epochs"], 2) == (1, 2, 2, 4)


def test_a_mirrored_schedule_gives_the_inverse_of_its_factor() -> None:
    assert mirror_multiples(MultiStep(("30%", "60%", "80%"), gamma=0.2), 10, 391) == milestone_multiples(
        ["3 epochs", "6 epochs", "8 epochs"], 5, epochs=10
    )
    assert mirror_multiples(Step("2 epochs", gamma=0.1), 5, 7) == (1, 1, 10, 10, 100)
    factors = Cosine().factors(8 * 10)
    assert mirror_multiples(Cosine(), 8, 10) == pytest.approx([1 / factors[10 * epoch] for epoch in range(8)])


def test_a_mirrored_warm_up_leaves_the_batch_as_it_is() -> None:
    multiples = mirror_multiples(Warmup("2 epochs", Constant()), 4, 10)
    assert multiples == (1, 1, 1, 1)


def test_a_mirrored_factor_of_zero_asks_for_everything() -> None:
    assert mirror_multiples(Join((Constant(), "1 epoch"), (Constant(0), None)), 2, 3) == (1, math.inf)


def test_a_mirrored_schedule_may_not_rise_again() -> None:
    with pytest.raises(ValueError, match=r"mirror: Restarts\(.* rises again in epoch 2, and a batch can only grow"):
        mirror_multiples(Restarts(Cosine(), first="2 epochs"), 4, 10)


@pytest.mark.parametrize(
    ("examples", "arguments", "expected"),
    [
        (64, {}, BatchSize(64)),
        (320, {}, BatchSize(320)),
        (320, {"largest": 320}, BatchSize(320)),
        (640, {"largest": 512}, BatchSize(320, 2)),
        (1600, {"largest": 512}, BatchSize(400, 4)),
        (8000, {"largest": 512, "at_least": 400}, BatchSize(500, 16)),
        (640, {"largest": 512, "at_least": 512}, BatchSize(512, 1)),
        (320, {"fixed": True}, BatchSize(64, 5)),
        (100, {"fixed": True}, BatchSize(64, 2)),
    ],
)
def test_size_first_then_accumulation(examples: float, arguments: dict[str, Any], expected: BatchSize) -> None:
    assert grown(examples, BatchSize(64), **arguments) == expected


def test_the_trainers_own_accumulation_stays() -> None:
    assert grown(1280, BatchSize(64, 4)) == BatchSize(320, 4)
    assert grown(1280, BatchSize(64, 4), largest=160) == BatchSize(160, 8)
    assert grown(1280, BatchSize(64, 4), fixed=True) == BatchSize(64, 20)


@given(
    size=st.integers(1, 1000),
    accumulate=st.integers(1, 8),
    multiple=st.floats(1, 1e4),
    largest=st.none() | st.integers(1, 5000),
    fixed=st.booleans(),
)
def test_an_update_is_never_smaller_and_near_what_was_asked_for(
    size: int, accumulate: int, multiple: float, largest: int | None, fixed: bool
) -> None:
    base = BatchSize(size, accumulate)
    found = grown(base.examples * multiple, base, largest=largest, fixed=fixed)
    assert found.size >= size
    assert found.accumulate >= accumulate
    assert found.size == size if fixed else largest is None or found.size <= max(largest, size)
    # at most half a batch off, by the rounding of the accumulation, and that of the size
    assert abs(found.examples - base.examples * multiple) <= found.size / 2 + found.accumulate


@pytest.mark.parametrize(
    ("milestones", "message"),
    [
        ([], "milestones must be a list such as ['30%', '60%'], got []"),
        ("30%", "milestones must be a list such as ['30%', '60%'], got '30%'"),
        ([60], "milestones must be epochs, since a batch grows between two of them, got '60 steps'. Write '60 epochs'"),
        ([0.3], "milestones must have a unit, got the bare float 0.3: 0.3 of what?"),
        (["0 epochs"], "milestones must be > 0, got '0 epochs'"),
        (["60%", "30%"], "milestones must rise, got '60%' before '30%'"),
        (["3 epochs", "3 epochs"], "milestones must rise, got '3 epochs' before '3 epochs'"),
        (["soon"], "milestones must be a duration, got 'soon'"),
    ],
)
def test_bad_milestones(milestones: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_milestones(milestones)


def test_milestones_of_two_units_rise_too() -> None:
    with pytest.raises(ValueError, match=re.escape("milestones must rise, got epochs 5 (50%), 3 (3 epochs) of 10")):
        milestone_multiples(["50%", "3 epochs"], 5, epochs=10)


def test_percentages_need_a_number_of_epochs() -> None:
    with pytest.raises(ValueError, match=r"milestones: '30%' of what\? Give Trainer\(max_epochs=...\)"):
        milestone_multiples(["30%"], 5)


@pytest.mark.parametrize("factor", [1, 0.2, math.inf, math.nan])
def test_a_batch_grows(factor: float) -> None:
    with pytest.raises(ValueError, match="factor must be > 1, got"):
        milestone_multiples(["1 epoch"], factor, epochs=2)
