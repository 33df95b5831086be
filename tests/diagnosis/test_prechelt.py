"""Prechelt's measures against their formulas, and where they are not defined."""

import math

import pytest

from lr_lightning.diagnosis.early_stopping import generalization_loss, progress, progress_quotient, successive_rises


def test_generalization_loss_is_percent_above_the_lowest() -> None:
    assert generalization_loss([3.0, 2.0, 2.5]) == pytest.approx(25.0)
    assert generalization_loss([3.0, 2.0]) == 0.0
    assert math.isnan(generalization_loss([1.0, math.nan]))
    assert generalization_loss([math.nan, 2.0, 2.5]) == pytest.approx(25.0)  # of a first validation, say
    assert math.isnan(generalization_loss([math.nan]))
    assert math.isnan(generalization_loss([0.0, 1.0]))  # a ratio to nothing
    assert math.isnan(generalization_loss([-1.0, 1.0]))


def test_progress_compares_a_strips_mean_with_its_minimum() -> None:
    assert progress([9.0, 2.0, 1.0, 1.5], strip=3) == pytest.approx(1000 * (1.5 / 1.0 - 1))
    assert progress([1.0] * 5) == 0.0
    assert math.isnan(progress([1.0] * 4))
    assert math.isnan(progress([1.0, 2.0, 3.0, 4.0, math.inf]))


def test_progress_quotient() -> None:
    validation, training = [2.0, 1.0, 1.2], [3.0, 2.0, 1.0]
    assert progress_quotient(validation, training, strip=3) == pytest.approx(20.0 / 1000.0)
    assert progress_quotient([1.0, 1.1, 1.2], [1.0, 1.0, 1.0], strip=3) == math.inf  # no progress, but a loss
    assert math.isnan(progress_quotient([1.0, 1.0, 1.0], [1.0, 1.0, 1.0], strip=3))


@pytest.mark.parametrize(
    ("validation", "strip", "rises"),
    [
        ([1.0, 2.0, 3.0, 4.0], 1, 3),
        ([1.0, 2.0, 2.0, 4.0], 1, 1),
        ([1.0, 9.0, 2.0, 0.0, 3.0, 9.0], 2, 1),  # the ends of the strips are 9, 0, 9
        ([5.0, 1.0, 5.0, 2.0, 5.0, 3.0, 0.0], 2, 2),  # the incomplete strip does not count
        ([1.0], 1, 0),
        ([], 5, 0),
    ],
)
def test_successive_rises_at_the_ends_of_strips(validation: list[float], strip: int, rises: int) -> None:
    assert successive_rises(validation, strip) == rises
