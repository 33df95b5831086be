"""Early stopping that knows the schedule, by patience or by Prechelt's criteria."""

import math
from functools import partial
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from lr_lightning._checks import check_choice
from lr_lightning._lightning import FreshMetric, callbacks_of
from lr_lightning._param_groups import first_group_lr
from lr_lightning.callbacks.lr_schedule import LRSchedule
from lr_lightning.callbacks.trainer_clock import updates_made
from lr_lightning.diagnosis.early_stopping import CRITERIA, STRIP, THRESHOLDS, Phases, stop_reason

__all__ = ["ScheduleAwareStopping"]


class ScheduleAwareStopping(EarlyStopping):
    """Lightning's EarlyStopping, which does not take the schedule's effect for the model's.

    Only some validations count, and a run stops at these alone: of a cyclical schedule those at the low end of a
    cycle, and otherwise not those of a warm-up, nor those before a cooldown or drop that is still to come (see
    :class:`~lr_lightning.diagnosis.early_stopping.Phases`). That takes an LRSchedule among the callbacks; with
    another scheduler only a rate that has risen since the validation before is known, and does not count. Nor does a
    validation count that did not log the metric, such as one that OverfittingMonitor leaves out.

    Where an LRSchedule has a plateau nothing stops at its drop, and patience begins anew there; but not at a drop after
    which nothing has got better until the next, or a plateau that goes on dropping would never let a run end. A
    patience of no more than the plateau's stops before the first drop.

    Args:
        monitor: The metric; a loss, for Prechelt's criteria.
        criterion: ``"patience"`` (Lightning's), or one of Prechelt 1998: ``"gl"``, the loss is so many percent above
            its lowest; ``"pq"``, that divided by the progress of the training; ``"up"``, it rose in so many successive
            strips.
        patience: Validations that count without improvement, for ``"patience"``.
        threshold: For Prechelt's criteria; default 5 percent, 0.75, 3 strips.
        strip: Validations in a strip.
        training: The training loss for ``"pq"``: measured as the validation loss is, such as OverfittingMonitor's.
        min_delta: Least change that counts as improvement, for ``"patience"``.
        mode: ``"min"`` or ``"max"``; Prechelt's criteria take ``"min"``.
        verbose: Whether to say when and why it stops.

    Raises:
        ValueError: An argument is out of range. In the first validation: a metric is missing.

    Example:
        >>> ScheduleAwareStopping("val/loss", criterion="gl").threshold
        5.0
    """

    def __init__(
        self,
        monitor: str = "val/loss",
        criterion: str = "patience",
        *,
        patience: int = 5,
        threshold: float | None = None,
        strip: int = STRIP,
        training: str = "probe/loss",
        min_delta: float = 0.0,
        mode: str = "min",
        verbose: bool = True,
    ) -> None:
        check_choice("criterion", criterion, CRITERIA)
        for name, count in (("patience", patience), ("strip", strip)):
            if count < 1:
                raise ValueError(f"{name} must be >= 1, got {count}")
        if threshold is not None and not threshold > 0:
            raise ValueError(f"threshold must be > 0, got {threshold}")
        if criterion != "patience" and mode != "min":
            raise ValueError(f"criterion={criterion!r} takes a loss, which is better when it is lower: use mode='min'")
        super().__init__(monitor, min_delta, patience, mode=mode, check_on_train_epoch_end=False)
        self.criterion, self.strip, self.training, self.talks = criterion, strip, training, verbose
        self.threshold = THRESHOLDS.get(criterion, 0.0) if threshold is None else float(threshold)
        self._reset()

    def _reset(self) -> None:
        self._validation: list[float] = []  # of the validations that count
        self._training: list[float] = []
        self._before = 0
        self._rate = 0.0
        self._factor = 1.0  # the plateau's, at the last validation that counted
        self._better = True  # since the last drop
        self._seen = False  # whether the metrics have ever been logged
        self._renewed = {name: FreshMetric() for name in self._needed}
        self._phases: Phases | None = None

    @property
    def _needed(self) -> list[str]:
        return [self.monitor, *([self.training] if self.criterion == "pq" else [])]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget an earlier fit; a checkpoint's state is loaded after this."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._reset()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ask the criterion, if this validation counts."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        schedule = next(iter(callbacks_of(trainer, LRSchedule)), None)
        if schedule is not None:
            schedule.observe(trainer)  # its plateau may drop in this very validation
        renewed = [each(trainer, name) for name, each in self._renewed.items()]  # each is asked
        fresh = all(renewed)
        # A rank that had no batch has logged nothing, and takes part all the same.
        if not trainer.strategy.reduce_boolean_decision(fresh, all=False):
            self._check_known(trainer)
            return
        self._seen = True
        if not self._counts(trainer, schedule):
            return
        dropped = self._dropped(schedule)
        was = trainer.should_stop
        if not fresh:
            trainer.should_stop = trainer.strategy.reduce_boolean_decision(False, all=False) or was
        elif self.criterion == "patience":
            self._wait(trainer, dropped)
        else:
            self._ask(trainer, dropped)
        if self.talks and trainer.should_stop and not was:
            rank_zero_info(f"Stopped early after epoch {trainer.current_epoch + 1}: {self.stopping_reason_message}")

    def _check_known(self, trainer: Trainer) -> None:
        metrics = trainer.callback_metrics
        for name in self._needed:
            if name not in metrics and not self._seen:  # a resumed run may begin with a validation that is left out
                known = ", ".join(sorted(map(str, metrics))) or "none"
                raise ValueError(f"ScheduleAwareStopping: no metric {name!r} was logged. There are: {known}.")

    def _counts(self, trainer: Trainer, schedule: LRSchedule | None) -> bool:
        step = updates_made(trainer)
        before, self._before = self._before, step
        rate = first_group_lr(trainer) or 0.0
        rose, self._rate = 0.0 < self._rate < rate, rate
        if schedule is None:
            return not rose
        if self._phases is None:
            plan, clock = schedule.plan()
            self._phases = Phases(partial(plan, clock=clock), clock.total)
        return step > before and self._phases.counts(step, before)

    def _dropped(self, schedule: LRSchedule | None) -> bool:
        """Whether the plateau has dropped since the last validation that counted, and something got better before."""
        factor = 1.0 if schedule is None else schedule.plateau_factor
        dropped, self._factor = factor < self._factor and self._better, factor
        if dropped:
            self._better = False
        return dropped

    def _wait(self, trainer: Trainer, dropped: bool) -> None:
        best = self.best_score
        if dropped:
            self.wait_count = -1  # this validation is still of the rate before
        super().on_validation_end(trainer, trainer.lightning_module)
        self._better = self._better or self.best_score is not best

    def _ask(self, trainer: Trainer, dropped: bool) -> None:
        metrics = trainer.callback_metrics
        lowest = min(filter(math.isfinite, self._validation), default=math.inf)
        self._validation.append(float(metrics[self.monitor]))
        self._better = self._better or self._validation[-1] < lowest
        if self.criterion == "pq":
            self._training.append(float(metrics[self.training]))
        reason = stop_reason(self.criterion, self._validation, self._training, self.threshold, self.strip)
        stop = trainer.strategy.reduce_boolean_decision(reason is not None and not dropped, all=False)
        trainer.should_stop = trainer.should_stop or stop
        if stop:
            self.stopped_epoch = trainer.current_epoch
            self.stopping_reason_message = reason

    def state_dict(self) -> dict[str, Any]:
        """Lightning's state, and the losses of the validations that count."""
        own = {
            "validation": list(self._validation),
            "training": list(self._training),
            "before": self._before,
            "rate": self._rate,
            "factor": self._factor,
            "better": self._better,
            "seen": self._seen,
        }
        return {**super().state_dict(), "own": own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        super().load_state_dict(state_dict)
        own = state_dict["own"]
        self._validation, self._training = list(own["validation"]), list(own["training"])
        self._before, self._rate = own["before"], own["rate"]
        self._factor, self._better, self._seen = own["factor"], own["better"], own["seen"]
