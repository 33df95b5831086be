"""Batches for a measurement, from copies of the Trainer's loaders, whose positions do not change."""

import copy
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from lr_lightning._lightning import (
    CombinedLoader,
    RunningStage,
    Trainer,
    copy_without_iterator,
    prepared_loaders,
    set_sampler_epoch,
)
from lr_lightning.errors import ArgumentError
from lr_lightning.lr_finder.snapshot import has_state

__all__ = ["Batches", "training_loaders", "validation_loaders"]


def training_loaders(trainer: Trainer) -> CombinedLoader:
    """Return the training loaders as Lightning prepares them: do not iterate them, and undo what this call changes."""
    return prepared_loaders(trainer, RunningStage.TRAINING, _refuse_iterator)


def validation_loaders(trainer: Trainer) -> CombinedLoader:
    """Return the validation loaders, in the same way."""
    return prepared_loaders(trainer, RunningStage.VALIDATING, _refuse_iterator)


def _refuse_iterator(loader: Any, hook: str) -> None:
    if isinstance(loader, Iterator) and not has_state(loader):  # an object's attributes can be restored
        raise ArgumentError(
            f"The learning rate search would use up the {hook}, which is an iterator ({type(loader).__name__}). "
            "Give a loader that can be iterated again, such as a DataLoader."
        )


class Batches:
    """An endless stream of batches from copies of loaders, epoch after epoch.

    The copies share samplers, generators and data sets with the loaders, so the caller must restore those.
    """

    def __init__(self, combined: CombinedLoader, first_epoch: int = 0) -> None:
        self.copy = copy_without_iterator(combined, [_restarted(loader) for loader in combined.flattened])
        self.epoch, self.index = first_epoch, 0
        self._iterator: Iterator[Any] | None = None

    def __next__(self) -> tuple[Any, int]:
        """Return a batch, on the host, and its index in its epoch."""
        for _ in range(2):
            if self._iterator is None:
                for loader in self.copy.flattened:
                    set_sampler_epoch(loader, self.epoch)
                self._iterator, self.index = iter(self.copy), 0
            try:
                batch = next(self._iterator)[0]
            except StopIteration:
                self.skip_rest()
                continue
            self.index += 1
            return batch, self.index - 1
        raise ArgumentError(
            "The learning rate search got no batch from the training loader. Check its data set, batch size and limits."
        )

    def skip_rest(self) -> None:
        """End this epoch."""
        self._iterator = None
        self.epoch += 1

    def close(self) -> None:
        """Stop the workers."""
        self._iterator = None
        self.copy.reset()


def _restarted(loader: Any) -> Any:
    """Return a copy of a loader that shares everything except the iterator and the workers."""
    other = copy.copy(loader)
    if isinstance(loader, DataLoader):
        vars(other)["_iterator"] = None  # in vars, as torch forbids setting some attributes
    return other
