"""Running statistics of BatchNorm layers: save, estimate and restore them."""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import data

Norms = dict[str, _BatchNorm]
Statistics = dict[str, list[Tensor]]


def tracking_norms(module: nn.Module) -> Norms:
    """Return the BatchNorm layers of a module that keep running statistics, by name."""
    return {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None
    }


def statistics(norms: Norms) -> Statistics:
    """Copy the layers' running mean, running variance and count of batches."""
    return {name: [buffer.clone() for buffer in _buffers(layer)] for name, layer in norms.items()}


def set_statistics(norms: Norms, kept: Statistics) -> None:
    """Restore what :func:`statistics` returned; layers that it does not name stay unchanged."""
    for name, layer in norms.items():
        if name in kept:
            for buffer, value in zip(_buffers(layer), kept[name], strict=True):
                buffer.copy_(value)


@contextmanager
def estimating(module: nn.Module, norms: Norms) -> Iterator[None]:
    """Reset the running statistics of ``norms`` and let each forward pass within the context count equally in them.

    All other layers, dropout included, are in eval mode, as when the statistics are used. On exit every layer gets its
    former mode and momentum back.
    """
    modes = {layer: layer.training for layer in module.modules()}
    momenta = {norm: norm.momentum for norm in norms.values()}
    try:
        module.eval()
        for norm in momenta:
            norm.reset_running_stats()
            norm.momentum, norm.training = None, True  # None: a cumulative average
        yield
    finally:
        for norm, momentum in momenta.items():
            norm.momentum = momentum
        for layer, mode in modes.items():
            layer.training = mode


def average_over_ranks(trainer: Trainer, norms: Norms) -> None:
    """Set the statistics of all ranks to their mean, so that the ranks evaluate alike."""
    if trainer.world_size == 1 or not norms:
        return
    floats = [buffer for layer in norms.values() for buffer in _buffers(layer) if buffer.is_floating_point()]
    flat = trainer.strategy.reduce(torch.cat([buffer.flatten() for buffer in floats]), reduce_op="mean")
    for buffer, value in zip(floats, flat.split([buffer.numel() for buffer in floats]), strict=True):
        buffer.copy_(value.view_as(buffer))


def calibration_batches(trainer: Trainer, count: int, seed: int) -> Iterable[Any] | None:
    """Return training batches of this process, or None if they cannot be read without disturbing the training loader.

    For a torch DataLoader these are batches of the loader's size from random examples of its data set, the same each
    time. Any other loader is iterated through a shallow copy.
    """
    loader: Any = trainer.train_dataloader
    if not isinstance(loader, data.DataLoader):
        several_or_spent = isinstance(loader, Mapping | Sequence | CombinedLoader | Iterator)
        return None if loader is None or several_or_spent else copy.copy(loader)
    indices = _indices(loader)
    if indices is None or loader.batch_size is None:
        return None
    wanted = count * loader.batch_size * trainer.world_size
    drawn = torch.randperm(len(indices), generator=torch.Generator().manual_seed(seed))[:wanted]
    mine = [indices[i] for i in drawn.tolist()][trainer.global_rank :: trainer.world_size]
    examples = data.Subset(loader.dataset, mine)
    return data.DataLoader(examples, batch_size=loader.batch_size, collate_fn=loader.collate_fn)


def _indices(loader: data.DataLoader[Any]) -> Sequence[int] | None:
    """Return the examples that a map-style loader draws from; None if its sampler does not say."""
    if isinstance(loader.dataset, data.IterableDataset) or not hasattr(loader.dataset, "__len__"):
        return None
    if type(loader.sampler) is data.SubsetRandomSampler:
        return list(loader.sampler.indices)
    if type(loader.sampler) in (data.RandomSampler, data.SequentialSampler, data.DistributedSampler):
        return range(len(loader.dataset))
    return None


def _buffers(layer: _BatchNorm) -> list[Tensor]:
    every = (layer.running_mean, layer.running_var, layer.num_batches_tracked)
    return [buffer for buffer in every if buffer is not None]
