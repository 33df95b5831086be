"""The probe: a frozen, stratified subset of the training data, drawn without touching the training loader."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader, Subset

from lr_lightning.diagnosis.stratify import stratified_subset

__all__ = ["default_probe"]


def default_probe(trainer: Trainer, seed: int) -> Iterable[Any] | None:
    """The data module's probe, else a stratified subset of the training loader's data set, else None with a warning.

    Args:
        trainer: In a fit, with its loaders built.
        seed: Of the draw.

    Returns:
        Batches of as many training examples as the first validation loader has; this rank's share of them.
    """
    datamodule: Any = getattr(trainer, "datamodule", None)
    if hasattr(datamodule, "probe_dataloader"):
        probe: Iterable[Any] = datamodule.probe_dataloader()
        return probe
    loader = trainer.train_dataloader
    dataset: Any = getattr(loader, "dataset", None)
    if not isinstance(loader, DataLoader) or not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        rank_zero_warn(
            "OverfittingMonitor cannot draw a probe from this training loader, so it measures nothing: "
            "give it batches of training examples with OverfittingMonitor(probe=...)."
        )
        return None
    size = min(len(dataset), _validation_size(trainer.val_dataloaders) or len(dataset))
    chosen = stratified_subset(np.fromiter(_labels(dataset), np.int64), size, seed)
    mine = chosen[trainer.global_rank :: trainer.world_size].tolist()
    batch_size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None) or 1
    return DataLoader(Subset(dataset, mine), batch_size=batch_size, collate_fn=loader.collate_fn)


def _validation_size(loaders: Any) -> int:
    first = loaders[0] if isinstance(loaders, Sequence) and loaders else loaders
    dataset = getattr(first, "dataset", None)
    return len(dataset) if dataset is not None and hasattr(dataset, "__len__") else 0


def _labels(dataset: Any) -> Iterator[int]:
    """The class of each example, as far as it can be read without decoding; else 0: a plain random probe."""
    if isinstance(dataset, Subset):
        every = list(_labels(dataset.dataset))
        return (every[index] for index in dataset.indices)
    for name in ("targets", "labels"):
        labels = np.asarray(getattr(dataset, name, ()))
        if labels.ndim == 1 and len(labels) == len(dataset):  # of any kind: only which are equal matters
            return iter(np.unique(labels, return_inverse=True)[1].tolist())
    tensors = getattr(dataset, "tensors", None)
    if tensors is not None and len(tensors) > 1 and tensors[1].dim() == 1 and not tensors[1].is_floating_point():
        return (int(label) for label in tensors[1])
    return iter([0] * len(dataset))
