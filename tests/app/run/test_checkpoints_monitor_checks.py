"""A metric that is monitored and never logged is found out before it costs an epoch, with its key."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lr_lightning import OverfittingMonitor
from lr_lightning.app.run.checkpoints import FinalValidation, MonitorCheck, RunCheckpoint
from lr_lightning.errors import ConfigError
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
        ("train/loss", Tiny, 1, "recorded train/loss goes to the record alone"),
        ("train/mean", Logs, 1, "an epoch's mean is not there yet"),
        ("overfit/temperature", NoLogits, 0, "only if the logits of the validation are known"),
        ("overfit/ece", NoLogits, 0, "Use overfit/gap_loss"),
        ("overfit/gap_acc", NoLogits, 0, "only if it is known which predictions are right"),
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


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_run_resumed_between_two_measurements_keeps_the_best_one(tmp_path: Path, epochs: int) -> None:
    def fit(name: str, until: int, resume: Path | None = None) -> RunCheckpoint:
        torch.manual_seed(0)
        common: dict[str, Any] = {"dirpath": tmp_path / name, "auto_insert_metric_name": False}
        best = RunCheckpoint(filename="best", monitor="probe/loss", **common)
        last = RunCheckpoint(filename="last", save_on_train_epoch_end=False, **common)
        monitors = [MonitorCheck("probe/loss"), OverfittingMonitor(every_n_validations=3)]
        options: dict[str, Any] = {"max_epochs": until, "num_sanity_val_steps": 0, "enable_checkpointing": True}
        trainer(tmp_path, [*monitors, best, last], **options).fit(
            Logs(dropout=0.0), loader(), loader(), ckpt_path=resume, weights_only=True if resume else None
        )
        return best

    whole = fit("whole", 5)
    fit("stopped", epochs)
    resumed = fit("stopped", 5, tmp_path / "stopped" / "last.ckpt")
    assert resumed.best_model_score == whole.best_model_score
    assert torch.load(resumed.best_model_path)["global_step"] == torch.load(whole.best_model_path)["global_step"]


@pytest.mark.parametrize("monitor", ["val/loss", "train/loss", "probe/loss", "overfit/ece"])
@pytest.mark.parametrize("sanity", [0, 2])
def test_what_is_logged_is_taken(tmp_path: Path, monitor: str, sanity: int) -> None:
    module = Logs()
    _fit(tmp_path, monitor, module, num_sanity_val_steps=sanity, accumulate_grad_batches=2)
    assert len(module.losses) == 12


class Ends(Tiny):
    """Notes after how many steps it is validated."""

    def __init__(self) -> None:
        super().__init__()
        self.validated: list[int] = []

    def on_validation_end(self) -> None:
        self.validated.append(self.global_step)


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"max_epochs": 1, "val_check_interval": 4}, [4, 6]),
        ({"max_epochs": 1, "val_check_interval": 0.7}, [4, 6]),
        ({"max_epochs": 1, "min_epochs": 1, "val_check_interval": 4}, [4, 6]),
        ({"max_epochs": 2, "val_check_interval": 4}, [4, 10, 12]),
        ({"max_epochs": 2, "val_check_interval": 5, "check_val_every_n_epoch": None}, [5, 10, 12]),
        ({"max_epochs": 3, "check_val_every_n_epoch": 2}, [12, 18]),
        ({"max_epochs": -1, "max_steps": 8, "min_steps": 8}, [6, 8]),
        ({"max_epochs": 2}, [6, 12]),
        ({"max_epochs": 1, "limit_val_batches": 0}, []),
    ],
)
def test_every_fit_ends_with_one_validation(tmp_path: Path, options: dict[str, Any], steps: list[int]) -> None:
    module = Ends()
    fit = trainer(tmp_path, [FinalValidation()], num_sanity_val_steps=0, **options)
    before = fit.check_val_every_n_epoch
    fit.fit(module, loader(), loader())
    assert module.validated == steps
    assert fit.check_val_every_n_epoch == before
    assert "_should_check_val_fx" not in vars(fit.fit_loop.epoch_loop)


def test_a_fit_resumed_after_its_last_validation_does_not_validate_again(tmp_path: Path) -> None:
    def fit(epochs: int, resume: Path | None = None) -> Ends:
        module, last = Ends(), RunCheckpoint(dirpath=tmp_path, filename="last", save_on_train_epoch_end=False)
        options: dict[str, Any] = {"max_epochs": epochs, "num_sanity_val_steps": 0, "enable_checkpointing": True}
        trainer(tmp_path, [FinalValidation(), last], val_check_interval=4, **options).fit(
            module, loader(), loader(), ckpt_path=resume, weights_only=True if resume else None
        )
        return module

    assert fit(1).validated == [4, 6]
    (saved,) = tmp_path.glob("last*.ckpt")
    assert fit(1, saved).validated == []
    more = fit(2, saved)
    assert more.validated == [10, 12]
    assert len(more.losses) == 6
