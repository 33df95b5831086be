"""What every schedule has in common: what it refuses, how it is described, and functions in its place."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lr_lightning.errors import ArgumentError, DurationError
from lr_lightning.schedules import (
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
    Plateau,
    Polynomial,
    Product,
    Restarts,
    Schedule,
    Step,
    Triangular,
    Warmup,
)
from lr_lightning.schedules.base import as_schedule

LIKE = "must be a schedule such as Cosine() or a function(step, clock), got"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Constant(-1), "value must be >= 0, got -1"),
        (lambda: Constant(float("nan")), "value must be >= 0, got nan"),
        (lambda: Constant("1"), "value must be >= 0, got '1'"),
        (lambda: Linear(start=-0.1), "start must be >= 0, got -0.1"),
        (lambda: Cosine(end=float("inf")), "end must be >= 0, got inf"),
        (lambda: Exponential(end=0), "end must be > 0, got 0"),
        (lambda: Polynomial(power=0), "power must be > 0, got 0"),
        (lambda: InverseSqrt(0.5), "timescale must have a unit, got the bare float 0.5: 0.5 of what?"),
        (lambda: Step(0), "every must be > 0, got '0'"),
        (lambda: Step(10, gamma=1.5), "gamma must be > 0 and <= 1, got 1.5"),
        (lambda: MultiStep(()), "at must be a list of at least one duration, got ()"),
        (lambda: MultiStep("5 epochs"), "at must be a list of at least one duration, got '5 epochs'"),
        (lambda: MultiStep((0.5,)), "at must have a unit, got the bare float 0.5"),
        (lambda: Triangular(1.5, 10), "base must be >= 0 and <= 1, got 1.5"),
        (lambda: Triangular(0.5, 10, 0), "down must be > 0, got '0'"),
        (lambda: Triangular(0.5, 10, mode="saw"), "mode must be one of 'triangular', 'triangular2', 'exp_range', got"),
        (lambda: Triangular(0.5, 10, mode="exp_range"), "gamma goes with mode='exp_range' only, got gamma=None"),
        (lambda: Triangular(0.5, 10, gamma=0.9), "gamma goes with mode='exp_range' only, got gamma=0.9"),
        (
            lambda: Restarts(Cosine, 10),
            f"piece {LIKE} <class",
        ),
        (lambda: Restarts(Cosine(), 10, mult=1.5), "mult must be a whole number >= 1, got 1.5"),
        (lambda: Restarts(Cosine(), 10, decay=0), "decay must be > 0 and <= 1, got 0"),
        (lambda: OneCycle(warmup=0.3), "warmup must have a unit, got the bare float 0.3: 0.3 of what?"),
        (lambda: OneCycle(shape="sine"), "shape must be one of 'cosine', 'linear', got 'sine'"),
        (lambda: WSD(shape="sqrt"), "shape must be one of '1-sqrt', 'linear', 'cosine', got 'sqrt'"),
        (lambda: Warmup(10, 1.0), f"then {LIKE} 1.0"),
        (lambda: Warmup(10, Constant(), "exponential", 0), "start must be > 0, got 0"),
        (lambda: Join(), "Join needs at least one (schedule, duration) pair"),
        (lambda: Join(Constant()), "Join expects (schedule, duration) pairs, got Constant(value=1.0)"),
        (
            lambda: Join((10, Constant())),
            f"Join: the first of each pair {LIKE} 10",
        ),
        (lambda: Join((Constant(), None), (Linear(), None)), "Join: at most one duration may be None"),
        (lambda: Product(), "Product needs at least one schedule"),
        (
            lambda: Product(Constant(), 2),
            f"Product: each argument {LIKE} 2",
        ),
        (lambda: Custom(3), "function must be callable as function(step, clock), got 3"),
        (lambda: Plateau(""), "monitor must be the name of a metric such as 'val/loss', got ''"),
        (lambda: Plateau("val/loss", factor=1), "factor must be < 1, got 1"),
        (lambda: Plateau("val/loss", patience=-1), "patience must be >= 0, got -1"),
        (lambda: Cosine().with_base(2), "ratio must be >= 0 and <= 1, got 2"),
    ],
)
def test_refused_at_once(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (Warmup(500, Cosine()), "Warmup: 500 (500 steps) > 300 steps in all."),
        (WSD("2 epochs", "50%"), "WSD: 200 (2 epochs) + 150 (50%) = 350 > 300 steps in all."),
        (OneCycle("4 epochs"), "OneCycle: 400 (4 epochs) > 300 steps in all."),
        (MultiStep(("1 epoch", "4 epochs")), "MultiStep: the milestone 4 epochs is at step 400 > 300 steps in all"),
        (Join((Constant(), None), (Warmup(90, Linear()), 80)), "Warmup: 90 (90 steps) > 80 steps in all."),
        (Product(Constant(), Warmup(500, Cosine())), "Warmup: 500 (500 steps) > 300 steps in all."),
        (Restarts(Warmup(60, Cosine()), 50), "Warmup: 60 (60 steps) > 50 steps in all."),
    ],
)
def test_what_does_not_fit_is_found_before_the_first_step(schedule: Schedule, message: str) -> None:
    with pytest.raises(DurationError, match=re.escape(message)):
        schedule.check(Clock(300, steps_per_epoch=100))


def test_with_base_reaches_every_cyclical_schedule_and_leaves_the_rest() -> None:
    nested = Warmup("5%", Join((Product(Triangular(0.5, 5), Constant(0.9)), "50%"), (Restarts(Cosine(), 5), None)))
    assert nested.with_base(0.1) == Warmup(
        "5%", Join((Product(Triangular(0.1, 5), Constant(0.9)), "50%"), (Restarts(Cosine(1.0, 0.1), 5), None))
    )
    assert nested.with_base(0.1) != nested
    assert OneCycle(start=0.5, end=0.25).with_base(0.1) == OneCycle(start=0.1, end=0.05)
    assert Restarts(Linear(0.5, 1), 5).with_base(0.1) == Restarts(Linear(0.1, 1), 5)
    for plain in (Warmup(5, Cosine()), Linear(), Step(5), WSD(), Join((Constant(), None))):
        assert plain.with_base(0.1) is plain


@pytest.mark.parametrize("value", [-0.5, float("nan"), float("inf"), "1"])
def test_custom_must_give_a_factor(value: Any) -> None:
    with pytest.raises(ValueError, match="Custom: the factor at step 3 must be >= 0, got"):
        Custom(lambda step, clock: value if step == 3 else 1.0).factors(5)


def test_custom_says_what_it_needs() -> None:
    schedule = Custom(lambda step, clock: 1.0, uses_total=True)
    assert schedule.needs_total
    with pytest.raises(ValueError, match="Custom needs to know the number of steps and total_steps= is missing"):
        schedule(0, Clock())


@pytest.mark.parametrize(
    ("schedule", "line"),
    [
        (Warmup("5%", Cosine()), "linear warmup over 50 steps, then cosine 1 to 0 over 950 steps"),
        (WSD(), "linear warmup over 50 steps, 1 until step 800, then 1-sqrt to 0 over 200 steps"),
        (Step("3 epochs"), "x 0.1 every 3 epochs (300 steps)"),
        (MultiStep(("50%", "3 epochs"), 0.5), "x 0.5 at steps 300, 500"),
        (Triangular(0.25, 20), "triangular 0.25 to 1, 20 steps up, 20 down"),
        (Restarts(Linear(), 10, 2), "restarts after 10 steps, each x 2 as long: linear 1 to 0 over 10 steps"),
        (OneCycle(), "one cycle, cosine: 0.04 to 1 at step 300, then to 4e-06 at step 1000"),
        (InverseSqrt(50), "inverse square root, timescale 50 steps"),
        (Join((Constant(), None), (Linear(), 200)), "constant 1 (to step 800), then linear 1 to 0 over 200 steps"),
        (Product(Constant(2), Linear()), "constant 2 times linear 1 to 0 over 1000 steps"),
    ],
)
def test_describe(schedule: Schedule, line: str) -> None:
    assert schedule.describe(Clock(1000, 100)).startswith(line)


def falling(step: int, clock: Clock) -> float:
    return 1.0 / (1 + step)


@pytest.mark.parametrize(
    ("with_function", "with_custom"),
    [
        (Warmup(2, falling), Warmup(2, Custom(falling))),
        (Restarts(falling, 4), Restarts(Custom(falling), 4)),
        (Join((falling, 3), (Cosine(), None)), Join((Custom(falling), 3), (Cosine(), None))),
        (Product(Cosine(), falling), Product(Cosine(), Custom(falling))),
    ],
)
def test_a_plain_function_stands_for_a_schedule(with_function: Schedule, with_custom: Schedule) -> None:
    assert with_function == with_custom
    assert with_function.factors(8) == with_custom.factors(8)


def test_as_schedule_keeps_a_schedule_and_wraps_a_function() -> None:
    cosine = Cosine()
    assert as_schedule("schedule", cosine) is cosine
    assert as_schedule("schedule", falling) == Custom(falling)


@pytest.mark.parametrize("value", [0.5, None, "cosine", Cosine, lambda step: 1.0, Plateau("val/loss")])
def test_what_is_neither_a_schedule_nor_such_a_function_is_refused(value: Any) -> None:
    with pytest.raises(ArgumentError, match=re.escape(f"momentum {LIKE} {value!r}")):
        as_schedule("momentum", value)


def test_plot_draws_the_factors(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    schedule = Warmup("1 epoch", Cosine())
    figure = schedule.plot(40, steps_per_epoch=10)
    (line,) = figure.axes[0].lines
    assert list(line.get_ydata()) == schedule.factors(40, 10)
    assert line.get_label() == schedule.describe(Clock(40, 10))
    assert Linear().plot(40, ax=figure.axes[0]) is figure
    assert len(figure.axes[0].lines) == 2
    figure.savefig(tmp_path / "schedule.png")
    assert (tmp_path / "schedule.png").stat().st_size > 1000
