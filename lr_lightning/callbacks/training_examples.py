"""The examples that training uses: their places in the data set, a fixed subset of them, or the batches themselves."""

import copy
from collections.abc import Mapping, Sequence, Sized
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils import data
from torch.utils.data import DataLoader

from lr_lightning._batches import count_examples, parts
from lr_lightning._lightning import Trainer, inner_sampler, move_data_to_device
from lr_lightning.diagnosis.statistics import Indices, stratified_subset

_MOST_BYTES = 256e6  # of batches that are kept


def used_indices(trainer: Trainer, loader: Any, limited: bool = True) -> Indices | None:
    """Return the places in the loader's data set of the examples that training uses.

    None where only the training can show it: the loader is no map-style torch DataLoader, its sampler is unknown, or
    (with ``limited``) an epoch uses only a part of shuffled data. The loader is not iterated, so its order does not
    change.
    """
    if not isinstance(loader, DataLoader) or type(loader).__iter__ is not DataLoader.__iter__:
        return None
    every: Any = loader.dataset
    if isinstance(every, data.IterableDataset) or not isinstance(every, Sized) or not hasattr(every, "__getitem__"):
        return None
    if loader.batch_sampler is not None and type(loader.batch_sampler) is not data.BatchSampler:
        return None
    sampler: Any = inner_sampler(loader.sampler)
    kind, used = type(sampler), _batches_used(trainer, len(loader)) if limited else None
    if kind is data.SequentialSampler:
        count = len(sampler.data_source)
        return np.arange(count if used is None else min(count, used * (loader.batch_size or 1)))
    if used is not None:
        return None
    if kind is data.SubsetRandomSampler:
        return np.asarray(list(sampler.indices), np.int64)
    if kind is data.WeightedRandomSampler:
        return np.flatnonzero(np.asarray(sampler.weights) > 0)
    sources = {data.RandomSampler: "data_source", data.DistributedSampler: "dataset"}
    return np.arange(len(getattr(sampler, sources[kind]))) if kind in sources else None


def _batches_used(trainer: Trainer, batches: int) -> int | None:
    """Return the batches of an epoch that training uses, or None if it uses all of them."""
    limits = [batches, trainer.num_training_batches]
    if trainer.max_steps > 0:
        limits.append(trainer.max_steps * int(trainer.accumulate_grad_batches))
    used = min(limits)
    return int(used) if used < batches else None


def fixed_subset(trainer: Trainer, loader: DataLoader[Any], used: Indices, size: int, seed: int) -> DataLoader[Any]:
    """Return this rank's share of a stratified subset of ``size`` examples, always the same."""
    every: Any = loader.dataset
    if loader.batch_size is None:  # each item is a batch
        first = count_examples(every[int(used[0])]) or 1
        size = max(trainer.world_size, size // first)
    chosen = used[stratified_subset(_labels(every)[used], min(size, len(used)), seed)]
    mine = chosen[trainer.global_rank :: trainer.world_size].tolist()
    return DataLoader(data.Subset(every, mine), batch_size=loader.batch_size, collate_fn=loader.collate_fn)


def _labels(dataset: Any) -> Indices:
    """Return the class of each example if it can be read without decoding; else 0, for a plain random subset."""
    if isinstance(dataset, data.Subset):
        return _labels(dataset.dataset)[np.asarray(dataset.indices, np.int64)]
    tensors: Any = getattr(dataset, "tensors", None)
    pair = isinstance(tensors, tuple | list) and len(tensors) > 1 and isinstance(tensors[1], Tensor)
    for found in (*(getattr(dataset, name, None) for name in ("targets", "labels")), tensors[1] if pair else None):
        try:
            listed: Any = found.tolist() if isinstance(found, Tensor | np.ndarray) else list(found or ())
            codes: dict[Any, int] = {}
            classes = [codes.setdefault(label, len(codes)) for label in listed]  # of any type: only equality matters
        except TypeError:  # token lists, boxes: no classes
            continue
        if len(classes) == len(dataset) and len(codes) <= max(1, len(classes) / 2):  # else values, as of a regression
            return np.asarray(classes, np.int64)
    return np.zeros(len(dataset), np.int64)


class KeptBatches:
    """The first batches of a training, copied to the host as the training step gets them.

    Args:
        most: Most examples to keep; the first batch is kept whole.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._batches: list[tuple[Any, int]] = []
        self._bytes = 0.0

    @property
    def size(self) -> int:
        """The number of examples that are kept."""
        return sum(size for _, size in self._batches)

    @property
    def full(self) -> bool:
        """Whether no further batch is kept."""
        return self.size >= self.most or self._bytes >= _MOST_BYTES

    def add(self, batch: Any, examples: int) -> None:
        """Copy a batch, before the training step can change it."""
        if not self.full:
            self._batches.append((move_data_to_device(copy.deepcopy(batch), "cpu"), examples))
            self._bytes += sum(part.nbytes for _, part in parts(batch) if isinstance(part, Tensor))

    def loader(self, size: int) -> DataLoader[Any]:
        """Return the first batches with together ``size`` examples at most, but at least one batch."""
        ends = np.cumsum([examples for _, examples in self._batches])
        count = max(1, int((ends <= size).sum()))
        return DataLoader([batch for batch, _ in self._batches[:count]], batch_size=None, collate_fn=_unchanged)  # type: ignore[arg-type]


def _unchanged(batch: Any) -> Any:
    return batch


def first_loader(loaders: Any) -> Any:
    """Return the only loader of a collection of loaders; the collection if it has several."""
    while isinstance(loaders, Mapping | Sequence) and len(loaders) == 1:
        loaders = next(iter(loaders.values() if isinstance(loaders, Mapping) else loaders))
    return loaders
