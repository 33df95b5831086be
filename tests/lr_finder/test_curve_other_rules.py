"""fastai's rules say what fastai says, and Smith's pair lies where his paper puts it."""

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lr_lightning.lr_finder import curve

LRS = np.geomspace(1e-6, 10, 100).tolist()


def sweep(seed: int, n: int = 100, noise: float = 0.1) -> NDArray[np.float64]:
    x = np.geomspace(1e-6, 10, n)
    values = 2.3 - 1.8 / (1 + (1e-2 / x) ** 1.5) + noise * np.random.default_rng(seed).normal(size=n)
    return values + np.where(x > 0.5, 2.0 ** np.minimum(np.cumsum(x > 0.5), 60), 0.0)


# What fastai 2.8.12 itself said about these sweeps, seeds 0 to 4, fed with the recorded losses.
FASTAI = {
    "fastai_minimum": [0.0453488, 0.0453488, 0.0453488, 0.0453488, 0.0453488],
    "fastai_valley": [0.0174753, 0.00559081, 0.00774264, 0.00911163, 0.00657933],
}


@pytest.mark.parametrize("rule", FASTAI)
@pytest.mark.parametrize("seed", range(5))
def test_fastai(rule: str, seed: int) -> None:
    found = getattr(curve, rule)(LRS, sweep(seed).tolist())
    assert found == pytest.approx(FASTAI[rule][seed], rel=1e-4)


def valley_by_hand(lrs: list[float], smoothed: list[float]) -> float:
    """The longest decreasing subsequence by the textbook's double loop."""
    length = [1] * len(smoothed)
    for i in range(len(smoothed)):
        for j in range(i):
            if smoothed[j] > smoothed[i]:
                length[i] = max(length[i], length[j] + 1)
    end = length.index(max(length))
    start = end - length[end] if length[end] > 1 else 0
    third = (end - start) / 3
    return lrs[start + int(third) + int(third / 2)]


@pytest.mark.parametrize("seed", range(5))
def test_the_valley_is_the_longest_decreasing_subsequence(seed: int) -> None:
    losses = 1 + np.random.default_rng(seed).random(100)  # never four times the best
    weights = 0.02 * 0.98 ** np.arange(100)
    smoothed = [float((weights[: k + 1][::-1] * losses[: k + 1]).sum() / (1 - 0.98 ** (k + 1))) for k in range(100)]
    assert curve.fastai_valley(LRS, losses.tolist()) == pytest.approx(valley_by_hand(LRS[10:-5], smoothed[10:-5]))


@pytest.mark.parametrize("rule", [curve.fastai_minimum, curve.fastai_valley])
def test_nothing_to_read(rule: Any) -> None:
    assert rule([], []) is None
    assert rule(LRS, [1.0, 2.0]) is None


def test_a_nan_poisons_what_follows_as_in_fastai() -> None:
    losses = sweep(0)
    losses[60:] = math.nan
    found = curve.fastai_minimum(LRS, losses.tolist())
    assert found is not None
    assert found <= LRS[59] / 10


def test_smith_reads_where_the_loss_starts_to_fall_and_where_it_is_lowest() -> None:
    pair = curve.smith(LRS, sweep(0, noise=0.01).tolist())
    assert pair is not None
    assert 5e-4 < pair[0] < 1e-2
    assert 0.1 < pair[1] < 1.0


def test_smith_on_a_linear_grid_and_an_accuracy() -> None:
    lrs = np.linspace(0.001, 0.02, 100)
    accuracy = 0.1 + 0.5 * np.clip((lrs - 0.003) / 0.005, 0, 1) - 0.3 * np.clip((lrs - 0.012) / 0.004, 0, 1)
    pair = curve.smith(lrs.tolist(), (-accuracy).tolist())
    assert pair is not None
    assert pair[0] == pytest.approx(0.0035, abs=0.0005)
    assert 0.008 <= pair[1] <= 0.012


@pytest.mark.parametrize("values", [np.linspace(2, 1, 100), np.linspace(1, 2, 100), np.ones(100), np.ones(5)])
def test_smith_says_nothing_without_a_fall_and_an_edge(values: NDArray[np.float64]) -> None:
    assert curve.smith(LRS[: len(values)], values.tolist()) is None


def test_smith_ignores_what_follows_a_value_that_is_not_finite() -> None:
    losses = sweep(0)
    losses[80] = math.inf
    assert curve.smith(LRS, losses.tolist()) == curve.smith(LRS, losses[:80].tolist())
