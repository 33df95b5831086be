"""The learning-rate finder: Smith's range test before training, or in the middle of it, without a trace."""

import math
from collections.abc import Collection
from typing import Literal, get_args

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from lr_lightning._checks import check_choice, check_count
from lr_lightning.callbacks.base_finder import BaseLRFinder, FinderProgressBar, FinderResult, Metric
from lr_lightning.callbacks.loggers import give
from lr_lightning.callbacks.set_lr import reference_lr
from lr_lightning.lr_finder.curve import DivergenceStop
from lr_lightning.lr_finder.dry_run import DryRun
from lr_lightning.lr_finder.results import GridTest, RangeTest
from lr_lightning.lr_finder.validation import Validation

__all__ = ["LRFinder", "LRGrid"]

_Mode = Literal["exponential", "linear"]
_FEWEST_STEPS = 10


class LRFinder(BaseLRFinder):
    """Find a good peak learning rate before training, and train with it.

    Smith's range test (Smith 2017, "Cyclical learning rates for training neural networks", 1506.01186, section 3.3):
    the rate rises from update to update while the loss is recorded; then everything is put back. What the curve says,
    and when it says nothing, is :func:`~lr_lightning.lr_finder.curve.read_curve`'s business.

    The run is as if there had been no test, bit for bit, but for the rate that is set: weights, optimizer state,
    buffers, metrics, attributes of the module, gradients, data order and all random generators are put back, also
    after an exception. What cannot be put back (an iterator or an open file that the module holds) is named in a
    warning. A resumed run is not tested again: it has the rate that was found.

    Param groups keep the ratios of their rates. The found rate becomes the peak of each group (``initial_lr``), of
    ``LRSchedule`` and of schedulers that ``configure_optimizers`` made, and the module's ``lr`` or ``learning_rate``
    (of its hparams too); triangular schedules and CyclicLR get ``base_lr`` and ``max_lr``. Where the curve supports no
    suggestion because the range ends too early or begins too late, a range that reaches ten times further is tested
    once, from the same start and over the same batches. Where there is still none, training goes on with the
    configured rate, and a warning says why and what to try.

    Where it misleads: fine-tuning a pretrained transformer (it says 1e-3 where 1e-5 is right), and runs very much
    longer than the test, which bear less.

    Args:
        min_lr: The first rate, > 0. Rates are those of the param group that has the module's own rate, else the first.
        max_lr: The last rate, > ``min_lr``; of the first test, where ``retry`` asks for a second.
        num_steps: Optimizer updates, >= 10, on a grid from ``min_lr`` to ``max_lr``.
        mode: ``"exponential"`` (a geometric grid) or ``"linear"``.
        metric: ``"loss"`` (of the training batches), or ``"val_loss"`` or ``"accuracy"`` of the first validation
            batches, measured before each update.
        repeats: Tests with other batches and random numbers, from the same start; the curve is their mean.
        apply: Whether to train with what was found.
        retry: Whether to test a range that reaches ten times further once, up or down, where the reading asks for one.
            Then it costs as much again, and its result takes the place of the first.
        at_epochs: Test at the start of these epochs instead, counted from 0, and apply nothing.
        early_stop: Whether to end a test where the loss has clearly diverged.
        val_batches: How many validation batches, where ``metric`` needs them, >= 1.
        monitor: The name under which the module logs that metric, if it is not a usual one.
        attribute: The name of the module's own rate, if it is not ``lr`` or ``learning_rate``; dots lead into hparams.
        progress: Whether to show a progress bar on a terminal.

    Attributes:
        result: The last test, None before it.
        results: All tests of this fit, by epoch.

    Raises:
        ValueError: An argument is out of range; at the start of a fit, before anything runs: manual optimization,
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
        if not isinstance(retry, bool):
            raise ValueError(f"retry must be True or False, got {retry!r}")
        if isinstance(at_epochs, int):
            raise ValueError(f"at_epochs must be several epochs, such as [{at_epochs}], got {at_epochs!r}")
        for epoch in at_epochs or ():
            check_count("each of at_epochs", epoch, 0)
        self.num_steps, self.mode, self.retry, self.early_stop = num_steps, mode, retry, early_stop
        self.at_epochs = None if at_epochs is None else frozenset(at_epochs)

    @property
    def result(self) -> RangeTest | None:
        """The last test, None before it."""
        return next(reversed(self.results.values()), None)

    @property
    def state_key(self) -> str:
        """Under which a checkpoint keeps it: one for the start and one for later may be in one run."""
        return self._generate_state_key(at_epochs=sorted(self.at_epochs)) if self.at_epochs else super().state_key

    @property
    def grid(self) -> tuple[float, ...]:
        """The rates that are tested: ``num_steps`` of them, from ``min_lr`` to ``max_lr``, both exact."""
        return self._grid(self.min_lr, self.max_lr)

    def _grid(self, low: float, high: float) -> tuple[float, ...]:
        spaced = np.geomspace if self.mode == "exponential" else np.linspace
        return tuple(map(float, spaced(low, high, self.num_steps)))

    # -- hooks -------------------------------------------------------------------------------------------------------

    def _due(self, trainer: Trainer) -> bool:
        return self.at_epochs is None and super()._due(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Test, if this is one of ``at_epochs``."""
        if self.at_epochs is not None and trainer.current_epoch in self.at_epochs:
            result = self._run(trainer, pl_module, reference_lr(trainer, pl_module, self.attribute))
            values = {"lr": result.suggestion, "base_lr": result.base_lr, "max_lr": result.max_lr}
            found = {f"lr_finder/{name}": value for name, value in values.items() if value is not None}
            if found:
                give(trainer, "what LRFinder found", lambda logger: logger.log_metrics(found, step=trainer.global_step))

    # -- the test ----------------------------------------------------------------------------------------------------

    def _search(self, trainer: Trainer, module: LightningModule, reference: float) -> RangeTest:
        total = self.repeats * self.num_steps
        with (
            self._bar(trainer, "LR range test", total, "step") as bar,
            self._dry_run(trainer, module, reference, started=self.at_epochs is not None) as dry_run,
        ):
            validation = self._validation(dry_run)
            found = self._test(dry_run, self.grid, validation, bar)
            wider = found.wider() if self.retry else None
            if wider is None:
                return found
            rank_zero_info(
                f"LRFinder: {found.reason}. It tests a wider range once, {wider[0]:.3g} to {wider[1]:.3g}; "
                "LRFinder(retry=False) does not."
            )
            bar.extend(total)
            return self._test(dry_run, self._grid(*wider), validation, bar)

    def _test(
        self, dry_run: DryRun, grid: tuple[float, ...], validation: Validation | None, bar: FinderProgressBar
    ) -> RangeTest:
        """The sweeps of one range."""
        runs, begun = [], bar.n
        for number in range(self.repeats):
            with dry_run.run(number):
                runs.append(self._sweep(dry_run, grid, validation, bar))
            bar.update(begun + (number + 1) * len(grid) - bar.n)  # one that ended early
        return RangeTest(grid, tuple(runs), metric=self.metric, mode=self.mode, epoch=dry_run.trainer.current_epoch)

    def _sweep(
        self, dry_run: DryRun, grid: tuple[float, ...], validation: Validation | None, bar: FinderProgressBar
    ) -> tuple[float, ...]:
        """One test: the value before each update, up to where it diverged or is not finite."""
        diverged = DivergenceStop(higher_is_better=self.metric == "accuracy")
        values: list[float] = []
        for lr in grid:
            value = validation() if validation is not None else None
            loss = dry_run.step(lr)
            value = loss if value is None else value
            bar.update()
            if not np.isfinite(value):
                break
            values.append(value)
            if diverged(value) and self.early_stop:
                break
        return tuple(values)

    def _artifact(self, found: FinderResult) -> str:
        return self.artifact if self.at_epochs is None else f"range_test/epoch_{found.epoch}"


# --- The textbook's search for a rate: a log grid, each rate trained for a while from the same start.


class LRGrid(BaseLRFinder):
    """Train each rate of a log grid for some steps, from the same start and over the same batches, and take the best.

    It costs ``num_lrs`` times what :class:`~lr_lightning.callbacks.lr_finder.LRFinder` does with as many steps, and
    needs no rule to read a curve: the ground truth for short trainings. It leaves as little trace, and sets what it
    finds in the same places. Where the best rate is at an edge of the grid, or all diverge, there is no suggestion.

    Args:
        min_lr: The lowest rate, > 0.
        max_lr: The highest rate, > ``min_lr``.
        num_lrs: Rates, >= 3, in a geometric grid.
        num_steps: Optimizer updates for each, >= 10.
        metric: What decides: ``"loss"`` (the training loss, mean of the last fifth of the steps), or ``"val_loss"`` or
            ``"accuracy"`` of the first validation batches at the end.
        repeats: Trainings of each rate, each time with other batches and random numbers.
        apply: Whether to train with what was found.
        val_batches: How many validation batches, where ``metric`` needs them, >= 1.
        monitor: The name under which the module logs that metric, if it is not a usual one.
        attribute: The name of the module's own rate, if it is not ``lr`` or ``learning_rate``.
        progress: Whether to show a progress bar on a terminal.

    Raises:
        ValueError: An argument is out of range; at the start of a fit: as LRFinder.

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
        check_count("num_steps", num_steps, 10)
        self.num_lrs, self.num_steps = num_lrs, num_steps

    @property
    def result(self) -> GridTest | None:
        """What was found, None before it."""
        return next(reversed(self.results.values()), None)

    @property
    def grid(self) -> tuple[float, ...]:
        """The rates: ``num_lrs`` of them, from ``min_lr`` to ``max_lr``, both exact."""
        return tuple(map(float, np.geomspace(self.min_lr, self.max_lr, self.num_lrs)))

    def _search(self, trainer: Trainer, module: LightningModule, reference: float) -> GridTest:
        grid, number_of_runs = self.grid, self.num_lrs * self.repeats
        curves, finals = [], []
        with (
            self._bar(trainer, "LR grid", number_of_runs, "run") as bar,
            self._dry_run(trainer, module, reference) as dry_run,
        ):
            validation = self._validation(dry_run)
            for lr in grid:
                runs = [self._train(dry_run, lr, number, validation, bar) for number in range(self.repeats)]
                curves.append(tuple(losses for losses, _ in runs))
                finals.append(tuple(final for _, final in runs))
        known = None if validation is None else tuple(finals)
        return GridTest(grid, tuple(curves), self.num_steps, known, metric=self.metric, epoch=trainer.current_epoch)

    def _train(
        self, dry_run: DryRun, lr: float, number: int, validation: Validation | None, bar: FinderProgressBar
    ) -> tuple[tuple[float, ...], float]:
        """The losses of one training, up to where one is not finite, and the metric at its end."""
        losses: list[float] = []
        final = math.nan
        with dry_run.run(number):
            while len(losses) < self.num_steps and math.isfinite(loss := dry_run.step(lr)):
                losses.append(loss)
            if validation is not None and len(losses) == self.num_steps:
                final = validation()
        bar.update()
        return tuple(losses), final
