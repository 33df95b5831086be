"""Temperature scaling against a search over a grid, and what it says of a gap."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from lr_lightning.diagnosis.calibration import fit_temperature, scale_gap, scaled_losses


def _drawn(n: int, sharpness: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose softmax, at temperature ``sharpness``, is the labels' true distribution."""
    rng = np.random.default_rng(seed)
    true = rng.normal(size=(n, 5)) * 1.5
    labels = (true + rng.gumbel(size=true.shape)).argmax(1)
    return true * sharpness, labels


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 4.0])
def test_the_fit_is_the_minimum_and_finds_the_true_temperature(sharpness: float) -> None:
    logits, labels = _drawn(4000, sharpness)
    found = fit_temperature(logits, labels)
    best = minimize_scalar(lambda t: scaled_losses(logits, labels, np.exp(t)).mean(), bounds=(-4, 4), method="bounded")
    assert found == pytest.approx(np.exp(best.x), rel=1e-3)
    assert found == pytest.approx(sharpness, rel=0.1)


def test_predictions_that_are_all_right_are_as_sharp_as_can_be() -> None:
    logits = np.eye(5)[np.arange(50) % 5]
    assert fit_temperature(logits, np.arange(50) % 5) == pytest.approx(np.exp(-5), rel=0.01)


def test_losses_are_stable_for_large_logits() -> None:
    losses = scaled_losses(np.array([[1e4, 0.0], [0.0, 1e4]]), np.array([0, 0]), 1.0)
    assert losses.tolist() == [0.0, 1e4]


def test_an_overconfident_network_has_no_gap_left_and_one_that_is_wrong_has() -> None:
    # of the same distribution, but far too sharp: the probe is fitted, the validation is as good as it can be
    val, probe = _drawn(1000, 6.0, seed=1), _drawn(1000, 6.0, seed=2)
    known = probe[0].argmax(1)
    sure = np.where(np.random.default_rng(3).random(1000) < 0.5, known, probe[1])
    scaling = scale_gap(*val, probe[0], sure)
    assert scaling is not None
    assert scaling.temperature > 3
    assert scaling.val_loss < scaled_losses(*val, 1.0).mean() / 2
    wrong = scale_gap(
        np.eye(5)[np.arange(100) % 5] * 9, (np.arange(100) + 1) % 5, np.eye(5)[[0] * 50] * 9, np.zeros(50, int)
    )
    assert wrong is not None
    assert not wrong.overconfident


def test_a_gap_that_is_only_sharpness_is_overconfidence() -> None:
    logits, labels = _drawn(400, 1.0, seed=4)
    probe_logits, probe_labels = _drawn(400, 1.0, seed=5)
    # the same errors at validation, and the probe's luck that its sharp predictions are right a little more often
    sharp = scale_gap(
        logits * 8, labels, probe_logits * 8, np.where(np.arange(400) % 6 == 0, probe_logits.argmax(1), probe_labels)
    )
    assert sharp is not None
    assert sharp.overconfident
    even = scale_gap(logits, labels, probe_logits, probe_labels)
    assert even is not None
    assert not even.overconfident  # there is no gap to remove


def test_too_few_or_bad_logits_say_nothing() -> None:
    logits, labels = _drawn(20, 1.0)
    assert scale_gap(logits[:9], labels[:9], logits, labels) is None
    assert scale_gap(logits * np.nan, labels, logits, labels) is None
