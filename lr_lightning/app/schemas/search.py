"""Schemas of the searches for a learning rate and over config keys, and of the grid of experiment=lr_effects."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any

from omegaconf import MISSING

from lr_lightning.app.schemas import AT_LEAST_1, SEED, Problem, Schema, must, one_of, positive

_MinLR = Annotated[float, positive("for instance 1e-6")]
_MaxLR = Annotated[float, positive("for instance 10")]
_Updates = Annotated[int, must("be 10 or more optimizer updates, for instance 100", lambda v: v >= 10)]
_GridSize = Annotated[int, must("be 3 or more learning rates, for instance 13", lambda v: v >= 3)]
_Metric = Annotated[str, one_of("loss", "val_loss", "accuracy")]
_Count = Annotated[int, AT_LEAST_1]
_SEEDS = must(
    "be one or more different numbers in 0..4294967295", lambda v: v and len(set(v)) == len(v) and not any(map(SEED, v))
)
_LEVEL = must("lie between 0 and 1, for instance 0.95", lambda v: 0 < v < 1)


@dataclass
class FinderConfig(Schema):
    """`_target_` is a callback that sets the lr before the first step; optimizer.lr holds if it finds none."""

    name: str = "none"
    _target_: str | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)

    def _conflicts(self) -> Iterator[Problem]:
        low, high = getattr(self, "min_lr", None), getattr(self, "max_lr", None)
        if self._target_ is not None and low is not None and high is not None and low >= high:
            yield Problem("max_lr", f"must be above finder.min_lr, {low:g}, got {high:g}.")


@dataclass
class RangeTestConfig(FinderConfig):
    """Smith's range test: the learning rate rises from update to update while the loss is recorded."""

    name: str = "range_test"
    _target_: str | None = "lr_lightning.callbacks.lr_finder.LRFinder"
    min_lr: _MinLR = 1e-6  # the first learning rate
    max_lr: _MaxLR = 10.0  # the last learning rate
    num_steps: _Updates = 100  # optimizer updates
    mode: Annotated[str, one_of("exponential", "linear")] = "exponential"  # exponential: a geometric grid | linear
    metric: _Metric = "loss"  # loss: of the training batches | val_loss | accuracy: of some validation batches
    repeats: _Count = 1  # number of tests, each on other batches; their curves are averaged
    retry: bool = True  # if the curve asks for it, test once more, over a range that reaches ten times further
    budget: str | None = "10%"  # most updates of range test and trials, at least some 340; null: no trials
    apply: bool = True  # train with the learning rate that is found
    val_batches: _Count = 4  # validation batches for each point, if the metric needs them


@dataclass
class LRGridConfig(FinderConfig):
    """A grid search: each learning rate of a log grid trains for a while from the same start."""

    name: str = "lr_grid"
    _target_: str | None = "lr_lightning.callbacks.lr_finder.LRGrid"
    min_lr: _MinLR = 1e-5  # the lowest learning rate
    max_lr: _MaxLR = 10.0  # the highest learning rate
    num_lrs: _GridSize = 13  # learning rates in the geometric grid, at least 3
    num_steps: _Updates = 100  # optimizer updates for each learning rate
    # at the end: loss: of the training batches | val_loss | accuracy: of some validation batches
    metric: _Metric = "loss"
    repeats: _Count = 1  # trainings for each learning rate, each on other batches
    apply: bool = True  # train with the learning rate that is found
    val_batches: _Count = 4  # validation batches for each training, if the metric needs them


@dataclass
class RaceConfig(FinderConfig):
    """A race: learning rates train the planned run, shortened to growing lengths, and the best go on."""

    name: str = "race"
    _target_: str | None = "lr_lightning.callbacks.lr_race.LRRace"
    budget: str = "50%"  # most updates of the race and of the range test before it, at least 50
    metric: _Metric = "val_loss"  # val_loss | accuracy: of some validation batches | loss: of the training batches
    min_lr: _MinLR = 1e-6  # the first learning rate of the range test
    max_lr: _MaxLR = 10.0  # the last learning rate of the range test
    apply: bool = True  # train with the learning rate that is found
    keep: bool = False  # go on from the race's own steps; needs a schedule such as wsd, constant after its warmup
    val_batches: _Count = 50  # validation batches for each training, if the metric needs them


@dataclass
class SearchConfig:
    """What `scripts/search.py` searches, by which method, and for how long."""

    name: str = MISSING
    sampler: str = "tpe"  # grid | random | qmc | tpe | gp
    space: dict[str, Any] = field(default_factory=dict)  # a config key: [a, b] | {log|linear|int|log_int: [low, high]}
    objective: str = "summary/best_val_acc"  # a summary, or a metric such as val/loss, which counts by its best value
    direction: str | None = None  # maximize | minimize; null: as the objective's name says
    seeds: list[int] = field(default_factory=list)  # train each trial with all of these, the mean counts; []: seed
    start: list[Any] = field(default_factory=list)  # trials to start from: {optimizer.lr: 0.1}; or the value "finder"
    pruners: list[str] = field(default_factory=list)  # cooled | median | hyperband | verdict; any can stop a trial
    patience: float = 0.25  # share of a run before which no trial is pruned, unless its loss is not finite
    sweep: str | None = None  # name of the search; the same name resumes it
    n_trials: int | None = 20  # trials of all workers together; null: every point of the grid
    hours: float | None = None  # start no trial when this process has run for this long
    epochs: float | None = None  # start no trial when all trials together have trained for this long
    workers: int = 1  # trials at a time, each in its own process; 0: one after another in this process
    storage: str | None = None  # postgresql://user@host/database, shared by several machines; null: a file in mlruns/
    retries: int = 3  # how often a trial is restarted whose process or machine died
    failures: int = 5  # end the search when this many trials in a row have failed before any success
    seed: int = 0  # of the sampler


@dataclass
class LREffectsConfig(Schema):
    """A log grid of learning rates, each with several seeds, and one table of what the learning rate did."""

    low: float = 1e-4  # lowest learning rate
    high: float = 10.0  # highest learning rate
    points: int = 11  # number of learning rates in the log grid
    lrs: list[float] | None = None  # the learning rates themselves, in place of the grid
    reference: float | None = None  # the learning rate that the others are compared with; null: the middle one
    seeds: Annotated[list[int], _SEEDS] = field(default_factory=lambda: [0, 1, 2])
    level: Annotated[float, _LEVEL] = 0.95  # of the confidence intervals

    def all_lrs(self) -> list[float]:
        """Return the learning rates, the lowest first; those of a grid are rounded to three digits."""
        if self.lrs is not None:
            return sorted(set(self.lrs))
        ratio = self.high / self.low
        return sorted({float(f"{self.low * ratio ** (i / (self.points - 1)):.3g}") for i in range(self.points)})

    def reference_lr(self) -> float:
        """Return the learning rate that the others are compared with: by default the (upper) middle one."""
        lrs = self.all_lrs()
        return lrs[len(lrs) // 2] if self.reference is None else self.reference

    def _conflicts(self) -> Iterator[Problem]:
        given = [self.low, self.high] if self.lrs is None else self.lrs
        if not all(math.isfinite(lr) and lr > 0 for lr in given) or len(set(given)) < 2:
            key = "low and lr_effects.high" if self.lrs is None else "lrs"
            yield Problem(key, f"must be two or more different finite numbers above 0, got {given}.")
        elif self.lrs is None and self.low >= self.high:
            yield Problem("low", f"must be below lr_effects.high, {self.high:g}, got {self.low:g}.")
        elif self.points < 2:
            yield Problem("points", f"must be 2 or more, got {self.points}.")
        elif self.reference is not None and self.reference not in self.all_lrs():
            choices = ", ".join(f"{lr:g}" for lr in self.all_lrs())
            text = f"must be one of the learning rates, {choices}, or null for the middle one, got {self.reference}."
            yield Problem("reference", text)
