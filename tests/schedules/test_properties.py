"""What holds for every family, however nested, at every total."""

import math
import pickle
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lr_lightning.schedules import (
    REX,
    WSD,
    Clock,
    Constant,
    Cosine,
    Custom,
    Exponential,
    InverseSqrt,
    Join,
    Linear,
    MultiStep,
    OneCycle,
    OneMinusSqrt,
    Polynomial,
    Product,
    Restarts,
    Schedule,
    Step,
    Triangular,
    Warmup,
)
from lr_lightning.schedules.base import blend

factors = st.floats(0.0, 2.0)
positive = st.floats(0.001, 2.0)
shares = st.integers(0, 100).map(lambda percent: f"{percent}%")
small_shares = st.integers(0, 50).map(lambda percent: f"{percent}%")
# what repeats or falls at its own pace may be as long as it likes
periods = st.one_of(
    st.integers(1, 40),
    st.integers(1, 40).map(lambda epochs: f"{epochs / 4} epochs"),
    st.integers(1, 100).map(lambda percent: f"{percent}%"),
)


def halve(step: int, clock: Clock) -> float:
    return 1.0 / (1 + step)


DECAYS = (Linear, Cosine, OneMinusSqrt, REX)

decays = st.one_of(
    *(st.builds(family, factors, factors) for family in DECAYS),
    st.builds(Polynomial, factors, factors, st.floats(0.1, 5.0)),
    st.builds(Exponential, positive, positive),
)
gammas = st.floats(0.01, 1.0)
leaves = st.one_of(
    decays,
    st.builds(Constant, factors),
    st.builds(InverseSqrt, periods),
    st.builds(Step, periods, gammas),
    st.builds(MultiStep, st.lists(shares, min_size=1, max_size=4).map(tuple), gammas),
    st.builds(
        Triangular, st.floats(0.0, 1.0), periods, st.none() | periods, st.sampled_from(["triangular", "triangular2"])
    ),
    st.builds(Triangular, st.floats(0.0, 1.0), periods, st.none() | periods, st.just("exp_range"), gammas),
    st.builds(OneCycle, shares, factors, factors, st.sampled_from(["cosine", "linear"])),
    st.builds(WSD, small_shares, small_shares, st.sampled_from(["1-sqrt", "linear", "cosine"]), factors),
    st.just(Custom(halve)),
)


def _composites(children: st.SearchStrategy[Schedule]) -> st.SearchStrategy[Schedule]:
    # A rise of constant ratio cannot aim at 0, so that shape is tested by itself.
    return st.one_of(
        st.builds(Warmup, shares, children, st.sampled_from(["linear", "cosine"]), st.none() | factors),
        st.builds(lambda a, b, x, y: Join((a, x), (b, None), (a, y)), children, children, small_shares, small_shares),
        st.builds(lambda a, b, x, y: Join((a, x), (b, y)), children, children, small_shares, small_shares),
        st.builds(Product, children, children),
        st.builds(Restarts, children, periods, st.integers(1, 3), gammas),
    )


schedules = st.recursive(leaves, _composites, max_leaves=4)
totals = st.sampled_from([0, 1, 2, 3, 7, 60])
clocks = st.one_of(
    st.builds(Clock, totals, st.sampled_from([1, 4, 2.5])),
    st.builds(Clock, totals, epoch_starts=st.just((0, 7, 9, 20))),
)

drawn = settings(deadline=None, derandomize=True, max_examples=100)

NEED_NO_TOTAL: list[Schedule] = [
    Constant(),
    InverseSqrt(10),
    Step(3),
    MultiStep((3, "2 epochs")),
    Triangular(0.1, 3, "1 epoch"),
    Restarts(Cosine(), 4, mult=2),
    Warmup(3, Constant()),
    Join((Linear(0, 1), 4), (Constant(), None)),
    Join((Linear(0, 1), 4), (Cosine(), "1 epoch")),
]
NEED_TOTAL: list[Schedule] = [
    Linear(),
    Cosine(),
    Exponential(),
    Polynomial(),
    OneMinusSqrt(),
    REX(),
    OneCycle(3),
    WSD(3, 3),
    InverseSqrt("10%"),
    Step("10%"),
    MultiStep((3, "10%")),
    Triangular(0.1, 3, "10%"),
    Restarts(Cosine(), "10%"),
    Warmup("10%", Constant()),
    Warmup(3, Cosine()),
    Join((Constant(), None), (Linear(), 4)),
    Join((Linear(0, 1), 4), (Cosine(), None)),
]


@drawn
@given(schedule=schedules, clock=clocks)
def test_finite_never_negative_and_defined_for_every_step(schedule: Schedule, clock: Clock) -> None:
    for step in range((clock.total or 0) + 3):
        value = schedule(step, clock)
        assert type(value) is float
        assert math.isfinite(value)
        assert value >= 0.0


@drawn
@given(schedule=schedules, clock=clocks)
def test_stays_at_its_end(schedule: Schedule, clock: Clock) -> None:
    total = clock.total or 0
    assert schedule(total + 1, clock) == schedule(total + 1000, clock) == schedule(total, clock)


@drawn
@given(schedule=schedules, clock=clocks)
def test_a_step_needs_no_history(schedule: Schedule, clock: Clock) -> None:
    forward = [schedule(step, clock) for step in range((clock.total or 0) + 1)]
    fresh = [
        schedule(step, Clock(clock.total, clock.steps_per_epoch, clock.epoch_starts))
        for step in reversed(range((clock.total or 0) + 1))
    ]
    assert forward == fresh[::-1]


@drawn
@given(schedule=schedules, clock=clocks)
def test_is_a_value(schedule: Schedule, clock: Clock) -> None:
    copy = pickle.loads(pickle.dumps(schedule))
    assert copy == schedule
    assert hash(copy) == hash(schedule)
    assert copy(1, clock) == schedule(1, clock)


@drawn
@given(schedule=schedules, clock=clocks)
def test_check_accepts_what_runs_and_describe_is_one_line(schedule: Schedule, clock: Clock) -> None:
    schedule.check(clock)
    assert "\n" not in schedule.describe(clock)
    assert schedule.describe(clock)


@drawn
@given(schedule=decays, total=st.integers(1, 200))
def test_ends_are_exact_and_bound_what_is_between(schedule: Any, total: int) -> None:
    values = [schedule(step, Clock(total)) for step in range(total + 1)]
    assert values[0] == schedule.start
    assert values[-1] == schedule.end
    low, high = sorted((schedule.start, schedule.end))
    assert all(low <= value <= high for value in values)
    # on one side always: rising or falling
    signs = {math.copysign(1, b - a) for a, b in pairwise(values) if not math.isclose(a, b, rel_tol=1e-12)}
    assert len(signs) <= 1


@drawn
@given(start=factors, end=factors)
def test_blend_is_exact_at_both_ends(start: float, end: float) -> None:
    assert blend(start, end, 1.0) == start
    assert blend(start, end, 0.0) == end


@drawn
@given(end=factors, shape=st.sampled_from(["1-sqrt", "linear", "cosine"]))
def test_wsd_starts_its_fall_at_exactly_one(end: float, shape: Any) -> None:
    schedule, clock = WSD(5, 10, shape, end), Clock(40)
    assert [schedule(step, clock) for step in (4, 29, 30, 40)] == [1.0, 1.0, 1.0, end]


@pytest.mark.parametrize("family", [Linear, Cosine, Exponential, Polynomial, OneMinusSqrt, REX])
def test_total_zero_is_at_the_end_and_total_one_at_the_start(family: Any) -> None:
    schedule = family(0.75, 0.25)
    assert schedule(0, Clock(0)) == 0.25
    assert schedule.factors(0) == []
    assert schedule.factors(1) == [0.75]
    assert schedule(1, Clock(1)) == 0.25


@pytest.mark.parametrize(
    "schedule",
    [
        Warmup("10%", Cosine()),
        Warmup("10%", Cosine(), shape="cosine", start=0.1),
        Warmup("10%", Cosine(), shape="exponential"),
        WSD(),
        OneCycle(),
        OneCycle(shape="linear"),
        Triangular(0.1, "5%"),
        Triangular(0.1, "5%", mode="triangular2"),
        Join((Linear(0, 1), "20%"), (Constant(), None), (OneMinusSqrt(end=0.5), "20%")),
    ],
    ids=repr,
)
def test_continuous(schedule: Schedule) -> None:
    """With ten times the steps the largest jump is a tenth (1-sqrt, whose slope is infinite at first: a third)."""

    def jump(total: int) -> float:
        return max(abs(b - a) for a, b in pairwise([*schedule.factors(total), schedule(total, Clock(total))]))

    assert jump(20_000) < 0.35 * jump(2_000)


@pytest.mark.parametrize("schedule", NEED_NO_TOTAL, ids=repr)
def test_runs_without_a_total(schedule: Schedule) -> None:
    assert not schedule.needs_total
    clock = Clock(steps_per_epoch=5)
    schedule.check(clock)
    assert [schedule(step, clock) for step in range(12)] == schedule.factors(12, 5)


@pytest.mark.parametrize("schedule", NEED_TOTAL, ids=repr)
def test_says_that_the_total_is_missing(schedule: Schedule) -> None:
    assert schedule.needs_total
    with pytest.raises(ValueError, match="total_steps= is missing"):
        schedule.check(Clock(steps_per_epoch=5))


@drawn
@given(schedule=schedules)
def test_needs_total_tells_what_check_will_say(schedule: Schedule) -> None:
    if not schedule.needs_total:
        schedule.check(Clock(steps_per_epoch=4))


def test_negative_step_is_refused() -> None:
    with pytest.raises(ValueError, match=r"step must be >= 0, got -1"):
        Constant()(-1, Clock(10))
