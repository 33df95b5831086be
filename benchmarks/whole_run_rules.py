"""Rules for ``benchmarks.whole_run``: each gives a learning rate for a cell, and says what that cost in updates.

A rule is a function of a cell and a seed. Write your own in any module, and name it with ``--rule module:function``.
Rules that only read a range test share one recording a seed: 100 updates over 1e-6..10 at a rising learning rate.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import chain, islice, repeat

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from benchmarks import finder_rules
from benchmarks.finder_problems import batches, descend
from benchmarks.whole_run_cells import Cell
from benchmarks.whole_run_truth import train
from lr_lightning import LRFinder, LRRace, LRSchedule
from lr_lightning.lr_finder import curve

RANGE = (1e-6, 10.0)
SWEEP = 100
LOW, HIGH = 1e-5, 10.0
"""Range of the searches: that of the truth."""


@dataclass(frozen=True)
class Answer:
    """What a rule says of one cell.

    Attributes:
        lr: The peak learning rate; None where the rule gives no answer.
        updates: Training steps that it took.
        interval: Lower and upper end of the interval for the best learning rate, where the rule gives one.
    """

    lr: float | None
    updates: int
    interval: tuple[float, float] | None = None


Rule = Callable[[Cell, int], Answer]


@cache
def sweep(cell: Cell, seed: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Record one range test: learning rates, and the losses before each update; nan after a divergence."""
    lrs = np.geomspace(*RANGE, SWEEP).tolist()
    data = cell.data(cell.noise).train
    torch.manual_seed(100 + seed)
    net = cell.net()
    optimizer = cell.optimizer(net.parameters(), lr=lrs[0])
    order = batches(len(data[0]), cell.batch_size, 2000 + seed)
    losses = descend(net, optimizer, F.cross_entropy, data, order, lrs)
    return tuple(lrs), tuple(islice(chain(losses, repeat(math.nan)), SWEEP))


def read(rule: Callable[[Sequence[float], Sequence[float]], float | None], cell: Cell, seed: int) -> Answer:
    """Apply a rule for range tests to the recording."""
    return Answer(rule(*sweep(cell, seed)), SWEEP)


def smith(cell: Cell, seed: int) -> Answer:
    """Smith's upper bound."""
    bounds = curve.smith(*sweep(cell, seed))
    return Answer(bounds[1] if bounds else None, SWEEP)


def steepest(lrs: Sequence[float], losses: Sequence[float]) -> float | None:
    """Return the learning rate at the steepest descent of the averaged loss against the logarithm of it."""
    x, y = curve.fastai_smoothed(lrs, losses)
    return float(x[np.argmin(np.gradient(y, np.log(x)))]) if len(y) >= 2 else None


def fixed(cell: Cell, seed: int) -> Answer:
    """Always answer 1e-3."""
    return Answer(1e-3, 0)


def random_search(share: float, cell: Cell, seed: int) -> Answer:
    """Take the best of four random learning rates, each trained on the whole schedule, shortened.

    Args:
        share: Of the run's updates, for all four together.
        cell: The cell.
        seed: Of the learning rates and the trainings.
    """
    steps = max(4, round(cell.steps * share / 4))
    lrs = np.exp(np.random.default_rng(seed).uniform(math.log(LOW), math.log(HIGH), 4))
    losses = [_short(cell, float(lr), seed, steps) for lr in lrs]
    return Answer(float(lrs[int(np.argmin(losses))]), 4 * steps)


def hyperband(share: float, cell: Cell, seed: int) -> Answer:
    """Halve eight random learning rates three times, each training twice as long as the one before.

    The bracket with most trials of Li et al. 2018 (1603.06560), eta 2. A training is repeated at each length, on the
    whole schedule, shortened.
    """
    steps = max(2, round(cell.steps * share / 32))
    lrs = list(np.exp(np.random.default_rng(seed).uniform(math.log(LOW), math.log(HIGH), 8)))
    updates = 0
    while True:
        losses = [_short(cell, float(lr), seed, steps) for lr in lrs]
        updates += steps * len(lrs)
        order = np.argsort(losses)
        if len(lrs) == 1:
            return Answer(float(lrs[0]), updates)
        lrs, steps = [lrs[i] for i in order[: len(lrs) // 2]], 2 * steps


def _short(cell: Cell, lr: float, seed: int, steps: int) -> float:
    curve = train(replace(cell, steps=steps), lr, 100 + seed)["curve"]
    return float(curve[-1][1]) if curve and curve[-1][0] == steps else math.inf


# ------------------------------------------------------------------------------------------- callbacks in a Trainer


_calls = 0  # of training_step; outside the module, whose attributes a finder puts back


class Module(pl.LightningModule):
    """A cell as a LightningModule; it counts the calls of its training step."""

    def __init__(self, cell: Cell) -> None:
        super().__init__()
        self.cell, self.net, self.lr = cell, cell.net(), 1e-3

    def forward(self, x: Tensor) -> Tensor:
        """Return the network's output."""
        output: Tensor = self.net(x)
        return output

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the mean cross entropy."""
        global _calls
        _calls += 1
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        """Log the mean cross entropy."""
        self.log("val/loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Make the cell's optimizer."""
        return self.cell.optimizer(self.parameters(), lr=self.lr)


class _Stop(pl.Callback):
    """End the fit where training would begin."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.should_stop = True


def in_trainer(finder: pl.Callback, cell: Cell, seed: int) -> int:
    """Begin the cell's run in a Trainer, with a finder and the cell's schedule, and end it before the first update.

    Args:
        finder: What finds the learning rate.
        cell: The run.
        seed: Of the weights and the order of batches.

    Returns:
        Calls of ``training_step`` that the finder made.
    """
    before = _calls
    split = cell.data(cell.noise)
    torch.manual_seed(100 + seed)
    module = Module(cell)
    order = torch.Generator().manual_seed(2000 + seed)
    loader = DataLoader(TensorDataset(*split.train), cell.batch_size, shuffle=True, drop_last=True, generator=order)
    val = DataLoader(TensorDataset(*split.val), 500)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = pl.Trainer(
            max_steps=cell.steps,
            accelerator="cpu",
            devices=1,
            callbacks=[finder, LRSchedule(cell.schedule), _Stop()],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, loader, val)
    return _calls - before


def in_project(make: Callable[..., LRFinder], cell: Cell, seed: int) -> Answer:
    """Return the answer of this project's LRFinder or LRRace, as a user's Trainer runs it."""
    finder = make(progress=False)
    calls = in_trainer(finder, cell, seed)
    result = finder.result
    if result is None or result.suggestion is None:
        return Answer(None, calls)
    return Answer(result.suggestion, calls, result.interval)


RULES: dict[str, Rule] = {
    "LRFinder": partial(in_project, LRFinder),
    "LRRace": partial(in_project, LRRace),
    "fastai minimum/10": partial(read, curve.fastai_minimum),
    "fastai valley": partial(read, curve.fastai_valley),
    "Smith's upper bound": smith,
    "steepest": partial(read, steepest),
    "Lightning": partial(read, finder_rules.lightning),
    "torch-lr-finder": partial(read, finder_rules.torch_lr_finder),
    "always 1e-3": fixed,
    "random search, 10 %": partial(random_search, 0.1),
    "random search, 50 %": partial(random_search, 0.5),
    "hyperband, 10 %": partial(hyperband, 0.1),
    "hyperband, 50 %": partial(hyperband, 0.5),
}
