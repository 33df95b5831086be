"""A metric that is monitored and never logged is found out before it costs an epoch, with its key."""

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from torch.nn.functional import cross_entropy

from lr_lightning import OverfittingMonitor
from lr_lightning.app.errors import ConfigError
from lr_lightning.app.guards import MonitorCheck
from tests.callbacks.tiny import Tiny, loader, trainer


class Logs(Tiny):
    """Logs a training loss of each step, and the mean of an epoch."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.log("train/loss", loss, on_step=True, on_epoch=False)
        self.log("train/mean", loss, on_step=False, on_epoch=True)
        return loss


class NoLogits(Logs):
    """Says of its examples only what they lose."""

    def per_example_loss(self, batch: Any) -> Tensor:
        return cross_entropy(self(batch[0]), batch[1], reduction="none")


def _fit(tmp_path: Path, monitor: str, module: Tiny, **options: Any) -> None:
    callbacks = [MonitorCheck(monitor, "callbacks.x.monitor"), OverfittingMonitor()]
    trainer(tmp_path, callbacks, **options).fit(module, loader(), loader())


@pytest.mark.parametrize(
    ("monitor", "make", "steps", "message"),
    [
        ("val/los", Logs, 0, "'val/los' is not logged by the validation. .*Did you mean 'val/loss'"),
        ("train/los", Logs, 1, "is not logged by the training steps .*Did you mean 'train/loss'"),
        ("train/loss", Tiny, 1, "the recorded train/loss goes to the record alone"),
        ("train/mean", Logs, 1, "an epoch's mean is not there yet"),
        ("overfit/temperature", NoLogits, 0, "only where the logits of the validation are known"),
        ("overfit/ece", NoLogits, 0, "Use overfit/gap_loss"),
        ("overfit/gap_acc", NoLogits, 0, "only where it is known which predictions are right"),
    ],
)
def test_before_it_costs_an_epoch(tmp_path: Path, monitor: str, make: Any, steps: int, message: str) -> None:
    module = make()
    with pytest.raises(ConfigError) as e:
        _fit(tmp_path, monitor, module)
    assert str(e.value).startswith(f"callbacks.x.monitor: '{monitor}' ")
    for part in message.split(" .*"):
        assert part in str(e.value)
    assert len(module.losses) == steps


@pytest.mark.parametrize("monitor", ["val/los", "overfit/temperature", "cost/seconds", "train/mean"])
def test_at_the_latest_in_the_first_validation(tmp_path: Path, monitor: str) -> None:
    module = NoLogits()
    with pytest.raises(ConfigError, match=r"was not logged by the first validation|not logged by the training steps"):
        _fit(tmp_path, monitor, module, num_sanity_val_steps=0)
    assert len(module.losses) <= 6


@pytest.mark.parametrize("monitor", ["val/loss", "train/loss", "probe/loss", "overfit/ece"])
@pytest.mark.parametrize("sanity", [0, 2])
def test_what_is_logged_is_taken(tmp_path: Path, monitor: str, sanity: int) -> None:
    module = Logs()
    _fit(tmp_path, monitor, module, num_sanity_val_steps=sanity, accumulate_grad_batches=2)
    assert len(module.losses) == 12
