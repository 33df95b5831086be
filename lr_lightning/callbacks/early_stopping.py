"""Early stopping that knows the schedule, by patience or by Prechelt's criteria."""

import math
from functools import partial
from typing import Any

from lr_lightning._checks import check_choice, check_count
from lr_lightning._lightning import (
    BaseEarlyStopping,
    FreshMetric,
    LightningModule,
    Trainer,
    TrainerFn,
    callbacks_of,
    can_stop_early,
    is_dev_run,
    rank_zero_info,
    rank_zero_warn,
)
from lr_lightning._param_groups import first_group_lr
from lr_lightning.callbacks.lr_schedule import LRSchedule
from lr_lightning.callbacks.trainer_clock import updates_made
from lr_lightning.diagnosis.early_stopping import CRITERIA, STRIP, THRESHOLDS, Phases, stop_reason
from lr_lightning.errors import ArgumentError


class ScheduleAwareStopping(BaseEarlyStopping):
    """Lightning's EarlyStopping, but it does not mistake the schedule's effect for the model's.

    Only some validations count, and a run stops only at these. With a cyclical schedule, a validation counts at the low
    end of a cycle. With another schedule, it counts after the warmup, unless a cooldown or a drop is still to come (see
    :class:`~lr_lightning.diagnosis.early_stopping.Phases`). The schedule is known only if it is an LRSchedule. Without
    one, a validation does not count if the learning rate has risen since the previous validation. A validation that
    did not log the metric, such as one that OverfittingMonitor leaves out, never counts. Without a validation loader,
    the metric is read at the end of each training epoch.

    If an LRSchedule has a plateau, the run does not stop at a drop of the plateau, and patience starts anew at the
    drop. But if nothing improved since the previous drop, the drop changes nothing: otherwise a plateau that keeps
    dropping would never let a run end. Give more patience than the plateau has, or the run stops before the first drop.

    Args:
        monitor: The metric; for Prechelt's criteria, a loss.
        criterion: ``"patience"`` (Lightning's), or one of Prechelt 1998: ``"gl"``, the loss is ``threshold`` percent
            above its lowest; ``"pq"``, this percentage divided by the training's progress; ``"up"``, the loss rose in
            ``threshold`` successive strips.
        patience: Validations that count without improvement, for ``"patience"``.
        threshold: Threshold of Prechelt's criteria. Default: 5 percent, 0.75, 3 strips.
        strip: Validations in a strip.
        training: The training loss for ``"pq"``: one without augmentation and dropout, such as OverfittingMonitor's.
        min_delta: Least change that counts as improvement, for ``"patience"``.
        mode: ``"min"`` or ``"max"``; Prechelt's criteria need ``"min"``.
        verbose: Whether to print when and why the run stops.

    Raises:
        ArgumentError: An argument is out of range. In the first validation: a metric is missing.

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
        check_count("patience", patience, 1)
        check_count("strip", strip, 1)
        if threshold is not None and not threshold > 0:
            raise ArgumentError(f"must be > 0, got {threshold}", "threshold")
        if criterion != "patience" and mode != "min":
            raise ArgumentError(
                f"{criterion!r} takes a loss, which is better when it is lower: use mode='min'", "criterion"
            )
        super().__init__(monitor, min_delta, patience, mode=mode, check_on_train_epoch_end=False)
        self.criterion, self.strip, self.training, self._announces = criterion, strip, training, verbose
        self.threshold = THRESHOLDS.get(criterion, 0.0) if threshold is None else float(threshold)
        self._reset()

    def _reset(self) -> None:
        self._validation: list[float] = []  # losses of the validations that count
        self._training: list[float] = []
        self._step_before = 0  # at the previous validation
        self._lr_before = 0.0
        self._plateau_factor = 1.0  # at the last validation that counted
        self._improved = True  # since the plateau's last drop
        self._seen = False  # whether the metrics were ever logged
        needed = [self.monitor, *([self.training] if self.criterion == "pq" else [])]
        self._fresh = {name: FreshMetric() for name in needed}
        self._phases: Phases | None = None
        self._evaluated = False  # whether there was anything to evaluate in this fit

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget an earlier fit; Lightning loads a checkpoint's state after this."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._reset()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate the criterion, if this validation counts."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking and not is_dev_run(trainer):
            self._evaluate(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate the criterion at the end of an epoch if there is no validation."""
        if not trainer.enable_validation and not is_dev_run(trainer):
            self._evaluate(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn if no validation ran, although there is a validation loader."""
        if not self._evaluated and not is_dev_run(trainer):
            rank_zero_warn(
                f"ScheduleAwareStopping never read {self.monitor!r}: no validation ran in this fit. See "
                "check_val_every_n_epoch and val_check_interval of the Trainer."
            )

    def _evaluate(self, trainer: Trainer) -> None:
        self._evaluated = True
        schedule = next(iter(callbacks_of(trainer, LRSchedule)), None)
        if schedule is not None:
            schedule.observe(trainer)  # its plateau may drop in this very validation
            if schedule.is_cooling:
                return  # the cooldown ends the run
        asked = [metric(trainer, name) for name, metric in self._fresh.items()]  # a list, so that each is called
        fresh = all(asked)
        # A rank that had no batch has logged nothing, but it takes part in the decisions.
        if not trainer.strategy.reduce_boolean_decision(fresh, all=False):
            self._check_logged(trainer)
            return
        self._seen = True
        if not self._counts(trainer, schedule):
            return
        dropped = self._dropped(schedule)
        was = trainer.should_stop
        if not fresh:
            trainer.should_stop = trainer.strategy.reduce_boolean_decision(False, all=False) or was
        elif self.criterion == "patience":
            self._apply_patience(trainer, dropped)
        else:
            self._apply_criterion(trainer, dropped)
        if self._announces and trainer.should_stop and not was:
            # Lightning's reason ends with what it does
            reason = (self.stopping_reason_message or "").removesuffix(" Signaling Trainer to stop.")
            text = f"after epoch {trainer.current_epoch + 1}: {reason}"
            if can_stop_early(trainer):
                rank_zero_info(f"Stopped early {text}")
            else:
                short = trainer.min_steps and trainer.global_step < trainer.min_steps
                least = f"min_steps={trainer.min_steps}" if short else f"min_epochs={trainer.min_epochs}"
                rank_zero_info(f"The run will stop early, but not before {least}. Decided {text}")

    def _check_logged(self, trainer: Trainer) -> None:
        metrics = trainer.callback_metrics
        missing = next((name for name in self._fresh if name not in metrics), None)
        if missing is not None and not self._seen:  # the first validation of a resumed run may log nothing
            known = ", ".join(sorted(map(str, metrics))) or "none"
            raise ArgumentError(f"ScheduleAwareStopping: no metric {missing!r} was logged. There are: {known}.")

    def _counts(self, trainer: Trainer, schedule: LRSchedule | None) -> bool:
        step = updates_made(trainer)
        before, self._step_before = self._step_before, step
        lr = first_group_lr(trainer) or 0.0
        rose, self._lr_before = 0.0 < self._lr_before < lr, lr
        if schedule is None:
            return not rose
        if self._phases is None:
            plan, clock = schedule.plan()
            self._phases = Phases(partial(plan, clock=clock), clock.total)
        return step > before and self._phases.counts(step, before)

    def _dropped(self, schedule: LRSchedule | None) -> bool:
        """Return whether the plateau dropped since the last validation that counted, after an improvement."""
        factor = 1.0 if schedule is None else schedule.plateau_factor
        dropped, self._plateau_factor = factor < self._plateau_factor and self._improved, factor
        self._improved = self._improved and not dropped
        return dropped

    def _apply_patience(self, trainer: Trainer, dropped: bool) -> None:
        best = self.best_score
        if dropped:
            self.wait_count = -1  # this validation was still trained at the previous learning rate
        super().on_validation_end(trainer, trainer.lightning_module)
        self._improved = self._improved or self.best_score is not best

    def _apply_criterion(self, trainer: Trainer, dropped: bool) -> None:
        metrics = trainer.callback_metrics
        lowest = min(filter(math.isfinite, self._validation), default=math.inf)
        self._validation.append(float(metrics[self.monitor]))
        self._improved = self._improved or self._validation[-1] < lowest
        if self.criterion == "pq":
            self._training.append(float(metrics[self.training]))
        reason = stop_reason(self.criterion, self._validation, self._training, self.threshold, self.strip)
        stop = trainer.strategy.reduce_boolean_decision(reason is not None and not dropped, all=False)
        trainer.should_stop = trainer.should_stop or stop
        if stop:
            self.stopped_epoch = trainer.current_epoch
            self.stopping_reason_message = reason

    def state_dict(self) -> dict[str, Any]:
        """Return Lightning's state, and the losses of the validations that count."""
        own = {  # the keys of earlier checkpoints
            "validation": list(self._validation),
            "training": list(self._training),
            "before": self._step_before,
            "rate": self._lr_before,
            "factor": self._plateau_factor,
            "better": self._improved,
            "seen": self._seen,
        }
        return {**super().state_dict(), "own": own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state."""
        super().load_state_dict(state_dict)
        own = state_dict["own"]
        self._validation, self._training = list(own["validation"]), list(own["training"])
        self._step_before, self._lr_before = own["before"], own["rate"]
        self._plateau_factor, self._improved, self._seen = own["factor"], own["better"], own["seen"]
