"""Thinning, averaging, and the time to a target."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lr_lightning.diagnosis.targets import Reach, Target, median_time, parse_target, time_to
from lr_lightning.diagnosis.thinning import band, setback, thin

RNG = np.random.default_rng(5)


@given(st.integers(1, 3000), st.integers(8, 300))
def test_thinning_keeps_ends_extrema_and_the_limit(n: int, limit: int) -> None:
    y = np.random.default_rng(n).normal(size=n)
    kept = thin(y, limit)
    assert len(kept) <= limit
    assert {0, n - 1, int(y.argmin()), int(y.argmax())} <= set(kept.tolist())
    assert (np.diff(kept) > 0).all()


def test_thinning_keeps_the_steps_at_which_a_schedule_breaks() -> None:
    t = np.arange(5000)
    drops = np.select([t < 1237, t < 2501, t < 4003], [1.0, 0.2, 0.04], 0.008)
    assert {1236, 1237, 2500, 2501, 4002, 4003} <= set(thin(drops, 60).tolist())
    triangle = np.abs((t % 777) - 388.0)
    kept = thin(triangle, 120)
    assert np.abs(np.interp(t, kept, triangle[kept]) - triangle).max() < 1e-9


def test_thinning_of_holes_and_bad_limits() -> None:
    y = np.full(100, np.nan)
    assert thin(y, 8).tolist()[0] == 0
    with pytest.raises(ValueError, match="limit must be >= 8, got 7"):
        thin(y, 7)


def test_a_band_at_the_same_places_is_the_plain_mean() -> None:
    ys = RNG.normal(size=(4, 6))
    x = np.arange(6.0)
    grid, mean, low, high = band([(x, y) for y in ys])
    assert np.array_equal(grid, x)
    assert mean == pytest.approx(ys.mean(axis=0))
    half = 3.182446305284263 * ys.std(axis=0, ddof=1) / 2  # t quantile of 3 degrees of freedom
    assert high - mean == pytest.approx(half)
    assert mean - low == pytest.approx(half)


def test_a_band_ends_with_the_first_curve_that_ends() -> None:
    grid, mean, _, _ = band([(np.arange(10.0), np.ones(10)), (np.arange(6.0), np.zeros(6))])
    assert grid.tolist() == [0, 1, 2, 3, 4, 5]
    assert mean.tolist() == [0.5] * 6
    grid, mean, _, _ = band([([0.0, 2.0], [0.0, 2.0]), ([1.0, 3.0], [1.0, 3.0])], points=5)
    assert grid.tolist() == [1.0, 1.25, 1.5, 1.75, 2.0]
    assert mean == pytest.approx(grid)


def test_a_band_of_one_curve_has_no_width_and_of_strangers_no_points() -> None:
    _, mean, low, _ = band([([0.0, 1.0], [5.0, 6.0])])
    assert mean.tolist() == [5.0, 6.0]
    assert np.isnan(low).all()
    assert band([([0.0], [1.0]), ([5.0], [1.0])])[0].size == 0


def test_setback_is_the_largest_fall_from_the_best() -> None:
    assert setback([0.1, 0.9, 0.4, 0.95, 0.7], higher_is_better=True) == pytest.approx(0.5)
    assert setback([1.0, 0.2, 0.5], higher_is_better=False) == pytest.approx(0.3)
    assert setback([], higher_is_better=True) == 0.0


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("val/acc>=0.97", Target("val/acc", ">=", 0.97)),
        (" val loss < 1e-1 ", Target("val loss", "<", 0.1)),
        ("val/loss<=.5", Target("val/loss", "<=", 0.5)),
        ("a>0", Target("a", ">", 0.0)),
    ],
)
def test_a_target_is_read(text: str, target: Target) -> None:
    assert parse_target(text) == target
    assert parse_target(str(target)) == target


@pytest.mark.parametrize("text", ["", "val/acc", "val/acc>=", ">=0.9", "val/acc=0.9", "val/acc>=high", "a>=nan"])
def test_a_bad_target_says_what_one_looks_like(text: str) -> None:
    with pytest.raises(ValueError, match=r"such as val/acc>=0\.97"):
        parse_target(text)


def test_time_to_a_target() -> None:
    target = Target("val/acc", ">=", 0.9)
    assert time_to(target, [10, 20, 30], [0.5, 0.9, 0.8]) == Reach(20, True)
    assert time_to(target, [10, 20], [0.5, 0.6]) == Reach(20, False)
    assert time_to(target, [10, 20], [0.5, 0.6], hopeless=True) == Reach(math.inf, False)
    assert time_to(target, [], []) is None
    assert time_to(Target("val/loss", "<", 0.3), [1, 2], [0.3, 0.29]) == Reach(2, True)


def test_the_median_counts_runs_that_were_stopped_only_for_as_long_as_they_ran() -> None:
    def reach(*times: float) -> list[Reach]:
        return [Reach(abs(t), t > 0) for t in times]  # a minus: stopped then

    assert median_time(reach(10, 20, 30)) == 20
    assert median_time(reach(10, 20, -30)) == 20
    assert median_time(reach(10, -20, -30)) == math.inf
    assert median_time(reach(-5, 20, 30)) == 20  # stopped too early to say anything
    assert median_time([*reach(10), Reach(math.inf, False), Reach(math.inf, False)]) == math.inf
    assert median_time(reach(10, -10)) == 10  # one reached it in the very moment the other was stopped: 1/2
    assert median_time(reach(-10)) == math.inf
    assert math.isnan(median_time([]))
