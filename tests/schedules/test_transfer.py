"""How the best learning rate moves from schedule to schedule: the bound itself, its symmetries, and wrong input."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lr_lightning.errors import ArgumentError
from lr_lightning.schedules import WSD, Clock, Constant, Cosine, Linear, Warmup
from lr_lightning.schedules.transfer import best_scale, sampled_factors, transfer_lr

FACTORS = st.lists(st.floats(0.01, 1.0), min_size=1, max_size=20)


def by_hand(eta: list[float]) -> float:
    """The bound as the paper prints it, term by term; its best scale by search."""
    total, last = sum(eta), len(eta) - 1
    a = 1 / (2 * total)
    b = sum(x * x for x in eta) / (2 * total)
    for k in range(last):
        b += 0.5 * eta[k] / sum(eta[k + 1 :]) * sum(x * x for x in eta[k:]) / sum(eta[k:])
    return math.sqrt(a / b)


@given(FACTORS)
def test_it_is_the_minimum_of_the_bound(eta: list[float]) -> None:
    assert best_scale(eta) == pytest.approx(by_hand(eta), rel=1e-9)


@given(FACTORS, st.floats(0.1, 10))
def test_scaling_the_factors_divides_it_and_zeros_at_the_end_count_for_nothing(eta: list[float], c: float) -> None:
    assert best_scale([c * x for x in eta]) == pytest.approx(best_scale(eta) / c, rel=1e-9)
    assert best_scale([*eta, 0.0, 0.0]) == best_scale(eta)


@given(FACTORS, FACTORS, FACTORS)
def test_there_and_back_and_by_way_of_a_third(a: list[float], b: list[float], c: list[float]) -> None:
    assert transfer_lr(0.1, a, a) == 0.1
    assert transfer_lr(transfer_lr(0.1, a, b), b, a) == pytest.approx(0.1)
    assert transfer_lr(transfer_lr(0.1, a, b), b, c) == pytest.approx(transfer_lr(0.1, a, c))


def test_a_decay_bears_a_higher_peak_and_a_longer_run_a_lower_one() -> None:
    constant, linear, wsd = (best_scale(s.factors(1000)) for s in (Constant(), Linear(1, 0), WSD()))
    assert constant < wsd < linear
    assert best_scale([1.0] * 4000) / best_scale([1.0] * 1000) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("factors", [[], [0.0, 0.0], [1.0, -0.1], [1.0, math.nan], [math.inf]])
def test_wrong_factors(factors: list[float]) -> None:
    with pytest.raises(ArgumentError, match="factors must be finite numbers >= 0, of which one is above 0"):
        best_scale(factors)


def test_a_long_schedule_is_sampled() -> None:
    schedule = Warmup("5%", then=Cosine(1, 0))
    assert sampled_factors(schedule, Clock(200)) == schedule.factors(200)
    long = sampled_factors(schedule, Clock(1_000_000))
    assert (len(long), max(long)) == (10_000, pytest.approx(1.0))
