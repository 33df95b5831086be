"""The callback in every trial's run: it tells the study how far the trial has come, and ends a hopeless one."""

import logging
import math
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from lightning.pytorch import Callback, LightningModule, Trainer

from lr_lightning._lightning import callbacks_of
from lr_lightning.callbacks.loggers import log_tags
from lr_lightning.callbacks.lr_schedule import LRSchedule
from lr_lightning.callbacks.overfitting import OverfittingMonitor
from lr_lightning.callbacks.trainer_clock import trainer_clock, updates_made
from lr_lightning.diagnosis.early_stopping import Phases

__all__ = ["Judge", "TrialWatch"]

log = logging.getLogger(__name__)
_HOPELESS = ("diverged", "collapsed")


class Judge(Protocol):
    """What a study says about a trial that is under way."""

    def report(self, value: float, validation: int) -> None:
        """Take the value of a validation, counted from 1."""

    def verdict(self, progress: float, counts: bool) -> str | None:
        """Why the trial should end now, or None.

        Args:
            progress: Share of the run that is done.
            counts: Whether this validation may be compared with others, by the schedule's phase.
        """


class TrialWatch(Callback):
    """Report each validation of a run, and end the run if it is hopeless, on all ranks at once.

    Args:
        monitor: The metric that is reported.
        higher: Whether a higher value of it is better.
        judge: Asked on the first rank after each validation; None for a run that is only watched.
        verdict: Whether a run that has diverged or collapsed ends.
        patience: Share of the run before which nothing ends it.
    """

    def __init__(
        self,
        monitor: str,
        higher: bool,
        judge: Callable[[], Judge] | None = None,
        *,
        verdict: bool = False,
        patience: float = 0.25,
    ) -> None:
        self.monitor, self.higher = monitor, higher
        self._make_judge = judge
        self._judge: Judge | None = None
        self._verdict, self._patience = verdict, patience
        self.reason: str | None = None
        self.best: float | None = None
        self.validations = 0
        self.epochs = 0.0
        self.logged: dict[str, float] = {}
        self._before = 0
        self._phases: Phases | None = None

    @property
    def gives_up(self) -> bool:
        """Whether the run was ended: its test would be for nothing."""
        return self.reason is not None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count what a budget in epochs is spent on."""
        self.epochs = float(trainer.current_epoch + 1)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report, and ask."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        self.validations += 1
        self.epochs = max(self.epochs, float(trainer.current_epoch + 1))
        self.logged = {str(key): float(value) for key, value in trainer.callback_metrics.items()}
        value = self.logged.get(self.monitor)
        if value is not None and math.isfinite(value):
            better = self.best is None or (value > self.best if self.higher else value < self.best)
            self.best = value if better else self.best
        progress, counts = self._place(trainer)
        reason = self._ask(trainer, value, progress, counts) if trainer.is_global_zero else None
        reason = trainer.strategy.broadcast(reason)
        if reason is not None:
            self.reason = reason
            log_tags(trainer, {"pruned": reason[:500]})
            trainer.should_stop = True

    def _ask(self, trainer: Trainer, value: float | None, progress: float, counts: bool) -> str | None:
        if progress >= 1.0:
            return None  # nothing would be saved
        if self._verdict and progress >= self._patience and counts:
            for verdict in (monitor.verdict for monitor in callbacks_of(trainer, OverfittingMonitor)):
                if verdict.label in _HOPELESS:
                    return f"{verdict.label}: {verdict.detail}".rstrip(": ")
        if self._make_judge is None or value is None:
            return None
        try:
            if self._judge is None:
                self._judge = self._make_judge()
            self._judge.report(value, self.validations)
            return self._judge.verdict(progress, counts)
        except Exception as e:  # whatever the storage's driver raises: it must not end a training
            log.warning("the study does not answer, so this validation is not reported: %s", e)
            return None

    def _place(self, trainer: Trainer) -> tuple[float, bool]:
        """How much of the run is done, and whether this validation may be compared with others'."""
        step, before = updates_made(trainer), self._before
        self._before = step
        total = trainer_clock(trainer).total
        if self._phases is None:
            for callback in callbacks_of(trainer, LRSchedule):
                schedule, clock = callback.plan()
                self._phases = Phases(partial(schedule, clock=clock), clock.total)
        counts = self._phases is None or (step > before and self._phases.counts(step, before))
        return (min(1.0, step / total) if total else 0.0), counts

    def state_dict(self) -> dict[str, Any]:
        """How far it has come."""
        return {"validations": self.validations, "best": self.best, "before": self._before, "epochs": self.epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there; a test of an earlier checkpoint leaves what the fit came to."""
        if self.validations == 0:
            self.validations, self.best = state_dict["validations"], state_dict["best"]
            self._before, self.epochs = state_dict["before"], state_dict["epochs"]
