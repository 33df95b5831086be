"""How many updates a Trainer will make, and where its epochs start."""

import math
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace

from lr_lightning._lightning import GradientAccumulationScheduler, Trainer, callbacks_of, planned_epochs
from lr_lightning.callbacks.batch_size import BatchSizeSchedule
from lr_lightning.errors import DurationError
from lr_lightning.schedules import Clock, Schedule
from lr_lightning.schedules.clock import epoch_clock, updates_per_epoch

__all__ = ["accumulation", "longer_clock", "trainer_clock", "updates_made"]

_LONGEST_DEV_RUN = 2**40


def trainer_clock(trainer: Trainer, *, optimizers: int = 1, total_steps: int | None = None) -> Clock:
    """Return the clock of one optimizer in this fit. Call this in ``on_train_start``, never earlier.

    Under manual optimization, ``optimizers`` share the Trainer's steps; each is assumed to step once a batch. The total
    is None if nothing known in advance ends the fit; the epochs are unknown if the loader has no length. Lightning's
    ``estimated_stepping_batches`` is not used: it is wrong under ``GradientAccumulationScheduler``.
    """
    limits = [] if trainer.max_steps == -1 else [-(-trainer.max_steps // optimizers)]
    max_epochs = planned_epochs(trainer)
    updates = _updates(trainer, max_epochs)
    if updates is None:
        return Clock(total_steps if total_steps is not None else min(limits, default=None))
    clock = epoch_clock(updates, ends=max_epochs > 0, totals=limits)
    if total_steps is not None and max_epochs > 0 and not trainer.lightning_module.automatic_optimization:
        return Clock(total_steps, total_steps / max_epochs)  # the module decides how many batches make an update
    return clock if total_steps is None else Clock(total_steps, clock.steps_per_epoch, clock.epoch_starts)


def updates_made(trainer: Trainer) -> int:
    """Return the number of updates so far, of each optimizer if several share the Trainer's steps."""
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


def longer_clock(clock: Clock, schedules: Iterable[Schedule]) -> Clock:
    """Return a clock that is long enough for the durations: a development run is the first steps of such a run."""
    every, total = list(schedules), clock.total
    while total is not None and total < _LONGEST_DEV_RUN:
        longer = replace(clock, total=total)
        with suppress(DurationError):
            for schedule in every:
                schedule.check(longer)
            return longer
        total = max(1, 2 * total)
    return clock
