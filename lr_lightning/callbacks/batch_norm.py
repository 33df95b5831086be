"""Running statistics of BatchNorm layers: save, estimate and restore them."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import data

from lr_lightning._batches import count_examples
from lr_lightning._lightning import CombinedLoader, LightningModule, Trainer, isolate_rng, of_both_packages, to_device
from lr_lightning.callbacks.forward_calls import silent
from lr_lightning.callbacks.training_examples import first_loader, used_indices

Norms = dict[str, _BatchNorm]
Statistics = dict[str, list[Tensor]]
UNREADABLE = "cannot read batches from this training loader without disturbing it"


def tracking_norms(module: nn.Module) -> Norms:
    """Return the BatchNorm layers of a module that keep running statistics, by name."""
    return {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None
    }


def statistics(norms: Norms) -> Statistics:
    """Copy the layers' running mean, running variance and count of batches."""
    return {name: [buffer.clone() for buffer in layer.buffers()] for name, layer in norms.items()}


def set_statistics(norms: Norms, kept: Statistics) -> None:
    """Restore what :func:`statistics` returned; layers that it does not name stay unchanged."""
    for name in norms.keys() & kept.keys():
        for buffer, value in zip(norms[name].buffers(), kept[name], strict=True):
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


@isolate_rng()
def estimate(
    trainer: Trainer,
    module: LightningModule,
    norms: Norms,
    batches: Iterable[Any],
    count: int,
    forward: Callable[..., object],
) -> None:
    """Set the running statistics of ``norms`` to their mean over ``count`` batches of training examples, on all ranks.

    ``forward(module, batch)`` passes a batch through the layers. Only batches of the first one's size are used: a small
    last batch would count as much as a full one, and a single example has no variance.
    """
    full = None
    with estimating(module, norms):
        for batch in islice(batches, count):
            batch = to_device(trainer, batch)
            size = count_examples(batch)  # None: not known
            full = size if full is None else full
            if size == full:
                with trainer.precision_plugin.forward_context(), silent(module):
                    forward(module, batch)
    average_over_ranks(trainer, norms)


def average_over_ranks(trainer: Trainer, norms: Norms) -> None:
    """Set the statistics of all ranks to their mean, so that the ranks evaluate alike."""
    if trainer.world_size == 1 or not norms:
        return
    floats = [buffer for layer in norms.values() for buffer in layer.buffers() if buffer.is_floating_point()]
    flat = trainer.strategy.reduce(torch.cat([buffer.flatten() for buffer in floats]), reduce_op="mean")
    for buffer, value in zip(floats, flat.split([buffer.numel() for buffer in floats]), strict=True):
        buffer.copy_(value.view_as(buffer))


def calibration_batches(
    trainer: Trainer, count: int, seed: int, given: Iterable[Any] | None = None
) -> Iterable[Any] | None:
    """Return the ``given`` batches, or else training batches of this process; None where :data:`UNREADABLE` holds.

    For a torch DataLoader these are batches of the loader's size from random examples of its data set, the same each
    time. Any other loader is iterated through a shallow copy.
    """
    if given is not None:
        return given
    loader: Any = first_loader(trainer.train_dataloader)
    if not isinstance(loader, data.DataLoader):
        several_or_spent = isinstance(loader, (Mapping, Sequence, Iterator, *of_both_packages(CombinedLoader)))
        return None if loader is None or several_or_spent else copy.copy(loader)
    indices, size = used_indices(trainer, loader, limited=False), loader.batch_size
    if indices is None or size is None or isinstance(loader.sampler, data.WeightedRandomSampler):
        return None  # the sampler does not say which examples it draws, or how often
    wanted = count * size * trainer.world_size
    drawn = torch.randperm(len(indices), generator=torch.Generator().manual_seed(seed))[:wanted]
    mine = indices[drawn.numpy()][trainer.global_rank :: trainer.world_size].tolist()
    return data.DataLoader(data.Subset(loader.dataset, mine), batch_size=size, collate_fn=loader.collate_fn)
