"""Batches for a measurement: from copies of the Trainer's loaders, which stay where they are."""

import copy
from collections.abc import Iterator
from typing import Any

from lightning.fabric.utilities.data import _set_sampler_epoch
from lightning.pytorch import Trainer
from lightning.pytorch.trainer import call
from lightning.pytorch.trainer.connectors.data_connector import (
    _check_dataloader_iterable,
    _DataLoaderSource,
    _parse_num_batches,
    _process_dataloader,
    _request_dataloader,
    _resolve_overfit_batches,
)
from lightning.pytorch.trainer.states import RunningStage, TrainerFn
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning.pytorch.utilities.data import has_len_all_ranks
from torch.utils.data import DataLoader

from lr_lightning.lr_finder.snapshot import has_state

__all__ = ["Batches", "on_device", "training_loaders", "validation_loaders"]


def training_loaders(trainer: Trainer) -> CombinedLoader:
    """The training loaders, as Lightning prepares them for this fit; not to be iterated.

    Before the fit has built them they are asked for as Lightning will ask for them: the caller keeps what that changes.
    """
    ready = trainer.fit_loop._combined_loader
    if ready is not None:
        return ready
    return _requested(trainer, trainer.fit_loop._data_source, RunningStage.TRAINING, "max_size_cycle")


def validation_loaders(trainer: Trainer) -> CombinedLoader:
    """The validation loaders; as :func:`training_loaders`."""
    loop = trainer.fit_loop.epoch_loop.val_loop
    if loop._combined_loader is not None:
        return loop._combined_loader
    return _requested(trainer, loop._data_source, RunningStage.VALIDATING, "sequential")


def _requested(trainer: Trainer, source: _DataLoaderSource, stage: RunningStage, mode: Any) -> CombinedLoader:
    given = _request_dataloader(source)
    trainer.strategy.barrier(f"LRFinder: {stage.dataloader_prefix}_dataloader()")
    combined = copy.copy(given) if isinstance(given, CombinedLoader) else CombinedLoader(given, mode)
    if trainer.overfit_batches > 0:  # type: ignore[attr-defined]  # set outside the class
        _resolve_overfit_batches(combined, mode=stage)
    prepared = []
    for loader in combined.flattened:
        if isinstance(loader, Iterator) and not has_state(loader):  # an object's attributes can be put back
            raise ValueError(
                f"The search for a rate: the {stage.dataloader_prefix}_dataloader is an iterator "
                f"({type(loader).__name__}), which it would use up. Give a loader that can be iterated again, "
                "such as a DataLoader."
            )
        _check_dataloader_iterable(loader, source, TrainerFn.FITTING)
        prepared.append(_process_dataloader(trainer, TrainerFn.FITTING, stage, loader))
    combined.flattened = prepared
    limit = getattr(trainer, f"limit_{stage.dataloader_prefix}_batches")
    lengths = [len(dl) if has_len_all_ranks(dl, trainer.strategy, True) else float("inf") for dl in prepared]
    combined.limits = [_parse_num_batches(stage, length, limit) for length in lengths]
    return combined


class Batches:
    """Batches of copies of some loaders, pass after pass, without end.

    Args:
        combined: The loaders; samplers, generators and data sets are theirs, so the caller keeps their state.
        first_epoch: What a sampler is told the first pass is; each later pass is one more.

    Raises:
        ValueError: On the first batch, if the loaders give none.
    """

    def __init__(self, combined: CombinedLoader, first_epoch: int = 0) -> None:
        self.copy = copy.copy(combined)
        self.copy._iterator = None
        self.copy.flattened = [_restarted(loader) for loader in combined.flattened]
        self.epoch = first_epoch
        self.index = 0
        self._iterator: Iterator[Any] | None = None

    def __next__(self) -> tuple[Any, int]:
        """A batch, on the host, and its index in its pass."""
        for _ in range(2):
            if self._iterator is None:
                for loader in self.copy.flattened:
                    _set_sampler_epoch(loader, self.epoch)
                self._iterator, self.index = iter(self.copy), 0
            try:
                batch = next(self._iterator)[0]
            except StopIteration:
                self.skip_rest()
                continue
            self.index += 1
            return batch, self.index - 1
        raise ValueError(
            "The search for a rate: the training loader gives no batch. Check its data set, batch size and limits."
        )

    def skip_rest(self) -> None:
        """End this pass."""
        self._iterator = None
        self.epoch += 1

    def close(self) -> None:
        """End the workers."""
        self._iterator = None
        self.copy.reset()


def _restarted(loader: Any) -> Any:
    """A copy of a loader that shares everything with it but its iterator and workers."""
    other = copy.copy(loader)
    if isinstance(loader, DataLoader):
        vars(other)["_iterator"] = None  # past the lock that torch puts on its attributes
    return other


def on_device(trainer: Trainer, batch: Any) -> Any:
    """A batch, brought to the device as Lightning's loop does it."""
    batch = trainer.precision_plugin.convert_input(batch)
    batch = trainer.lightning_module._on_before_batch_transfer(batch, dataloader_idx=0)
    return call._call_strategy_hook(trainer, "batch_to_device", batch, dataloader_idx=0)
