"""Callbacks that make sure of a run's result: a last validation, and monitored metrics that are logged."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from lr_lightning._lightning import callbacks_of, is_validation_due, validate_also
from lr_lightning.app.error_messages import did_you_mean
from lr_lightning.callbacks.overfitting import OverfittingMonitor
from lr_lightning.callbacks.per_example import ACCURACY_METRICS, LOGIT_METRICS
from lr_lightning.errors import ConfigError


class FinalValidation(Callback):
    """Validate after the last batch of every fit, so that a checkpoint is saved there.

    Lightning does so only if `check_val_every_n_epoch` divides the epochs and `val_check_interval` the batches of an
    epoch, and not if `max_steps` is reached in the middle of an epoch. The last batch before `max_time` is not known.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Tell Lightning which batch is the last, before it looks for the place to resume at."""
        if stage == TrainerFn.FITTING:
            validate_also(trainer, lambda: _is_last_batch_of_fit(trainer))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the Trainer."""
        validate_also(trainer, None)


def _is_last_batch_of_fit(trainer: Trainer) -> bool:
    if 0 < trainer.max_steps <= trainer.global_step:
        return True
    # A run resumed at its end, for more epochs, begins at what was the last batch then.
    last_epoch = trainer.current_epoch + 1 == trainer.max_epochs or trainer.fit_loop.epoch_loop.restarting
    return last_epoch and trainer.is_last_batch


def validation_follows(trainer: Trainer) -> bool:
    """Tell whether a validation follows the batch that has just ended.

    A checkpoint saved at this moment would lose the validation: Lightning skips it on resume.
    """
    return trainer.enable_validation and is_validation_due(trainer)


class MonitorCheck(Callback):
    """Refuse a monitored metric that is not logged, as early as this can be known.

    The sanity check shows whether the validation logs the metric and whether OverfittingMonitor can measure it, the
    first optimizer step shows it for ``train/*``, and the first validation for all others. List this callback before
    those that monitor the metric.
    """

    def __init__(self, monitor: str, key: str = "callbacks.checkpoint.monitor") -> None:
        self.monitor, self.key = monitor, key
        self._first_step: int | None = None  # global_step at the start of the fit, until there was an update
        self._validated: bool | None = None  # None: not known, as after a checkpoint of an older version

    @property
    def state_key(self) -> str:
        """A key for each check, since a run has several."""
        return f"MonitorCheck({self.key})"

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare with the metrics that the sanity check logged; some metrics come only in real validations."""
        if self.monitor in trainer.callback_metrics:
            return
        if any(self.monitor in monitor.unmeasured for monitor in callbacks_of(trainer, OverfittingMonitor)):
            raise ConfigError(f"{self.key}: '{self.monitor}' {_requirement(self.monitor)}")
        if not self.monitor.startswith(("overfit/", "probe/", "train/", "cost/")):
            raise ConfigError(self._message("is not logged by the validation. It logs", trainer))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait for the first update, unless the run is resumed: it passed this check before."""
        resumed = trainer.ckpt_path is not None
        self._first_step = None if resumed or not trainer.enable_validation else trainer.global_step
        self._validated = resumed and self._validated is not False

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """After the first update, compare with the metrics that its steps logged."""
        if self._first_step is None or trainer.global_step == self._first_step:
            return
        self._first_step = None
        if self.monitor.startswith("train/") and self.monitor not in trainer.callback_metrics:
            what = (
                "is not logged by the training steps with on_step=True. The recorded train/loss goes to the record "
                "alone, and an epoch's mean is not there yet when a validation asks. There are"
            )
            raise ConfigError(self._message(what, trainer))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Require the metric in the first real validation."""
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING or self._validated:
            return
        self._validated = True
        if self.monitor not in trainer.callback_metrics:
            why = f" It {_requirement(self.monitor)}" if self.monitor in LOGIT_METRICS | ACCURACY_METRICS else ""
            raise ConfigError(self._message(f"was not logged by the first validation.{why} It logged", trainer))

    def state_dict(self) -> dict[str, Any]:
        """Store whether there was a validation."""
        return {"validated": bool(self._validated)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` stored."""
        self._validated = state_dict.get("validated", state_dict.get("seen"))  # its name in older versions

    def _message(self, what: str, trainer: Trainer) -> str:
        known = sorted(map(str, trainer.callback_metrics))
        close = did_you_mean(self.monitor, known)
        return f"{self.key}: '{self.monitor}' {what}: {', '.join(known) or 'nothing'}.{close}"


def _requirement(metric: str) -> str:
    """Tell what OverfittingMonitor needs from a module to measure one of its metrics."""
    if metric in LOGIT_METRICS:
        return (
            "is measured only if the logits of the validation are known: validation_step calls the module as the loss "
            "does, or the module's per_example_loss returns (losses, right, logits, labels). Use overfit/gap_loss."
        )
    return (
        "is measured only if it is known which predictions are right: the module's per_example_loss returns (losses, "
        "right). Use overfit/gap_loss or probe/loss."
    )
