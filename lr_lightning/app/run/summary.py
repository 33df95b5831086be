"""The few numbers a run comes down to."""

import math
import time
from dataclasses import dataclass, field
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lr_lightning._lightning import callbacks_of
from lr_lightning.callbacks.overfitting import OverfittingMonitor
from lr_lightning.callbacks.run_cost import RunCost
from lr_lightning.diagnosis import History, Verdict

_TRACKED = {"val/loss": min, "val/acc": max}
_LAST = {
    "probe/loss": "probe_loss",
    "probe/acc": "probe_acc",
    "overfit/gap_loss": "gap_loss",
    "overfit/gap_acc": "gap_acc",
}


class Summary(Callback):
    """Keep the best and last validation values and the seconds of a run, over every resume of it."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}
        self._seconds_before = 0.0
        self._started: float | None = None
        self.stepped = False

    def on_train_batch_start(self, *_: Any) -> None:
        """From here on an error is not one of the input."""
        self.stepped = True

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._started = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the values of this validation."""
        if trainer.sanity_checking:
            return
        for key, better in _TRACKED.items():
            value = trainer.callback_metrics.get(key)
            if value is not None and math.isfinite(value):
                name = key.replace("/", "_")
                self.values[f"last_{name}"] = float(value)
                self.values[f"best_{name}"] = better(self.values.get(f"best_{name}", float(value)), float(value))
        for key, name in _LAST.items():
            if key in trainer.callback_metrics:
                self.values[name] = float(trainer.callback_metrics[key])

    @property
    def seconds(self) -> float:
        """Wall time of the fit so far, the parts before a resume included."""
        return self._seconds_before + (time.monotonic() - self._started if self._started is not None else 0.0)

    def state_dict(self) -> dict[str, Any]:
        """The values and seconds so far."""
        return {"values": dict(self.values), "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from them."""
        self.values, self._seconds_before = dict(state_dict["values"]), state_dict["seconds"]


@dataclass(frozen=True)
class Outcome:
    """What a fit came to.

    Attributes:
        summary: The values of ``summary/*``, without the prefix.
        history: What was measured at its validations, where it was measured.
        verdict: Whether it over- or underfits.
    """

    summary: dict[str, float] = field(default_factory=dict)
    history: History | None = None
    verdict: Verdict | None = None


def outcome_of(trainer: Trainer) -> Outcome:
    """Best and last validation, probe, gap, steps, seconds and cost of a fit, and the verdict on it."""
    callback = _callback(trainer)
    summary = {**callback.values, "steps": float(trainer.global_step), "seconds": callback.seconds}
    summary |= next((cost.summary for cost in callbacks_of(trainer, RunCost)), {})
    monitor = next(iter(callbacks_of(trainer, OverfittingMonitor)), None)
    return Outcome(summary) if monitor is None else Outcome(summary, monitor.history, monitor.verdict)


def stepped(trainer: Trainer) -> bool:
    """Whether this process has begun a training step."""
    return _callback(trainer).stepped


def _callback(trainer: Trainer) -> Summary:
    return callbacks_of(trainer, Summary)[0]
