"""Thinning and averaging."""

import doctest

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lr_lightning.reports import plots, run_metrics
from lr_lightning.reports.plots import band, thin
from lr_lightning.reports.run_metrics import setback

RNG = np.random.default_rng(5)


def test_docstring_examples() -> None:
    assert doctest.testmod(plots).failed == doctest.testmod(run_metrics).failed == 0


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
    with pytest.raises(ValueError, match="limit must be a whole number >= 8, got 7"):
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
