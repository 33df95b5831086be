"""A search over config keys: many runs in place of one."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass
class SearchConfig:
    """What `scripts/search.py` searches, by which method, and for how long."""

    name: str = MISSING
    sampler: str = "tpe"  # grid | random | qmc | tpe | gp
    space: dict[str, Any] = field(default_factory=dict)  # a config key: [a, b] | {log|linear|int|log_int: [low, high]}
    objective: str = "summary/best_val_acc"  # a summary, or a metric (val/loss), whose best validation then counts
    direction: str | None = None  # maximize | minimize; null: what the objective's name says
    seeds: list[int] = field(default_factory=list)  # several runs a trial, whose mean counts; none: one, with the seed
    start: list[Any] = field(default_factory=list)  # trials to start from: {optimizer.lr: 0.1}; or the value "finder"
    pruners: list[str] = field(default_factory=list)  # median | hyperband | verdict; one that says stop is enough
    patience: float = 0.25  # share of a run before which no trial is pruned, but for a loss that is not finite
    sweep: str | None = None  # name of the search: the same again goes on with it
    n_trials: int | None = 20  # of all workers together; null: every point of the grid
    hours: float | None = None  # no trial starts after so many hours of this process
    epochs: float | None = None  # no trial starts after so many epochs of all trials
    workers: int = 1  # trials at a time, each a process of its own; 0: one after another in this process
    storage: str | None = None  # postgresql://user@host/database, to share it among machines; null: a file in mlruns/
    retries: int = 3  # times a trial is taken up again whose process or machine has gone
    failures: int = 5  # the search ends if so many trials fail in a row
    seed: int = 0  # of the sampler


# --- Several runs in place of one.


@dataclass
class StudyConfig:
    """A log grid of rates, each with several seeds, and one table of what the rate did."""

    low: float = 1e-4  # lowest rate
    high: float = 10.0  # highest rate
    points: int = 11  # rates from one to the other, evenly in their logarithm
    lrs: list[float] | None = None  # the rates themselves, in place of the grid
    reference: float | None = None  # the rate that the others are compared with; null: the middle one
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    level: float = 0.95  # of the confidence intervals

    def all_lrs(self) -> list[float]:
        """Return the learning rates of the study, the lowest first; those of a grid are rounded to three digits."""
        if self.lrs is not None:
            return sorted(set(self.lrs))
        ratio = self.high / self.low
        return sorted({float(f"{self.low * ratio ** (i / (self.points - 1)):.3g}") for i in range(self.points)})

    def reference_lr(self) -> float:
        """Return the learning rate that the others are compared with: by default the (upper) middle one."""
        lrs = self.all_lrs()
        return lrs[len(lrs) // 2] if self.reference is None else self.reference


# --- The search for a rate before training.


@dataclass
class FinderConfig:
    """`_target_` is a callback that sets the rate before the first step; if it finds none, optimizer.lr holds."""

    name: str = "none"
    _target_: str | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass
class RangeTestConfig(FinderConfig):
    """Smith's range test: the rate rises from update to update while the loss is recorded."""

    name: str = "range_test"
    _target_: str | None = "lr_lightning.callbacks.lr_finder.LRFinder"
    min_lr: float = 1e-6  # the first rate
    max_lr: float = 10.0  # the last rate
    num_steps: int = 100  # optimizer updates
    mode: str = "exponential"  # exponential: a geometric grid | linear
    metric: str = "loss"  # loss: of the training batches | val_loss | accuracy: of some validation batches
    repeats: int = 1  # tests with other batches; the curve is their mean
    retry: bool = True  # test a range that reaches ten times further, once, where the curve asks for one
    apply: bool = True  # whether to train with what is found
    val_batches: int = 4  # how many, where the metric needs them


@dataclass
class LRGridConfig(FinderConfig):
    """The textbook's: each rate of a log grid trained for a while from the same start."""

    name: str = "lr_grid"
    _target_: str | None = "lr_lightning.callbacks.lr_finder.LRGrid"
    min_lr: float = 1e-5  # the lowest rate
    max_lr: float = 10.0  # the highest rate
    num_lrs: int = 13  # rates, at least 3, in a geometric grid
    num_steps: int = 100  # optimizer updates for each rate
    metric: str = "loss"  # at the end: loss: of the training batches | val_loss | accuracy: of some validation batches
    repeats: int = 1  # trainings of each rate, with other batches
    apply: bool = True  # whether to train with what is found
    val_batches: int = 4  # how many, where the metric needs them
