"""Two small callbacks that keep a run from ending without a result."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lr_lightning.app.errors import ConfigError, did_you_mean


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


class MonitorCheck(Callback):
    """Find out in the sanity check, not after the first epoch, that a metric that is monitored is not logged.

    Args:
        monitor: The metric.
        key: The config key that named it.
    """

    def __init__(self, monitor: str, key: str = "callbacks.checkpoint.monitor") -> None:
        self.monitor, self.key = monitor, key

    @property
    def state_key(self) -> str:
        """One for each, since a run has several."""
        return f"MonitorCheck({self.key})"

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare with what the validation has just logged; `overfit/*` and `probe/*` come only in real ones."""
        known = sorted(str(key) for key in trainer.callback_metrics)
        if self.monitor not in known and not self.monitor.startswith(("overfit/", "probe/", "train/", "cost/")):
            raise ConfigError(
                f"{self.key}: '{self.monitor}' is not logged by the validation. "
                f"It logs: {', '.join(known) or 'nothing'}.{did_you_mean(self.monitor, known)}"
            )
