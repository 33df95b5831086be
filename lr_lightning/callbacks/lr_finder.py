"""The learning-rate finders: Smith's range test and a grid, before training or during it, without a trace."""

import enum
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import repeat
from typing import Any, Literal, get_args

import numpy as np

from lr_lightning._checks import check_choice, check_count, check_flag
from lr_lightning._lightning import (
    BaseCallback,
    BatchSizeFinder,
    LearningRateFinder,
    LightningModule,
    Trainer,
    callbacks_of,
    is_dev_run,
    isolate_rng,
    make_trainer,
    of_both_packages,
    rank_zero_info,
)
from lr_lightning._loggers import for_each_logger
from lr_lightning.callbacks.base_finder import BaseLRFinder, Instruments, Metric
from lr_lightning.callbacks.found_lr import configured_lr
from lr_lightning.callbacks.lr_schedule import LRSchedule
from lr_lightning.callbacks.optimizer_driver import OptimizerDriver
from lr_lightning.errors import ArgumentError
from lr_lightning.lr_finder.curve import DivergenceStop
from lr_lightning.lr_finder.dry_run import DryRun
from lr_lightning.lr_finder.planned_run import FEWEST_LONG, FEWEST_SHORT, SHORT, PlannedRun, next_lr, trial_steps
from lr_lightning.lr_finder.results import GridTest, RangeTest
from lr_lightning.schedules import Clock, Constant
from lr_lightning.schedules.clock import DurationLike, parse_duration

__all__ = ["LRFinder", "LRGrid", "NoShortRuns", "find_lr", "planned_run"]

_Mode = Literal["exponential", "linear"]
_FEWEST_STEPS = 10
_ANOTHER_SCHEDULE = 0.05  # change of log lr; longer runs of one schedule move it by less
_SHORTEST_RUN = 100  # updates; there are no trials before a shorter run
_SHORTEST_TRIAL = 44  # updates of a long one
_Training = tuple[tuple[float, ...], float]  # its losses, and the metric at its end


class NoShortRuns(enum.Enum):
    """The reason why no short runs follow the range test."""

    NOT_ASKED = "is given no budget"
    SCHEDULER = (
        "tries the schedule of LRSchedule or a constant lr, and configure_optimizers returns a scheduler. Give the "
        "schedule to LRSchedule, or LRSchedule(replace=True), or use LRFinder."
    )
    CYCLE = "finds one peak, and the schedule goes up and down above a base_lr. Use LRFinder, which finds both bounds."
    UNKNOWN_LENGTH = (
        "must know how long the run is, and nothing says it here (a loader without a length, or only max_time). Give "
        "Trainer(max_steps=...) or LRSchedule(total_steps=...), or use LRFinder."
    )
    SHORT = f"needs a run of {_SHORTEST_RUN} updates or more. Use LRFinder, or train longer."


class LRFinder(BaseLRFinder[RangeTest]):
    """Find the peak learning rate of the planned run before it starts, and train with it.

    First comes Smith's range test (Smith 2017, "Cyclical learning rates for training neural networks", 1506.01186,
    section 3.3): the learning rate rises from update to update while the loss is recorded.
    :func:`~lr_lightning.lr_finder.curve.read_curve` says what the curve means. It answers for a few hundred steps, and
    so its suggestion is only where the trials begin. Trials train with a few peaks on the run's own schedule, shortened
    to two lengths, from the same start and over the same batches. The short trials search for a good peak; the result
    of the long trials is extrapolated to the length of the run
    (:func:`~lr_lightning.lr_finder.planned_run.read_trials`). The schedule is taken from ``LRSchedule``; without one,
    the lr is constant. There are no trials if the run's length is unknown or below 100 updates, if its schedule is
    cyclical above a base_lr or comes from ``configure_optimizers``, or without a ``budget``: then the range test
    answers alone.

    Apart from the learning rate that is set, the run equals one without a test, bit for bit: weights, optimizer state,
    buffers, metrics, attributes of the module, gradients, data order and all random generators are restored, even after
    an exception. A warning names what cannot be restored (an iterator or an open file that the module holds). A resumed
    run is not tested again: it has the learning rate that was found.

    Param groups keep the ratios of their learning rates. The found learning rate becomes the peak of each group
    (``initial_lr``), of ``LRSchedule`` and of schedulers that ``configure_optimizers`` made, and the module's ``lr`` or
    ``learning_rate`` (of its hparams too); triangular schedules and CyclicLR get ``base_lr`` and ``max_lr``. Without a
    suggestion, training continues with the configured learning rate, and a warning says why and what to try.

    A range test can mislead: when a pretrained transformer is fine-tuned, a range test suggests 1e-3 where 1e-5 is
    right.

    Args:
        min_lr: The first lr, > 0, of the param group that has the module's own lr, or else of the first group.
        max_lr: The last lr, > ``min_lr``. If ``retry`` leads to a second test, this test goes further.
        num_steps: Number of optimizer updates, >= 10, on a grid from ``min_lr`` to ``max_lr``.
        mode: ``"exponential"`` (a geometric grid) or ``"linear"``.
        metric: ``"loss"`` (of the training batches), or ``"val_loss"`` or ``"accuracy"`` of the first validation
            batches, measured before each update.
        repeats: Number of tests from the same start, each with other batches and random numbers; the curve is the mean.
        apply: Whether to train with the lr that was found.
        retry: Whether to test once more, over a range that reaches ten times further, if the first range ends too early
            or begins too late. The second test costs as much as the first one and replaces it.
        budget: Most updates for range test and trials together, such as ``"10%"`` of the run or ``500``; None for no
            trials. A smaller budget than the shortest trials need, about 340 updates in all, counts as that many.
        at_epochs: Test at the start of these epochs, counted from 0, instead of before the run, and apply nothing.
        early_stop: Whether to end a test when the loss has clearly diverged.
        val_batches: Number of validation batches, if ``metric`` needs them, >= 1.
        monitor: The name under which the module logs that metric, if it is not a usual one.
        attribute: The name of the module's own lr, if it is not ``lr`` or ``learning_rate``; dots lead into hparams.
        progress: Whether to show a progress bar on a terminal.

    Attributes:
        result: The last test of this fit, None before it; ``results`` holds all tests by epoch.

    Raises:
        ArgumentError: An argument is out of range. At the start of a fit, before anything runs: manual optimization,
            several optimizers, or a loader that cannot be iterated twice.

    Example:
        >>> finder = LRFinder(min_lr=1e-5, max_lr=1.0)
    """

    kind = RangeTest
    artifact = "range_test/curve"

    def __init__(
        self,
        min_lr: float = 1e-6,
        max_lr: float = 10.0,
        num_steps: int = 100,
        mode: _Mode = "exponential",
        metric: Metric = "loss",
        repeats: int = 1,
        apply: bool = True,
        *,
        retry: bool = True,
        budget: DurationLike | None = "10%",
        at_epochs: Collection[int] | None = None,
        early_stop: bool = True,
        val_batches: int = 4,
        monitor: str | None = None,
        attribute: str | None = None,
        progress: bool = True,
    ) -> None:
        super().__init__(min_lr, max_lr, metric, repeats, apply, val_batches, monitor, attribute, progress)
        check_count("num_steps", num_steps, _FEWEST_STEPS)
        check_choice("mode", mode, get_args(_Mode))
        check_flag("retry", retry)
        if budget is not None:
            parse_duration(budget, "budget", positive=True)
        if isinstance(at_epochs, int):
            raise ArgumentError(f"must be several epochs, such as [{at_epochs}], got {at_epochs!r}", "at_epochs")
        for epoch in at_epochs or ():
            check_count("each of at_epochs", epoch, 0)
        self.num_steps, self.mode, self.retry, self.early_stop = num_steps, mode, retry, early_stop
        self.budget = budget
        self._instead: tuple[LRSchedule, int, int] | None = None  # the run to answer for, if not the Trainer's own
        self.at_epochs, self._started = None if at_epochs is None else frozenset(at_epochs), at_epochs is not None

    @property
    def state_key(self) -> str:
        """The checkpoint's key of this callback; a finder for the start and one for later may share a run."""
        return self._generate_state_key(at_epochs=sorted(self.at_epochs)) if self.at_epochs else super().state_key

    @property
    def grid(self) -> tuple[float, ...]:
        """The learning rates that are tested: ``num_steps`` of them, from ``min_lr`` to ``max_lr``, both exact."""
        return self._grid(self.min_lr, self.max_lr)

    def _grid(self, low: float, high: float, num_steps: int | None = None) -> tuple[float, ...]:
        spaced = np.geomspace if self.mode == "exponential" else np.linspace
        return tuple(map(float, spaced(low, high, num_steps or self.num_steps)))

    def answer_for(self, schedule: LRSchedule, max_steps: int, max_epochs: int) -> None:
        """Answer for a run of this schedule and length, in a Trainer that only searches; -1 is no limit."""
        self._instead = schedule, max_steps, max_epochs

    def _is_due(self, trainer: Trainer) -> bool:
        return self.at_epochs is None and super()._is_due(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the found lr where no checkpoint holds it; say what it becomes if the schedule is another one now."""
        super().on_train_start(trainer, pl_module)
        found, schedule = self.result, next(iter(callbacks_of(trainer, LRSchedule)), None)
        if not self._resumed or self.applied_lr is None or found is None or found.planned is None or schedule is None:
            return
        driver, clock = schedule.planned_driver(trainer, pl_module)
        if clock.total is None:
            return
        run = PlannedRun.of(driver.schedule, clock)
        lr = found.planned.equivalent_lr(self.applied_lr, run)
        if abs(math.log(lr / self.applied_lr)) > _ANOTHER_SCHEDULE:
            rank_zero_info(
                f"{type(self).__name__}: the lr of {self.applied_lr:.3g} was found for {found.planned.describe()}. For "
                f"{run.describe()} it becomes {lr:.2g}; the resumed run keeps {self.applied_lr:.3g}."
            )

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Test, if this is one of ``at_epochs``."""
        if self.at_epochs is not None and trainer.current_epoch in self.at_epochs:
            reference, step = configured_lr(trainer, pl_module, self.attribute), trainer.global_step
            result = self._measure(trainer, pl_module, reference, f"range_test/epoch_{trainer.current_epoch}")
            values = {"lr": result.suggestion, "base_lr": result.cycle_base_lr, "max_lr": result.cycle_max_lr}
            found = {f"lr_finder/{name}": value for name, value in values.items() if value is not None}
            if found:
                for_each_logger(trainer, "what LRFinder found", lambda logger: logger.log_metrics(found, step=step))

    def _find(self, trainer: Trainer, module: LightningModule, reference: float) -> RangeTest:
        total = self.repeats * self.num_steps
        with self._instruments(trainer, module, reference, "LR range test", total, "step") as instruments:
            found = self._test(instruments, self.grid)
            if not isinstance(planned := self._planned(instruments.dry_run), NoShortRuns):
                return self._try(instruments, found, *planned)
            if not self.retry or (wider := found.wider()) is None:
                return found
            rank_zero_info(
                f"LRFinder: {found.reason}. It tests a wider range once, {wider[0]:.3g} to {wider[1]:.3g}; "
                "LRFinder(retry=False) does not."
            )
            instruments.bar.extend(total)
            return self._test(instruments, self._grid(*wider))

    def _test(self, instruments: Instruments, grid: tuple[float, ...]) -> RangeTest:
        """Test one range, ``repeats`` times."""
        dry_run, _, bar = instruments
        curves, begun = [], bar.n
        for number in range(self.repeats):
            with dry_run.run(number):
                curves.append(self._record_curve(instruments, grid))
            bar.update(begun + (number + 1) * len(grid) - bar.n)  # the steps that an early stop has left out
        metric = "loss" if instruments.validation is None else self.metric
        return RangeTest(grid, tuple(curves), metric=metric, mode=self.mode, epoch=dry_run.trainer.current_epoch)

    def _planned(self, dry_run: DryRun) -> tuple[OptimizerDriver, Clock] | NoShortRuns:
        """Return what will drive the planned run, and its clock, or why there is no such run to try."""
        trainer, module = dry_run.trainer, dry_run.module
        if self.budget is None or self.at_epochs is not None:
            return NoShortRuns.NOT_ASKED
        if trainer.lr_scheduler_configs:
            return NoShortRuns.SCHEDULER
        schedule = next(iter(callbacks_of(trainer, LRSchedule)), None) or LRSchedule(Constant())
        with dry_run.with_loaders():
            if self._instead is not None:
                schedule, trainer.fit_loop.epoch_loop.max_steps, trainer.fit_loop.max_epochs = self._instead
            if schedule.has_base:  # the range test gives both bounds
                return NoShortRuns.CYCLE
            driver, clock = schedule.planned_driver(trainer, module)
        if clock.total is None:
            return NoShortRuns.UNKNOWN_LENGTH
        return (driver, clock) if clock.total >= _SHORTEST_RUN else NoShortRuns.SHORT

    def _try(self, instruments: Instruments, found: RangeTest, driver: OptimizerDriver, clock: Clock) -> RangeTest:
        """Train on the planned schedule, shortened, with a few learning rates; return what was found with the range."""
        run = planned_run(driver, clock)
        sign = -1.0 if self.metric == "accuracy" else 1.0
        first, start = found.first_trial, sign * found.start
        long = self._trial_length(run.steps, clock)
        trials = []
        for length, fewest in ((round(SHORT * long), FEWEST_SHORT), (long, FEWEST_LONG)):
            trained: dict[float, list[_Training]] = {}
            scores: dict[float, float] = {}
            while (lr := next_lr(scores, first, start, fewest)) is not None:
                instruments.bar.extend(self.repeats * length)
                trained[lr] = self._trial(instruments, lr, length, driver, clock)
                scores[lr] = sign * _grid_test({lr: trained[lr]}, length, self.metric, found.epoch).mean_scores[0]
            trials.append(_grid_test(trained, length, self.metric, found.epoch))
            finite = {lr: value for lr, value in scores.items() if math.isfinite(value)}
            first = min(finite, key=lambda lr: finite[lr], default=min(scores))
        return replace(found, planned=run, trials=tuple(trials))

    def _trial(
        self, instruments: Instruments, lr: float, length: int, driver: OptimizerDriver, clock: Clock
    ) -> list[_Training]:
        """Train on the planned schedule, shortened to ``length`` updates, ``repeats`` times."""

        def factors() -> Iterator[float]:
            for step in trial_steps(length, clock.need_total("a trial")):
                driver.drive(step, clock)  # momentum and weight decay too
                yield driver.schedule(step, clock)

        trained = [self._train(instruments, lr, number, factors) for number in range(self.repeats)]
        instruments.bar.update(self.repeats * length)
        return trained

    def _trial_length(self, total: int, clock: Clock) -> int:
        """Return the updates of a long trial: what the budget has room for, >= 44, but at most a quarter of the run.

        The budget has to suffice for the range test, for 5 short trials and for 4 long ones.
        """
        left = clock.steps(self.budget or 0) // self.repeats - self.num_steps
        length = int(left / (FEWEST_SHORT * SHORT + FEWEST_LONG + 1))
        return min(max(length, _SHORTEST_TRIAL), total // 4)

    def _record_curve(self, instruments: Instruments, grid: tuple[float, ...]) -> tuple[float, ...]:
        """Return the value before each update, until it diverges or is not finite."""
        dry_run, validation, bar = instruments
        diverged = DivergenceStop(higher_is_better=validation is not None and self.metric == "accuracy")
        values: list[float] = []
        for lr in grid:
            measured = None if validation is None else validation()  # before the update
            loss = dry_run.step(lr)
            value = loss if measured is None else measured
            bar.update()
            if not np.isfinite(value):
                break
            values.append(value)
            if diverged(value) and self.early_stop:
                break
        return tuple(values)


class LRGrid(BaseLRFinder[GridTest]):
    """Train for some steps with each lr of a log grid, from the same start and over the same batches; take the best.

    It costs ``num_lrs`` times as much as :class:`LRFinder` with as many steps, and it is the ground truth for short
    trainings. Like LRFinder it leaves no other trace, and it sets the lr that it found in the same places. If the best
    lr is at an edge of the grid, or all of them diverge, there is no suggestion.

    ``apply``, ``val_batches``, ``monitor``, ``attribute``, ``progress`` and the errors are those of LRFinder.

    Args:
        min_lr: The lowest lr, > 0.
        max_lr: The highest lr, > ``min_lr``.
        num_lrs: Number of learning rates, >= 3, in a geometric grid.
        num_steps: Number of optimizer updates with each, >= 10.
        metric: What decides: ``"loss"`` (the training loss, mean of the last fifth of the steps), or ``"val_loss"`` or
            ``"accuracy"`` of the first validation batches at the end.
        repeats: Number of trainings with each lr, each time with other batches and random numbers.

    Example:
        >>> grid = LRGrid(min_lr=1e-4, max_lr=1.0, num_lrs=9, num_steps=50)
    """

    kind = GridTest
    artifact = "lr_grid/losses"

    def __init__(
        self,
        min_lr: float = 1e-5,
        max_lr: float = 10.0,
        num_lrs: int = 13,
        num_steps: int = 100,
        metric: Metric = "loss",
        repeats: int = 1,
        apply: bool = True,
        *,
        val_batches: int = 4,
        monitor: str | None = None,
        attribute: str | None = None,
        progress: bool = True,
    ) -> None:
        super().__init__(min_lr, max_lr, metric, repeats, apply, val_batches, monitor, attribute, progress)
        check_count("num_lrs", num_lrs, 3)
        check_count("num_steps", num_steps, _FEWEST_STEPS)
        self.num_lrs, self.num_steps = num_lrs, num_steps

    @property
    def grid(self) -> tuple[float, ...]:
        """The learning rates: ``num_lrs`` of them, from ``min_lr`` to ``max_lr``, both exact."""
        return tuple(map(float, np.geomspace(self.min_lr, self.max_lr, self.num_lrs)))

    def _find(self, trainer: Trainer, module: LightningModule, reference: float) -> GridTest:
        total, numbers = self.num_lrs * self.repeats, range(self.repeats)
        with self._instruments(trainer, module, reference, "LR grid", total, "run") as instruments:
            runs: dict[float, list[_Training]] = {}
            for lr in self.grid:
                runs[lr] = []
                for number in numbers:
                    runs[lr].append(self._train(instruments, lr, number, lambda: repeat(1.0, self.num_steps)))
                    instruments.bar.update()
        return _grid_test(runs, self.num_steps, self.metric, trainer.current_epoch)


def planned_run(driver: OptimizerDriver, clock: Clock) -> PlannedRun:
    """Describe the run that a driver and its clock plan."""
    adaptive = any({"eps", "betas"} & group.keys() for group in driver.optimizer.param_groups)
    return PlannedRun.of(driver.schedule, clock, adaptive)


def _grid_test(runs: Mapping[float, Sequence[_Training]], num_steps: int, metric: str, epoch: int) -> GridTest:
    """Gather the losses and final metrics of every repeat of each learning rate."""
    lrs = tuple(sorted(runs))
    curves = tuple(tuple(losses for losses, _ in runs[lr]) for lr in lrs)
    finals = None if metric == "loss" else tuple(tuple(final for _, final in runs[lr]) for lr in lrs)
    return GridTest(lrs, curves, num_steps, finals, metric=metric, epoch=epoch)


class _NoTraining(BaseCallback):
    """End a fit before its first batch."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.limit_train_batches = 0


def find_lr(
    module: LightningModule,
    train_dataloaders: Any = None,
    val_dataloaders: Any = None,
    *,
    datamodule: Any = None,
    trainer: Trainer | None = None,
    **settings: Any,
) -> RangeTest:
    """Run LRFinder without a training, such as in a notebook, and return its result.

    Nothing is trained, logged, saved or set: module, Trainer and random generators are as before, so that a fit may
    follow. The result has the ``suggestion`` (None if there is none), says why with ``describe()``, and draws itself
    with ``plot()``.

    Args:
        module: The module, with its own ``training_step`` and ``configure_optimizers``.
        train_dataloaders: As for ``Trainer.fit``.
        val_dataloaders: As for ``Trainer.fit``; needed for ``metric="val_loss"`` or ``"accuracy"``.
        datamodule: Instead of the loaders.
        trainer: A Trainer that has not trained yet, whose length, LRSchedule, devices, precision, accumulation and
            clipping count; without one, a range test on one device answers, for no planned run.
        settings: Arguments of LRFinder, such as ``num_steps=200``.

    Raises:
        ArgumentError: As LRFinder raises it, or the Trainer cannot measure.

    Example:
        >>> result = find_lr(module, train_loader)  # doctest: +SKIP
        >>> result.suggestion, result.plot()  # doctest: +SKIP
    """
    for name in settings.keys() & {"apply", "at_epochs"}:
        raise ArgumentError("cannot be given to find_lr, which does not train; use LRFinder in a Trainer", name)
    if trainer is None:
        settings = {"budget": None, **settings}  # there is no planned run
        trainer = make_trainer(
            module, devices=1, max_epochs=1, logger=False, enable_checkpointing=False, enable_model_summary=False
        )
    elif trainer.global_step > 0 or is_dev_run(trainer) or trainer.limit_train_batches == 0:
        raise ArgumentError(
            "must be a Trainer that has not trained yet, without fast_dev_run and limit_train_batches=0", "trainer"
        )
    finder = LRFinder(apply=False, **settings)
    with _only_measuring(trainer, module, finder):
        trainer.fit(module, train_dataloaders, val_dataloaders, datamodule)
    if finder.result is None:
        name = type(module).__name__
        raise ArgumentError(f"find_lr: {name}.configure_callbacks returns an LRFinder, which takes this one's place")
    return finder.result


@contextmanager
def _only_measuring(trainer: Trainer, module: LightningModule, finder: LRFinder) -> Iterator[None]:
    """Let fits in this context run a finder and nothing else; restore Trainer, module and random generators on exit."""
    names = ("callbacks", "loggers", "limit_train_batches", "num_sanity_val_steps")
    before = {name: getattr(trainer, name) for name in names}
    modes, device = {layer: layer.training for layer in module.modules()}, module.device
    others: tuple[type, ...] = (
        BaseLRFinder,
        *of_both_packages(BatchSizeFinder, LearningRateFinder),
    )  # they would measure as well
    own = [callback for callback in before["callbacks"] if not isinstance(callback, others)]
    changed = {"callbacks": [*own, finder, _NoTraining()], "loggers": [], "num_sanity_val_steps": 0}
    try:
        for name, value in changed.items():
            setattr(trainer, name, value)
        with isolate_rng():
            yield
    finally:
        for name, value in before.items():
            setattr(trainer, name, value)
        for layer, mode in modes.items():
            layer.training = mode
        module.to(device)
