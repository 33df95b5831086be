"""The learning-rate finders: Smith's range test and a grid, before training or during it, without a trace."""

import math
from collections.abc import Collection
from typing import Literal, get_args

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from lr_lightning._checks import check_choice, check_count
from lr_lightning._loggers import for_each_logger
from lr_lightning.callbacks.base_finder import BaseLRFinder, Instruments, Metric
from lr_lightning.callbacks.set_lr import reference_lr
from lr_lightning.errors import ArgumentError
from lr_lightning.lr_finder.curve import DivergenceStop
from lr_lightning.lr_finder.results import GridTest, RangeTest

__all__ = ["LRFinder", "LRGrid"]

_Mode = Literal["exponential", "linear"]
_FEWEST_STEPS = 10


class LRFinder(BaseLRFinder[RangeTest]):
    """Find a good peak learning rate before training, and train with it.

    This is Smith's range test (Smith 2017, "Cyclical learning rates for training neural networks", 1506.01186, section
    3.3): the learning rate rises from update to update while the loss is recorded.
    :func:`~lr_lightning.lr_finder.curve.read_curve` says what the curve means, and when it means nothing.

    Apart from the learning rate that is set, the run equals one without a test, bit for bit: weights, optimizer state,
    buffers, metrics, attributes of the module, gradients, data order and all random generators are restored, even after
    an exception. A warning names what cannot be restored (an iterator or an open file that the module holds). A resumed
    run is not tested again: it has the learning rate that was found.

    Param groups keep the ratios of their learning rates. The one that was found becomes the peak of each group
    (``initial_lr``), of ``LRSchedule`` and of schedulers that ``configure_optimizers`` made, and the module's ``lr`` or
    ``learning_rate`` (of its hparams too); triangular schedules and CyclicLR get ``base_lr`` and ``max_lr``. Without a
    suggestion, training continues with the configured learning rate, and a warning says why and what to try.

    The test can mislead: when a pretrained transformer is fine-tuned, it suggests 1e-3 where 1e-5 is right, and a run
    that is much longer than the test usually needs a lower learning rate.

    Args:
        min_lr: The first lr, > 0. It is that of the param group that has the module's own lr, else of the first group.
        max_lr: The last lr, > ``min_lr``; of the first test, if ``retry`` asks for a second.
        num_steps: Number of optimizer updates, >= 10, on a grid from ``min_lr`` to ``max_lr``.
        mode: ``"exponential"`` (a geometric grid) or ``"linear"``.
        metric: ``"loss"`` (of the training batches), or ``"val_loss"`` or ``"accuracy"`` of the first validation
            batches, measured before each update.
        repeats: Number of tests with other batches and random numbers, from the same start; the curve is their mean.
        apply: Whether to train with the lr that was found.
        retry: Whether to test a second range, which reaches ten times further, from the same start and over the same
            batches, if the first one ends too early or begins too late. It costs as much again, and replaces the first.
        at_epochs: Test at the start of these epochs instead, counted from 0, and apply nothing.
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
            raise ArgumentError(f"must be True or False, got {retry!r}", "retry")
        if isinstance(at_epochs, int):
            raise ArgumentError(f"must be several epochs, such as [{at_epochs}], got {at_epochs!r}", "at_epochs")
        for epoch in at_epochs or ():
            check_count("each of at_epochs", epoch, 0)
        self.num_steps, self.mode, self.retry, self.early_stop = num_steps, mode, retry, early_stop
        self.at_epochs, self._started = None if at_epochs is None else frozenset(at_epochs), at_epochs is not None

    @property
    def state_key(self) -> str:
        """The checkpoint's key of this callback; a finder for the start and one for later may share a run."""
        return self._generate_state_key(at_epochs=sorted(self.at_epochs)) if self.at_epochs else super().state_key

    @property
    def grid(self) -> tuple[float, ...]:
        """The learning rates that are tested: ``num_steps`` of them, from ``min_lr`` to ``max_lr``, both exact."""
        return self._grid(self.min_lr, self.max_lr)

    def _grid(self, low: float, high: float) -> tuple[float, ...]:
        spaced = np.geomspace if self.mode == "exponential" else np.linspace
        return tuple(map(float, spaced(low, high, self.num_steps)))

    def _is_due(self, trainer: Trainer) -> bool:
        return self.at_epochs is None and super()._is_due(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Test, if this is one of ``at_epochs``."""
        if self.at_epochs is not None and trainer.current_epoch in self.at_epochs:
            reference, step = reference_lr(trainer, pl_module, self.attribute), trainer.global_step
            result = self._measure(trainer, pl_module, reference, f"range_test/epoch_{trainer.current_epoch}")
            values = {"lr": result.suggestion, "base_lr": result.base_lr, "max_lr": result.max_lr}
            found = {f"lr_finder/{name}": value for name, value in values.items() if value is not None}
            if found:
                for_each_logger(trainer, "what LRFinder found", lambda logger: logger.log_metrics(found, step=step))

    def _find(self, trainer: Trainer, module: LightningModule, reference: float) -> RangeTest:
        total = self.repeats * self.num_steps
        with self._instruments(trainer, module, reference, "LR range test", total, "step") as instruments:
            found = self._test(instruments, self.grid)
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
        runs, begun = [], bar.n
        for number in range(self.repeats):
            with dry_run.run(number):
                runs.append(self._sweep(instruments, grid))
            bar.update(begun + (number + 1) * len(grid) - bar.n)  # the steps that an early stop has left out
        return RangeTest(grid, tuple(runs), metric=self.metric, mode=self.mode, epoch=dry_run.trainer.current_epoch)

    def _sweep(self, instruments: Instruments, grid: tuple[float, ...]) -> tuple[float, ...]:
        """Return the value before each update, until it diverges or is not finite."""
        dry_run, validation, bar = instruments
        diverged = DivergenceStop(higher_is_better=self.metric == "accuracy")
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
            runs = [[self._train(instruments, lr, number) for number in numbers] for lr in self.grid]
        curves = tuple(tuple(losses for losses, _ in same_lr) for same_lr in runs)
        finals = None if self.metric == "loss" else tuple(tuple(final for _, final in same_lr) for same_lr in runs)
        return GridTest(self.grid, curves, self.num_steps, finals, metric=self.metric, epoch=trainer.current_epoch)

    def _train(self, instruments: Instruments, lr: float, number: int) -> tuple[tuple[float, ...], float]:
        """Return the losses of one training, until one is not finite, and the metric at its end."""
        dry_run, validation, bar = instruments
        losses: list[float] = []
        final = math.nan
        with dry_run.run(number):
            while len(losses) < self.num_steps and math.isfinite(loss := dry_run.step(lr)):
                losses.append(loss)
            if validation is not None and len(losses) == self.num_steps:
                final = validation()
        bar.update()
        return tuple(losses), final
