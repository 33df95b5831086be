"""What every learning-rate finder has in common: when it runs, what it sets, and what it leaves."""

import logging
import math
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, Literal, NamedTuple, Self, TypeVar, get_args

from tqdm.auto import tqdm

from lr_lightning._checks import check_choice, check_count, check_flag, check_number
from lr_lightning._lightning import (
    BaseCallback,
    Callback,
    LightningModule,
    Trainer,
    callbacks_of,
    is_dev_run,
    is_resuming,
    rank_zero_info,
    rank_zero_warn,
    warn_if_results_are_lost,
)
from lr_lightning._loggers import for_each_logger, log_figure, log_text
from lr_lightning.callbacks import found_lr
from lr_lightning.callbacks.lr_schedule import LRSchedule
from lr_lightning.callbacks.trainer_clock import accumulation
from lr_lightning.errors import ArgumentError
from lr_lightning.lr_finder.dry_run import DryRun, Validation, check_optimization
from lr_lightning.lr_finder.results import GridTest, RangeTest

__all__ = ["BaseLRFinder", "FinderProgressBar", "Instruments", "Metric", "NoSuggestionWarning"]

log = logging.getLogger(__name__)

_SHARE = 0.1  # of the whole: two lines of progress are at least this far apart
_SECONDS = 30.0  # and at least this long

Metric = Literal["loss", "val_loss", "accuracy"]

_Result = TypeVar("_Result", bound=RangeTest | GridTest)


class NoSuggestionWarning(UserWarning):
    """A finder has no suggestion, so the configured learning rate stays."""


class FinderProgressBar:
    """tqdm's bar if ``drawn`` and on a terminal; without a bar, a line to ``say`` now and then."""

    def __init__(self, what: str, total: int, unit: str, *, drawn: bool, say: Callable[[str], None] | None) -> None:
        self.what, self.total, self.unit, self.say = what, total, unit, say
        self.n = self._said = 0
        # disable=None: draw it only on a terminal
        self._bar = tqdm(total=total, desc=what, unit=unit, leave=False, disable=None if drawn else True)
        self._began = self._said_at = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()

    def extend(self, count: int) -> None:
        """Add units to the total."""
        self.total += count
        self._bar.total = self.total

    def update(self, count: int = 1) -> None:
        """Count units as done."""
        self.n += count
        self._bar.update(count)
        if self.say is None or not self._bar.disable or not self._said < self.n < self.total:
            return
        now = time.monotonic()
        if self.n - self._said >= _SHARE * self.total and now - self._said_at >= _SECONDS:
            self._said, self._said_at = self.n, now
            seconds, left = now - self._began, (now - self._began) / self.n * (self.total - self.n)
            self.say(f"{self.what}: {self.n}/{self.total} {self.unit}s  {seconds:.0f} s, {left:.0f} s left")


class Instruments(NamedTuple):
    """What a finder measures with."""

    dry_run: DryRun
    validation: Validation | None  # None if the metric is the training loss
    bar: FinderProgressBar


class BaseLRFinder(BaseCallback, Generic[_Result]):
    """Find a peak learning rate before a fit, and train with it: what LRFinder and LRGrid share."""

    kind: type[Any]  # the class of the results
    artifact: str  # name of figure and points among a run's artifacts, without suffix
    _started = False  # whether the module's on_train_start has been called when a measurement begins

    def __init__(
        self,
        min_lr: float,
        max_lr: float,
        metric: Metric,
        repeats: int,
        apply: bool,
        val_batches: int,
        monitor: str | None,
        attribute: str | None,
        progress: bool,
    ) -> None:
        super().__init__()
        check_number("min_lr", min_lr, above=True)
        check_number("max_lr", max_lr, above=True)
        if min_lr >= max_lr:
            raise ArgumentError(f"must be > min_lr, got min_lr={min_lr!r} and max_lr={max_lr!r}", "max_lr")
        check_choice("metric", metric, get_args(Metric))
        check_count("repeats", repeats, 1)
        check_count("val_batches", val_batches, 1)
        check_flag("apply", apply)
        self.min_lr, self.max_lr, self.metric, self.repeats = float(min_lr), float(max_lr), metric, repeats
        self.val_batches, self.monitor = val_batches, monitor
        self.apply, self.attribute, self.progress = apply, attribute, progress
        self.say: Callable[[str], None] | None = None  # receives a line now and then if no bar is drawn
        self._reset()

    def _reset(self) -> None:
        self.results: dict[int, _Result] = {}  # of this fit, by epoch
        self.seconds = 0.0  # wall time of this fit's measurements
        self.applied_lr: float | None = None  # the peak lr that was found; None: the run trains with the configured one
        self.applied_base_lr: float | None = None  # the lower bound that was found for the run's cyclical schedule
        self._reference = 1.0
        self._scheduler_factor: float | None = 1.0  # the highest lr of the module's schedulers, over the configured lr
        self._resumed = False

    @property
    def result(self) -> _Result | None:
        """The last result of this fit; None before there is one."""
        return next(reversed(self.results.values()), None)

    @abstractmethod
    def _find(self, trainer: Trainer, module: LightningModule, reference: float) -> _Result:
        """Measure, and leave no trace; the ratios of the param groups refer to ``reference``, the configured lr."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget an earlier fit; a checkpoint's state is loaded after this."""
        if stage == "fit":
            self._reset()
            warn_if_results_are_lost(trainer)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure and apply before anything has run; a resumed run already has its lr."""
        name = type(self).__name__
        check_optimization(trainer, pl_module, name)
        for callback in callbacks_of(trainer, Callback):
            if callable(check := getattr(callback, "check_fit", None)):  # LRSchedule's: refuse before measuring
                check(trainer, pl_module)
        self._resumed = is_resuming(trainer)
        self._reference = reference = found_lr.configured_lr(trainer, pl_module, self.attribute)
        if not self._is_due(trainer):
            return
        found = self._measure(trainer, pl_module, reference, self.artifact)
        if not self.apply or found.suggestion is None:
            return
        lr, base_lr = found.suggestion, None
        if found_lr.is_cyclical(trainer) and found.cycle_base_lr is not None and found.cycle_max_lr is not None:
            lr, base_lr = found.cycle_max_lr, found.cycle_base_lr
        run = found.planned if isinstance(found, RangeTest) else None
        per_epoch = run.steps / run.epochs if run is not None and run.epochs else None
        factor = 1.0 if self._scheduler_factor is None else self._scheduler_factor
        decay = found_lr.decay_message(trainer.optimizers[0], reference * factor, lr, per_epoch)
        found_lr.set_peak(trainer, pl_module, lr / factor, base_lr, self.attribute)
        self.applied_lr, self.applied_base_lr = lr, base_lr
        bounds = "" if base_lr is None else f" and a base lr of {base_lr:.3g}"
        if factor != 1.0:
            bounds += f" ({lr / factor:.3g}, which the module's lr_scheduler multiplies by {factor:.3g})"
        text = f"{name}: training with a peak lr of {lr:.3g}{bounds}, instead of {reference * factor:.3g}.{decay}"
        if self._scheduler_factor is None:
            schedulers = " and ".join(type(config.scheduler).__name__ for config in trainer.lr_scheduler_configs)
            rank_zero_warn(
                f"{text} {schedulers} may change this lr, and the finder cannot tell by what factor. Use LRSchedule "
                "instead; LRSchedule(replace=True) takes the scheduler's place."
            )
        else:
            rank_zero_info(text)
        values: dict[str, float | str | None] = {"lr_finder.lr": lr, "lr_finder.base_lr": base_lr}
        values["lr_finder.run"] = None if run is None else run.describe()
        known = {name: value for name, value in values.items() if value is not None}
        for_each_logger(trainer, "the lr that was found", lambda logger: logger.log_hyperparams(known))

    def _is_due(self, trainer: Trainer) -> bool:
        """Return whether to measure before this fit."""
        if self._resumed or trainer.limit_train_batches == 0:
            return False
        why = ""
        if is_dev_run(trainer):
            why = " in a development run (fast_dev_run)."
        elif trainer.global_step > 0:
            why = ", since this Trainer continues an earlier fit; LRFinder(at_epochs=[...]) tests during training."
        if why:
            rank_zero_warn(f"{type(self).__name__} does not measure{why}")
        return not why

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the found lr where no checkpoint holds it: in the module and the default for later param groups."""
        if any(callback.peak_on_resume == "module" for callback in callbacks_of(trainer, LRSchedule)):
            self.applied_lr = self.applied_lr if not self._resumed else None
        if self._resumed and self.applied_lr is not None:
            lr = self.applied_lr / (self._scheduler_factor or 1.0)
            found_lr.set_default_lr(trainer.optimizers[0], self._reference, lr)
            found_lr.set_module_lr(pl_module, lr, self.attribute)
            name = type(self).__name__
            rank_zero_info(f"{name}: the resumed run keeps the lr that was found, {self.applied_lr:.3g}.")

    def state_dict(self) -> dict[str, Any]:
        """Return the points of every measurement as plain values, and the lr that was applied."""
        results = [found.state() for found in self.results.values()]
        applied = {"applied": self.applied_lr, "applied_base": self.applied_base_lr, "factor": self._scheduler_factor}
        return {"results": results, **applied}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.results = {found.epoch: found for found in map(self.kind.from_state, state_dict["results"])}
        self.applied_lr, self.applied_base_lr = state_dict["applied"], state_dict["applied_base"]
        self._scheduler_factor = state_dict.get("factor", 1.0)

    def _measure(self, trainer: Trainer, module: LightningModule, reference: float, name: str) -> _Result:
        """Measure, report the result in one line, and give every logger its figure and points under a name."""
        began = time.monotonic()
        found = self._find(trainer, module, reference)
        self.seconds += time.monotonic() - began
        self.results[found.epoch] = found
        text = f"{type(self).__name__}: {found.describe()}"
        if found.suggestion is None:
            rank_zero_warn(f"{text} The configured lr is kept.", category=NoSuggestionWarning)
        else:
            rank_zero_info(f"{text}.")
        if trainer.loggers and trainer.is_global_zero:
            log_text(trainer, found.to_csv(), f"{name}.csv")
            try:
                log_figure(trainer, found.plot(), f"{name}.png")
            except ImportError as e:
                log.info("no figure: %s", e)
        return found

    def _train(
        self, instruments: Instruments, lr: float, number: int, factors: Callable[[], Iterator[float]]
    ) -> tuple[tuple[float, ...], float]:
        """Train for a while with the peak lr times each factor; return the losses, and the metric at the end.

        The losses end where one is not finite.
        """
        dry_run, validation, _ = instruments
        losses: list[float] = []
        final, complete = math.nan, True
        with dry_run.run(number):
            for factor in factors():
                loss = dry_run.step(lr * factor)
                if complete := math.isfinite(loss):
                    losses.append(loss)
                else:
                    break
            if validation is not None and complete:
                final = validation()
        return tuple(losses), final

    @contextmanager
    def _instruments(
        self, trainer: Trainer, module: LightningModule, reference: float, work: str, total: int, unit: str
    ) -> Iterator[Instruments]:
        """Prepare a measurement, and undo everything at its end."""
        ratios, accumulate = found_lr.lr_ratios(trainer, reference), accumulation(trainer)[0](trainer.current_epoch)
        drawn = self.progress and trainer.is_global_zero and trainer.progress_bar_callback is not None
        say = self.say if trainer.is_global_zero else None
        with (
            FinderProgressBar(work, total, unit, drawn=drawn, say=say) as bar,
            DryRun(trainer, module, ratios, accumulate, started=self._started) as dry_run,
        ):
            if not self._started:
                with dry_run.with_loaders():
                    for callback in callbacks_of(trainer, LRSchedule):
                        callback.planned_driver(trainer, module)  # refuses what does not fit the run
                    self._scheduler_factor = found_lr.scheduler_factor(trainer, reference)
            validation = None
            if self.metric != "loss":
                validation = Validation(dry_run, self.metric, batches=self.val_batches, monitor=self.monitor)
            yield Instruments(dry_run, validation, bar)
