"""The same training loader with another batch size, and how to put it in the fit loop's hands."""

import copy
from collections.abc import Sized
from typing import Any, Protocol, Self, runtime_checkable

from lightning.pytorch import Trainer
from torch.utils.data import BatchSampler, DataLoader, IterableDataset

__all__ = ["Resizable", "batch_size_of", "can_resize", "install", "only_loader", "resized"]


@runtime_checkable
class Resizable(Protocol):
    """A loader of known length that can give itself with another batch size."""

    batch_size: int

    def __len__(self) -> int:
        """Batches in an epoch."""

    def with_batch_size(self, batch_size: int) -> Self:
        """The same loader, at the same position of the same order, with so many examples in a batch."""


def batch_size_of(loader: object) -> int | None:
    """Examples in a full batch of one process, where a loader tells."""
    for place in (loader, getattr(loader, "batch_sampler", None)):
        size = getattr(place, "batch_size", None)
        if isinstance(size, int) and size > 0:
            return size
    return None


def can_resize(loader: object) -> bool:
    """Whether :func:`resized` can be used: a ``Resizable``, or a map-style torch DataLoader with torch's batching."""
    if isinstance(loader, Resizable):
        return True
    return (
        isinstance(loader, DataLoader)
        and not isinstance(loader.dataset, IterableDataset)
        and isinstance(loader.sampler, Sized)
        # a subclass with an iteration of its own may count batches in its state
        and type(loader).__iter__ is DataLoader.__iter__
        and type(loader).__len__ is DataLoader.__len__
        and type(loader.batch_sampler) is BatchSampler
        and loader.batch_sampler.sampler is loader.sampler
    )


def resized(loader: Any, size: int) -> Any:
    """A loader like this one, with so many examples in a batch; the given one is left as it is.

    Data set, sampler, generator, workers and collation of a DataLoader are the same objects.

    Args:
        loader: One that :func:`can_resize`.
        size: Examples in a batch of one process, >= 1.
    """
    if isinstance(loader, Resizable):
        return loader.with_batch_size(size)
    other = copy.copy(loader)
    # Not through the constructor, whose arguments a subclass may have changed; and torch locks these attributes.
    vars(other).update(
        batch_size=size, batch_sampler=BatchSampler(loader.sampler, size, loader.drop_last), _iterator=None
    )
    return other


def only_loader(trainer: Trainer) -> Any:
    """The training loader, None if there are several."""
    combined = trainer.fit_loop._combined_loader
    return combined.flattened[0] if combined is not None and len(combined.flattened) == 1 else None


def install(trainer: Trainer, loader: Any, batches: int) -> None:
    """Put a loader in the place of the one the fit loop has, and say how long it is wherever that is noted.

    Args:
        trainer: In a fit, before the epoch's first batch.
        loader: The new loader.
        batches: Batches it gives in an epoch.
    """
    loop = trainer.fit_loop
    combined, fetcher = loop._combined_loader, loop._data_fetcher
    if combined is None or fetcher is None:
        raise RuntimeError("the Trainer has no training loader yet: it is built before on_train_start")
    combined.reset()  # ends the workers of the old one
    combined.flattened = [loader]
    combined.limits = [batches]
    loop.max_batches = batches
    interval = trainer.val_check_interval
    if trainer.val_check_batch is not None:
        if not isinstance(interval, int):
            trainer.val_check_batch = max(1, int(batches * interval))
        elif trainer.check_val_every_n_epoch is not None:
            trainer.val_check_batch = min(interval, batches)
    # Lightning makes a new iterator for every epoch but these
    if trainer.current_epoch == 0 or loop.is_resuming or loop.restarting:
        iter(fetcher)
