"""How many updates a Trainer will make, and where its epochs start."""

import math
from collections.abc import Callable

from lr_lightning._lightning import GradientAccumulationScheduler, Trainer, callbacks_of
from lr_lightning.callbacks.batch_size import BatchSizeSchedule
from lr_lightning.schedules import Clock
from lr_lightning.schedules.clock import epoch_clock, updates_per_epoch

__all__ = ["accumulation", "trainer_clock", "updates_made"]


def trainer_clock(trainer: Trainer, *, optimizers: int = 1, total_steps: int | None = None) -> Clock:
    """Return the clock of one optimizer in this fit. Call this in ``on_train_start``, never earlier.

    Under manual optimization, ``optimizers`` share the Trainer's steps; each is assumed to step once a batch. The total
    is None if nothing known in advance ends the fit; the epochs are unknown if the loader has no length. Lightning's
    ``estimated_stepping_batches`` is not used: it is wrong under ``GradientAccumulationScheduler``.
    """
    limits = [] if trainer.max_steps == -1 else [-(-trainer.max_steps // optimizers)]
    max_epochs = trainer.max_epochs if trainer.max_epochs is not None else -1
    updates = _updates(trainer, max_epochs)
    if updates is None:
        return Clock(total_steps if total_steps is not None else min(limits, default=None))
    clock = epoch_clock(updates, ends=max_epochs > 0, totals=limits)
    return clock if total_steps is None else Clock(total_steps, clock.steps_per_epoch, clock.epoch_starts)


def updates_made(trainer: Trainer) -> int:
    """Return the updates so far; those of each optimizer if several share the Trainer's steps."""
    return int(trainer.global_step) // max(1, len(trainer.optimizers))


def _updates(trainer: Trainer, max_epochs: int) -> list[int] | None:
    """Return the updates in each epoch, or until they stay the same; None if the loader has no length."""
    for growing in callbacks_of(trainer, BatchSizeSchedule):
        return growing.updates(trainer)
    batches = trainer.num_training_batches
    if math.isinf(batches):
        return None
    accumulate, settled = accumulation(trainer)
    epochs = max_epochs if max_epochs > 0 else settled + 1
    return [updates_per_epoch(int(batches), accumulate(epoch)) for epoch in range(epochs)]


def accumulation(trainer: Trainer) -> tuple[Callable[[int], int], int]:
    """Return the batches per update as a function of the epoch, and the first epoch from which they stay the same."""
    for scheduler in callbacks_of(trainer, GradientAccumulationScheduler):
        return scheduler.get_accumulate_grad_batches, max(scheduler.scheduling)
    factor = int(trainer.accumulate_grad_batches)
    return (lambda epoch: factor), 0
