"""Schemas of the search for a learning rate before training."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from lr_lightning.app.schemas.problems import AT_LEAST_ONE, Problem, Rule, Schema, must, one_of, positive


@dataclass
class FinderConfig(Schema):
    """`_target_` is a callback that sets the lr before the first step; optimizer.lr holds if it finds none."""

    name: str = "none"
    _target_: str | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)

    def rules(self) -> Mapping[str, Rule]:
        """Return the rules of all finders' keys; a finder of the user's may have none of them."""
        return {
            "min_lr": positive("for instance 1e-6"),
            "max_lr": positive("for instance 10"),
            "num_steps": must("be 10 or more optimizer updates, for instance 100", lambda v: v >= 10),
            "num_lrs": must("be 3 or more learning rates, for instance 13", lambda v: v >= 3),
            "mode": one_of("exponential", "linear"),
            "metric": one_of("loss", "val_loss", "accuracy"),
            "repeats": AT_LEAST_ONE,
            "val_batches": AT_LEAST_ONE,
        }

    def conflicts(self) -> Iterator[Problem]:
        """Find a range that is empty."""
        low, high = getattr(self, "min_lr", None), getattr(self, "max_lr", None)
        if self._target_ is not None and low is not None and high is not None and low >= high:
            yield Problem("max_lr", f"must be above finder.min_lr, {low:g}, got {high:g}.")


@dataclass
class RangeTestConfig(FinderConfig):
    """Smith's range test: the learning rate rises from update to update while the loss is recorded."""

    name: str = "range_test"
    _target_: str | None = "lr_lightning.callbacks.lr_finder.LRFinder"
    min_lr: float = 1e-6  # the first learning rate
    max_lr: float = 10.0  # the last learning rate
    num_steps: int = 100  # optimizer updates
    mode: str = "exponential"  # exponential: a geometric grid | linear
    metric: str = "loss"  # loss: of the training batches | val_loss | accuracy: of some validation batches
    repeats: int = 1  # number of tests, each on other batches; their curves are averaged
    retry: bool = True  # if the curve asks for it, test once more, over a range that reaches ten times further
    apply: bool = True  # train with the learning rate that is found
    val_batches: int = 4  # validation batches for each point, if the metric needs them


@dataclass
class LRGridConfig(FinderConfig):
    """A grid search: each learning rate of a log grid trains for a while from the same start."""

    name: str = "lr_grid"
    _target_: str | None = "lr_lightning.callbacks.lr_finder.LRGrid"
    min_lr: float = 1e-5  # the lowest learning rate
    max_lr: float = 10.0  # the highest learning rate
    num_lrs: int = 13  # learning rates in the geometric grid, at least 3
    num_steps: int = 100  # optimizer updates for each learning rate
    metric: str = "loss"  # at the end: loss: of the training batches | val_loss | accuracy: of some validation batches
    repeats: int = 1  # trainings for each learning rate, each on other batches
    apply: bool = True  # train with the learning rate that is found
    val_batches: int = 4  # validation batches for each training, if the metric needs them
