"""The rules of Lightning, torch-lr-finder and ignite say what the packages say."""

import logging
import math
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.tuner.lr_finder import _LRCallback, _LRFinder

from benchmarks import finder_rules as rules
from tests.lr_finder.test_curve_other_rules import LRS, sweep


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


# What torch-lr-finder 0.2.2 and pytorch-ignite 0.5.5 themselves said about these sweeps, seeds 0 to 4, fed
# with the recorded losses.
PACKAGES = {
    "torch_lr_finder": [0.0642807, 0.0242013, 0.0464159, 0.033516, 0.0642807],
    "ignite": [0.0642807, 0.0242013, 0.0464159, 0.033516, 0.0642807],
}


@pytest.mark.parametrize("rule", PACKAGES)
@pytest.mark.parametrize("seed", range(5))
def test_other_packages(rule: str, seed: int) -> None:
    found = getattr(rules, rule)(LRS, sweep(seed).tolist())
    assert found == pytest.approx(PACKAGES[rule][seed], rel=1e-4)


@pytest.mark.parametrize("rule", [rules.torch_lr_finder, rules.ignite])
def test_nothing_to_read(rule: Any) -> None:
    assert rule([], []) is None
    assert rule(LRS, [1.0, 2.0]) is None


def test_a_nan_poisons_what_follows_as_in_ignite() -> None:
    losses = sweep(0)
    losses[60:] = math.nan
    assert rules.ignite(LRS, losses.tolist()) == pytest.approx(LRS[59])  # its argmin is the first nan


def test_negative_losses_stop_lightning_at_once() -> None:
    """The averaged loss is above four times a negative best: 2 points, so no suggestion."""
    assert rules.lightning(LRS, (sweep(0) - 5.0).tolist()) is None
