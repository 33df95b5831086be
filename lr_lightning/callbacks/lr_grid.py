"""The textbook's search for a rate: a log grid, each rate trained for a while from the same start."""

import math

import numpy as np
from lightning.pytorch import LightningModule, Trainer

from lr_lightning.callbacks.rate_search import Metric, RateSearch
from lr_lightning.callbacks.search_bar import SearchBar
from lr_lightning.range_test.bench import Bench
from lr_lightning.range_test.grid import GridTest
from lr_lightning.range_test.validation import Validation
from lr_lightning.schedules.base import check_count

__all__ = ["LRGrid"]


class LRGrid(RateSearch):
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
            self._bench(trainer, module, reference) as bench,
        ):
            validation = self._validation(bench)
            for lr in grid:
                runs = [self._train(bench, lr, number, validation, bar) for number in range(self.repeats)]
                curves.append(tuple(losses for losses, _ in runs))
                finals.append(tuple(final for _, final in runs))
        known = None if validation is None else tuple(finals)
        return GridTest(grid, tuple(curves), self.num_steps, known, metric=self.metric, epoch=trainer.current_epoch)

    def _train(
        self, bench: Bench, lr: float, number: int, validation: Validation | None, bar: SearchBar
    ) -> tuple[tuple[float, ...], float]:
        """The losses of one training, up to where one is not finite, and the metric at its end."""
        losses: list[float] = []
        final = math.nan
        with bench.run(number):
            while len(losses) < self.num_steps and math.isfinite(loss := bench.step(lr)):
                losses.append(loss)
            if validation is not None and len(losses) == self.num_steps:
                final = validation()
        bar.update()
        return tuple(losses), final
