"""Callbacks that keep a run from ending without a result."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from lr_lightning._lightning import callbacks_of, is_validation_due
from lr_lightning.app.error_messages import did_you_mean
from lr_lightning.callbacks.overfitting import OverfittingMonitor
from lr_lightning.callbacks.per_example import ACCURACY_METRICS, LOGIT_METRICS
from lr_lightning.errors import ConfigError


class FinalValidation(Callback):
    """End every fit with a validation, and so with a checkpoint.

    Lightning ends at `max_steps` in mid-epoch without one, and after the last epoch where `check_val_every_n_epoch`
    does not divide the number of epochs.
    """

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate in the last epoch, whatever its number."""
        if trainer.current_epoch + 1 == trainer.max_epochs:
            trainer.check_val_every_n_epoch = 1

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Ask for the end, which Lightning precedes with a validation."""
        if 0 < trainer.max_steps <= trainer.global_step:
            trainer.should_stop = True


def validation_follows(trainer: Trainer) -> bool:
    """Whether a validation comes after the batch that has just ended.

    A checkpoint of that moment would lose it: Lightning takes it for done when it resumes.
    """
    if not trainer.enable_validation:
        return False
    at_the_end = 0 < trainer.max_steps <= trainer.global_step  # see FinalValidation
    return at_the_end or is_validation_due(trainer)


class MonitorCheck(Callback):
    """Find out as early as can be that a metric that is monitored is not logged.

    In the sanity check, if it is a validation's own, or OverfittingMonitor sees there what it will not measure; after
    the first optimizer step, if it is ``train/*``; else in the first validation. List it before what monitors.

    Args:
        monitor: The metric.
        key: The config key that named it.
    """

    def __init__(self, monitor: str, key: str = "callbacks.checkpoint.monitor") -> None:
        self.monitor, self.key = monitor, key
        self._before: int | None = None  # updates made when the fit began, until there was one more
        self._seen: bool | None = None  # None: nobody has said, as in a checkpoint from before this was kept

    @property
    def state_key(self) -> str:
        """One for each, since a run has several."""
        return f"MonitorCheck({self.key})"

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare with what the validation has just logged; some metrics come only in real ones."""
        if self.monitor in trainer.callback_metrics:
            return
        if self.monitor in _unmeasured(trainer):
            raise ConfigError(f"{self.key}: '{self.monitor}' {_NEEDS[self.monitor in LOGIT_METRICS]}")
        if not self.monitor.startswith(("overfit/", "probe/", "train/", "cost/")):
            raise ConfigError(self._message("is not logged by the validation. It logs", trainer))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait for the first update; a resumed run has passed this check, and its state tells of the validation."""
        resumed = trainer.ckpt_path is not None
        self._before = None if resumed or not trainer.enable_validation else trainer.global_step
        self._seen = resumed and self._seen is not False

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """After the first update, compare with what its steps have logged."""
        if self._before is None or trainer.global_step == self._before:
            return
        self._before = None
        if self.monitor.startswith("train/") and self.monitor not in trainer.callback_metrics:
            raise ConfigError(
                self._message(
                    "is not logged by the training steps with on_step=True (the recorded train/loss goes to the record "
                    "alone, and an epoch's mean is not there yet when a validation asks). There are",
                    trainer,
                )
            )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """In the first real validation everything that is monitored must be there."""
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING or self._seen:
            return
        self._seen = True
        if self.monitor not in trainer.callback_metrics:
            why = (
                f" It {_NEEDS[self.monitor in LOGIT_METRICS]}"
                if self.monitor in LOGIT_METRICS | ACCURACY_METRICS
                else ""
            )
            raise ConfigError(self._message(f"was not logged by the first validation.{why} It logged", trainer))

    def state_dict(self) -> dict[str, Any]:
        """Whether there was a validation."""
        return {"seen": bool(self._seen)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self._seen = state_dict["seen"]

    def _message(self, what: str, trainer: Trainer) -> str:
        known = sorted(str(key) for key in trainer.callback_metrics)
        return (
            f"{self.key}: '{self.monitor}' {what}: {', '.join(known) or 'nothing'}.{did_you_mean(self.monitor, known)}"
        )


_NEEDS = {
    True: (
        "is measured only where the logits of the validation are known: validation_step calls the module as the loss "
        "does, and a per_example_loss of the module's own returns (losses, right, logits, labels). Use "
        "overfit/gap_loss."
    ),
    False: (
        "is measured only where it is known which predictions are right: a per_example_loss of the module's own "
        "returns (losses, right). Use overfit/gap_loss or probe/loss."
    ),
}


def _unmeasured(trainer: Trainer) -> frozenset[str]:
    return frozenset().union(*(monitor.unmeasured for monitor in callbacks_of(trainer, OverfittingMonitor)))
