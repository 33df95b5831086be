import logging
import math
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.tuner.lr_finder import _LRCallback, _LRFinder
from numpy.typing import NDArray

from lr_lightning.lr_finder import rules

LRS = np.geomspace(1e-6, 10, 100).tolist()


def sweep(seed: int, n: int = 100, noise: float = 0.1) -> NDArray[np.float64]:
    x = np.geomspace(1e-6, 10, n)
    values = 2.3 - 1.8 / (1 + (1e-2 / x) ** 1.5) + noise * np.random.default_rng(seed).normal(size=n)
    return values + np.where(x > 0.5, 2.0 ** np.minimum(np.cumsum(x > 0.5), 60), 0.0)


def lightning_itself(lrs: list[float], losses: list[float]) -> float | None:
    """Feed a recorded sweep to Lightning's own callback and finder."""
    callback = _LRCallback(len(lrs))
    for k, loss in enumerate(losses):
        trainer: Any = SimpleNamespace(
            fit_loop=SimpleNamespace(batch_idx=k),
            accumulate_grad_batches=1,
            lr_scheduler_configs=[SimpleNamespace(scheduler=SimpleNamespace(lr=[lrs[k]]))],
            global_step=k + 1,
            should_stop=False,
            strategy=SimpleNamespace(broadcast=lambda flag: flag),
        )
        module = cast(LightningModule, None)
        callback.on_train_batch_start(cast(Trainer, trainer), module, None, k)
        callback.on_train_batch_end(cast(Trainer, trainer), module, torch.tensor(loss, dtype=torch.float64), None, k)
        if trainer.should_stop:
            break
    finder = _LRFinder("exponential", lrs[0], lrs[-1], len(lrs))
    finder.results = {"lr": callback.lrs, "loss": callback.losses}
    return finder.suggestion()


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("end", [None, "nan", "inf", "negative"])
def test_lightning(seed: int, end: str | None) -> None:
    losses = sweep(seed)
    if end in ("nan", "inf"):
        losses[85:] = float(end)
    if end == "negative":
        losses -= 3.0
    expected = lightning_itself(LRS, losses.tolist())
    found = rules.lightning(LRS, losses.tolist())
    assert found == (None if expected is None else pytest.approx(expected))


def test_lightning_with_too_few_points(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    assert lightning_itself(LRS[:12], [1.0] * 12) is None
    assert rules.lightning(LRS[:12], [1.0] * 12) is None
    assert rules.lightning([], []) is None


# What the packages themselves said of these sweeps, seeds 0 to 4: torch-lr-finder 0.2.2, pytorch-ignite 0.5.5 and
# fastai 2.8.12, fed with the recorded losses.
PACKAGES = {
    "torch_lr_finder": [0.0642807, 0.0242013, 0.0464159, 0.033516, 0.0642807],
    "ignite": [0.0642807, 0.0242013, 0.0464159, 0.033516, 0.0642807],
    "fastai_minimum": [0.0453488, 0.0453488, 0.0453488, 0.0453488, 0.0453488],
    "fastai_valley": [0.0174753, 0.00559081, 0.00774264, 0.00911163, 0.00657933],
}


@pytest.mark.parametrize("rule", ["torch_lr_finder", "ignite", "fastai_minimum", "fastai_valley"])
@pytest.mark.parametrize("seed", range(5))
def test_other_packages(rule: str, seed: int) -> None:
    found = getattr(rules, rule)(LRS, sweep(seed).tolist())
    assert found == pytest.approx(PACKAGES[rule][seed], rel=1e-4)


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
    assert rules.fastai_valley(LRS, losses.tolist()) == pytest.approx(valley_by_hand(LRS[10:-5], smoothed[10:-5]))


@pytest.mark.parametrize("rule", [rules.torch_lr_finder, rules.ignite, rules.fastai_minimum, rules.fastai_valley])
def test_nothing_to_read(rule: Any) -> None:
    assert rule([], []) is None
    assert rule(LRS, [1.0, 2.0]) is None


def test_a_nan_poisons_what_follows_as_in_the_packages() -> None:
    losses = sweep(0)
    losses[60:] = math.nan
    assert rules.ignite(LRS, losses.tolist()) == pytest.approx(LRS[59])  # its argmin is the first nan
    fastai = rules.fastai_minimum(LRS, losses.tolist())
    assert fastai is not None
    assert fastai <= LRS[59] / 10


def test_negative_losses_stop_lightning_at_once() -> None:
    """The averaged loss is above four times a negative best: 2 points, so no suggestion."""
    assert rules.lightning(LRS, (sweep(0) - 5.0).tolist()) is None


# ----------------------------------------------------------------------------------------------------------- Smith's


def test_smith_reads_where_the_loss_starts_to_fall_and_where_it_is_lowest() -> None:
    pair = rules.smith(LRS, sweep(0, noise=0.01).tolist())
    assert pair is not None
    assert 5e-4 < pair[0] < 1e-2
    assert 0.1 < pair[1] < 1.0


def test_smith_on_a_linear_grid_and_an_accuracy() -> None:
    lrs = np.linspace(0.001, 0.02, 100)
    accuracy = 0.1 + 0.5 * np.clip((lrs - 0.003) / 0.005, 0, 1) - 0.3 * np.clip((lrs - 0.012) / 0.004, 0, 1)
    pair = rules.smith(lrs.tolist(), (-accuracy).tolist())
    assert pair is not None
    assert pair[0] == pytest.approx(0.0035, abs=0.0005)
    assert 0.008 <= pair[1] <= 0.012


@pytest.mark.parametrize("values", [np.linspace(2, 1, 100), np.linspace(1, 2, 100), np.ones(100), np.ones(5)])
def test_smith_says_nothing_without_a_fall_and_an_edge(values: NDArray[np.float64]) -> None:
    assert rules.smith(LRS[: len(values)], values.tolist()) is None


def test_smith_ignores_what_follows_a_value_that_is_not_finite() -> None:
    losses = sweep(0)
    losses[80] = math.inf
    assert rules.smith(LRS, losses.tolist()) == rules.smith(LRS, losses[:80].tolist())
