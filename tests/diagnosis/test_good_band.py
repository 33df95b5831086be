"""The band of rates that are about as good as the best."""

import math

import numpy as np
import pytest

from lr_lightning.diagnosis.comparison import good_band


def test_the_band_ends_where_a_rate_is_worse_than_the_tolerance() -> None:
    band = good_band([1, 0.01, 0.1, 0.001], [0.5, 0.965, 0.97, 0.2], higher=True, tolerance=0.01)
    assert band is not None
    assert (band.low, band.high, band.best_lr) == (0.01, 0.1, 0.1)
    assert not band.open_low
    assert not band.open_high
    assert band.decades == pytest.approx(1.0)


def test_a_band_that_reaches_the_end_of_what_was_tried_is_open() -> None:
    band = good_band([0.01, 0.1, 1, 10], [0.1, 0.96, 0.97, 0.969], higher=True, tolerance=0.02)
    assert band is not None
    assert band.open_high
    assert not band.open_low


def test_a_loss_is_the_accuracy_upside_down() -> None:
    rates, results = [0.001, 0.01, 0.1, 1.0], [0.2, 0.9, 0.95, 0.3]
    up = good_band(rates, results, higher=True, tolerance=0.1)
    down = good_band(rates, [-r for r in results], higher=False, tolerance=0.1)
    assert up is not None
    assert down is not None
    assert (up.low, up.high, up.best, up.limit) == (down.low, down.high, -down.best, -down.limit)


def test_of_many_rates_one_unlucky_run_ends_no_band_and_one_lucky_one_makes_no_best() -> None:
    rates = np.geomspace(1e-3, 1, 13)
    results = np.where((rates > 5e-3) & (rates < 0.3), 0.9, 0.3)
    results[6] = 0.1
    results[1] = 0.99
    band = good_band(rates, results, higher=True, tolerance=0.01)
    assert band is not None
    assert band.best == 0.9
    assert band.low < 0.01
    assert band.high > 0.17


def test_what_diverged_is_bad_and_too_few_rates_tell_nothing() -> None:
    band = good_band([0.01, 0.1, 1, 10], [0.9, 0.9, -math.inf, math.nan], higher=True, tolerance=0.01)
    assert band is not None
    assert band.high == 0.1
    assert good_band([0.1, 1, 10], [0.9, 0.9, 0.9], higher=True, tolerance=0.01) is None
    assert good_band([0.1, 0.2, 1, 10], [-math.inf] * 4, higher=True, tolerance=0.01) is None


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="rates must be > 0"):
        good_band([0.0, 0.1, 1, 10], [1] * 4, higher=True, tolerance=0.1)
    with pytest.raises(ValueError, match="one value for each of the 2 rates"):
        good_band([0.1, 1], [1], higher=True, tolerance=0.1)
