"""The search for a rate before training."""

from dataclasses import dataclass, field
from typing import Any


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
    _target_: str | None = "lr_lightning.callbacks.lr_grid.LRGrid"
    min_lr: float = 1e-5  # the lowest rate
    max_lr: float = 10.0  # the highest rate
    num_lrs: int = 13  # rates, at least 3, in a geometric grid
    num_steps: int = 100  # optimizer updates for each rate
    metric: str = "loss"  # at the end: loss: of the training batches | val_loss | accuracy: of some validation batches
    repeats: int = 1  # trainings of each rate, with other batches
    apply: bool = True  # whether to train with what is found
    val_batches: int = 4  # how many, where the metric needs them
