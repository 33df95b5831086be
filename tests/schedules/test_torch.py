"""The families against torch's own schedulers, live, over drawn parameters."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch.optim import SGD, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from lr_lightning.schedules import (
    Cosine,
    Exponential,
    Linear,
    MultiStep,
    OneCycle,
    Plateau,
    Polynomial,
    Restarts,
    Schedule,
    Step,
    Triangular,
)

drawn = settings(deadline=None, derandomize=True, max_examples=25)
totals = st.integers(1, 80)
ratios = st.floats(0.001, 1.0)
peaks = st.floats(1e-6, 10.0)


def torch_lrs(make: Callable[[SGD], LRScheduler], steps: int, peak: float = 1.0) -> list[float]:
    """The lr torch uses at each of ``steps`` steps."""
    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    scheduler = make(optimizer)
    lrs = []
    for step in range(steps):
        lrs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step + 1 < steps:
            scheduler.step()
    return lrs


def close(ours: list[float], theirs: list[float], tolerance: float = 1e-12) -> None:
    assert ours == pytest.approx(theirs, rel=tolerance, abs=0)


def scaled(schedule: Schedule, total: int, peak: float) -> list[float]:
    return [peak * factor for factor in schedule.factors(total)]


@drawn
@given(total=totals, end=ratios, peak=peaks)
def test_cosine(total: int, end: float, peak: float) -> None:
    theirs = torch_lrs(lambda o: lr_scheduler.CosineAnnealingLR(o, total, eta_min=end * peak), total, peak)
    close(scaled(Cosine(1.0, end), total, peak), theirs)


@drawn
@given(total=st.integers(1, 30), peak=peaks)
def test_cosine_to_zero(total: int, peak: float) -> None:
    theirs = torch_lrs(lambda o: lr_scheduler.CosineAnnealingLR(o, total), total, peak)
    close(scaled(Cosine(), total, peak), theirs)


@drawn
@given(total=totals, start=ratios, end=ratios, peak=peaks)
def test_linear(total: int, start: float, end: float, peak: float) -> None:
    theirs = torch_lrs(lambda o: lr_scheduler.LinearLR(o, start, end, total), total, peak)
    close(scaled(Linear(start, end), total, peak), theirs)


@drawn
@given(total=totals, power=st.floats(0.25, 4.0), peak=peaks)
def test_polynomial(total: int, power: float, peak: float) -> None:
    theirs = torch_lrs(lambda o: lr_scheduler.PolynomialLR(o, total, power), total, peak)
    close(scaled(Polynomial(power=power), total, peak), theirs)


@drawn
@given(total=totals, gamma=st.floats(0.5, 1.0), peak=peaks)
def test_exponential(total: int, gamma: float, peak: float) -> None:
    theirs = torch_lrs(lambda o: lr_scheduler.ExponentialLR(o, gamma), total, peak)
    close(scaled(Exponential(1.0, gamma**total), total, peak), theirs)


@drawn
@given(total=totals, every=st.integers(1, 30), gamma=st.floats(0.1, 1.0), peak=peaks)
def test_step(total: int, every: int, gamma: float, peak: float) -> None:
    theirs = torch_lrs(lambda o: lr_scheduler.StepLR(o, every, gamma), total, peak)
    close(scaled(Step(every, gamma), total, peak), theirs)


@drawn
@given(data=st.data(), total=totals, gamma=st.floats(0.1, 1.0), peak=peaks)
def test_multi_step(data: Any, total: int, gamma: float, peak: float) -> None:
    at = data.draw(st.lists(st.integers(1, total), min_size=1, max_size=5, unique=True))
    theirs = torch_lrs(lambda o: lr_scheduler.MultiStepLR(o, at, gamma), total, peak)
    close(scaled(MultiStep(tuple(at), gamma), total, peak), theirs)


def cyclic(base: float, peak: float, up: int, down: int, mode: str, gamma: float) -> Callable[[SGD], LRScheduler]:
    return lambda o: lr_scheduler.CyclicLR(o, base, peak, up, down, mode, gamma, cycle_momentum=False)


@drawn
@given(
    base=st.floats(0.0, 1.0),
    up=st.integers(1, 20),
    down=st.integers(1, 20),
    mode=st.sampled_from(["triangular", "triangular2", "exp_range"]),
    gamma=st.floats(0.9, 1.0),
    peak=peaks,
)
def test_triangular_is_equal(base: float, up: int, down: int, mode: Any, gamma: float, peak: float) -> None:
    ours = Triangular(base, up, down, mode, gamma if mode == "exp_range" else None)
    assert ours.factors(100) == torch_lrs(cyclic(base, 1.0, up, down, mode, gamma), 100)
    close(scaled(ours, 100, peak), torch_lrs(cyclic(base * peak, peak, up, down, mode, gamma), 100, peak))


@drawn
@given(data=st.data(), total=st.integers(4, 80), start=ratios, drop=ratios, shape=st.sampled_from(["cosine", "linear"]))
def test_one_cycle_is_equal_below_its_last_step(data: Any, total: int, start: float, drop: float, shape: Any) -> None:
    rise = data.draw(st.integers(1, total - 3))
    share = (rise + 1) / total
    assume(share * total - 1 == rise)  # torch places the peak by a product of floats
    anneal = "cos" if shape == "cosine" else "linear"
    theirs = torch_lrs(
        lambda o: lr_scheduler.OneCycleLR(
            o,
            1.0,
            total,
            pct_start=share,
            anneal_strategy=anneal,
            cycle_momentum=False,
            div_factor=1 / start,
            final_div_factor=1 / drop,
        ),
        total,
    )
    first = 1.0 / (1 / start)
    last = first / (1 / drop)
    ours = OneCycle(rise, first, last, shape).factors(total - 1)  # torch's T counts T - 1 intervals
    assert ours[1:] == theirs[1:-1]
    close(ours[:1], theirs[:1])  # ours is exact at the start


@drawn
@given(first=st.integers(1, 12), mult=st.integers(1, 4), end=ratios)
@example(first=1, mult=3, end=0.5)
def test_warm_restarts(first: int, mult: int, end: float) -> None:
    total = 150
    starts = restart_steps(first, mult, total)
    theirs = torch_lrs(lambda o: warm_restarts(o, first, mult, 0.0), total)
    assert Restarts(Cosine(), first, mult).factors(total) == theirs
    theirs = torch_lrs(lambda o: warm_restarts(o, first, mult, end), total)
    ours = Restarts(Cosine(1.0, end), first, mult).factors(total)
    close(ours, theirs)
    assert all(ours[step] == 1.0 for step in starts)  # where a + (1 - a) in theirs may miss it


def warm_restarts(optimizer: SGD, first: int, mult: int, end: float) -> LRScheduler:
    return lr_scheduler.CosineAnnealingWarmRestarts(optimizer, first, mult, eta_min=end)


def restart_steps(first: int, mult: int, total: int) -> list[int]:
    starts, length = [0], first
    while starts[-1] + length < total:
        starts.append(starts[-1] + length)
        length *= mult
    return starts


def test_restart_placed_where_a_logarithm_is_off_by_one() -> None:
    schedule = Restarts(Linear(), first=1, mult=3)
    boundary = (3**5 - 1) // 2
    assert int(math.log(boundary * 2 + 1, 3)) == 4  # the trap: it should be 5
    factors = schedule.factors(boundary + 2)
    assert factors[boundary] == 1.0
    assert factors[boundary - 1] == pytest.approx(1 / 81)


@drawn
@given(
    history=st.lists(st.sampled_from([1.0, 0.9, 0.89999, 0.5, 0.2, math.nan, math.inf]), max_size=40),
    factor=st.floats(0.1, 0.9),
    patience=st.integers(0, 4),
    mode=st.sampled_from(["min", "max"]),
    threshold_mode=st.sampled_from(["rel", "abs"]),
    cooldown=st.integers(0, 3),
    floor=st.sampled_from([0.0, 0.05]),
)
def test_plateau(
    history: list[float],
    factor: float,
    patience: int,
    mode: Any,
    threshold_mode: Any,
    cooldown: int,
    floor: float,
) -> None:
    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = lr_scheduler.ReduceLROnPlateau(
        optimizer, mode, factor, patience, threshold_mode=threshold_mode, cooldown=cooldown, min_lr=floor, eps=0.0
    )
    plateau = Plateau("val/loss", factor, patience, mode, 1e-4, threshold_mode, cooldown, floor)
    for seen, value in enumerate(history, start=1):
        theirs.step(value)
        assert plateau(history[:seen]) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
