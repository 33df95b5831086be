"""The callback that grows the batch instead of lowering the learning rate."""

import copy
import math
from collections.abc import Sequence, Sized
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal, Protocol, Self, get_args, runtime_checkable

from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from lr_lightning._batches import batch_size_of
from lr_lightning._checks import check_choice, check_count, check_number
from lr_lightning._lightning import (
    BaseCallback,
    GradientAccumulationScheduler,
    LightningModule,
    Trainer,
    callbacks_of,
    planned_epochs,
    rank_zero_info,
    rank_zero_warn,
    replace_train_loader,
    sole_train_loader,
)
from lr_lightning.errors import ArgumentError
from lr_lightning.schedules import DurationLike
from lr_lightning.schedules import batch_size as arithmetic
from lr_lightning.schedules.base import ScheduleLike, as_schedule
from lr_lightning.schedules.batch_size import BatchSize
from lr_lightning.schedules.clock import updates_per_epoch

__all__ = ["BatchSizeSchedule", "Resizable", "can_resize", "resized"]

_LR = Literal["constant", "inverse_sqrt"]


@dataclass(frozen=True)
class _Epoch:
    """One epoch of the plan."""

    batch: BatchSize  # of each update
    batches: int | None  # None if the loader has no length

    @property
    def updates(self) -> int | None:
        return None if self.batches is None else updates_per_epoch(self.batches, self.batch.accumulate)


class BatchSizeSchedule(BaseCallback):
    """Grow the batch at epoch boundaries, instead of decaying the learning rate.

    Source: Smith, Kindermans, Ying & Le 2017, "Don't Decay the Learning Rate, Increase the Batch Size" (1711.00489):
    fewer updates for the same examples. An ``LRSchedule`` beside this callback knows the planned updates, so its
    schedule ends at the last one.

    For SGD the lr stays unchanged. For Adam and AdamW, ``lr="inverse_sqrt"`` divides the lr by the square root of the
    batch's growth: where a schedule would halve the lr, the batch doubles and the lr falls by √2. Source: Meterez et
    al. 2025, "Seesaw: Accelerating Training by Balancing Learning Rate and Batch Size Scheduling" (2510.14717).

    The training loader is rebuilt with a larger batch, up to ``max_batch_size``. Beyond that, or if the loader cannot
    be rebuilt, gradients are accumulated over more batches. A loader can be rebuilt if it is a map-style torch
    DataLoader that batches by itself, or offers ``with_batch_size(n)``; sampler and generator stay the same. An update
    never takes more examples than an epoch has. A whole number as ``limit_train_batches`` counts batches of the first
    size; as ``val_check_interval`` it counts batches of the present size, at most an epoch of them. Logged at the end
    of every epoch: ``batch/size``, the examples of an update over all processes, and ``batch/updates``, the updates so
    far.

    Args:
        milestones: When the batch grows: ``"60 epochs"`` or ``"30%"`` of the run's epochs, rounded to whole epochs.
        factor: The factor by which the batch grows at each milestone, > 1.
        mirror: An lr schedule, instead of milestones. Where it would divide its highest lr so far by a number, the
            first batch is multiplied by this number. The schedule is read at each epoch's start, as if the batch had
            not grown.
        max_batch_size: Largest number of examples in a batch of one process; None: the examples of an epoch.
        lr: ``"constant"``, or ``"inverse_sqrt"``, for which an ``LRSchedule`` must stand beside this callback.

    Raises:
        ArgumentError: An argument is out of range; or, at the start of a fit, the milestones or the schedule do not fit
            it, or accumulation would be needed and is impossible (manual optimization, DeepSpeed).

    Example:
        >>> callback = BatchSizeSchedule(["30%", "60%", "80%"], factor=5, max_batch_size=1024)
    """

    def __init__(
        self,
        milestones: Sequence[DurationLike] | None = None,
        factor: float = 5.0,
        *,
        mirror: ScheduleLike | None = None,
        max_batch_size: int | None = None,
        lr: _LR = "constant",
    ) -> None:
        super().__init__()
        check_choice("lr", lr, get_args(_LR))
        self.lr = lr
        if (milestones is None) == (mirror is None):
            raise ArgumentError("BatchSizeSchedule takes either milestones=['30%', ...] or mirror=<an lr schedule>.")
        self.mirror = None if mirror is None else as_schedule("mirror", mirror)
        check_number("factor", factor, low=1.0, above=True)
        if max_batch_size is not None:
            check_count("max_batch_size", max_batch_size, 1)
        self.milestones = None if milestones is None else arithmetic.parse_milestones(milestones)
        self.factor, self.max_batch_size = float(factor), max_batch_size
        self._plan: list[_Epoch] | None = None  # of this fit, including the epochs before a resume
        self._started = 0  # epochs of the plan that have begun
        self._restored: list[_Epoch] = []
        self._examples: int | None = None  # of one process in an epoch
        self._known_size = True
        self._asked = False  # whether an LRSchedule takes lr_factor into account
        self._accumulate: int | None = None  # the Trainer's own

    # -- for other callbacks -----------------------------------------------------------------------------------------

    def updates(self, trainer: Trainer) -> list[int] | None:
        """Return the updates in each epoch of this fit, up to ``max_epochs`` or until the count stays the same.

        Do not call this before ``on_train_start``. It returns None if the training loader has no length.
        """
        counts = [epoch.updates for epoch in self._planned(trainer)]
        return None if None in counts else [count for count in counts if count is not None]

    def lr_factor(self, trainer: Trainer) -> float:
        """Return the factor by which the present batch changes the lr. Not before ``on_train_start``."""
        self._asked = True
        if self.lr == "constant":
            return 1.0
        plan, index = self._planned(trainer), int(_epochs(trainer).processed)
        return math.sqrt(plan[0].batch.examples / plan[min(index, len(plan) - 1)].batch.examples)

    def describe(self, trainer: Trainer) -> str:
        """Describe in one line how the batch grows in this fit. Not before ``on_train_start``."""
        plan, world = self._planned(trainer), trainer.world_size
        parts = []
        for batch, group in groupby(enumerate(plan), key=lambda pair: pair[1].batch):
            counted = [f"{n} {what}" for n, what in ((batch.accumulate, "batches"), (world, "processes")) if n > 1]
            how = f" ({' × '.join([str(batch.size), *counted])})" if counted else ""
            parts.append(f"{batch.examples * world:,}{how} from epoch {next(group)[0]}")
        line = f"{'examples' if self._known_size else 'batches'} in an update: {', '.join(parts)}"
        if (updates := self.updates(trainer)) is not None:
            line += f"; {sum(updates):,} updates in {len(plan)} epochs"
            if self._examples is not None:
                ideal = arithmetic.ideal_updates(self._examples, [epoch.batch.examples for epoch in plan])
                line += f" (examples × epochs / batch: {float(ideal):,.1f})"
        return line

    # -- hooks -------------------------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check what can be checked before anything trains."""
        self._plan, self._asked = None, False
        self.check_fit(trainer, pl_module)

    def check_fit(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what cannot work; a finder calls this before it measures.

        Raises:
            ArgumentError: Another callback sets the accumulation.
        """
        if callbacks_of(trainer, GradientAccumulationScheduler):
            raise ArgumentError(
                "BatchSizeSchedule and GradientAccumulationScheduler would both set the accumulation. Remove one."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Plan the fit, and set the batch of the epoch at which a resumed run continues."""
        rank_zero_info(f"BatchSizeSchedule: {self.describe(trainer)}.")
        self._apply(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Grow the batch; Lightning makes the epoch's iterator after this."""
        if self.lr != "constant" and not self._asked:
            raise ArgumentError(f"{self.lr!r} needs LRSchedule, which writes the lr: add LRSchedule(Constant()).", "lr")
        self._apply(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the batch of this epoch and the updates so far."""
        plan = self._planned(trainer)
        metrics = {"batch/updates": float(trainer.global_step)}
        if self._known_size:
            batch = plan[min(self._started, len(plan)) - 1].batch
            metrics["batch/size"] = float(batch.examples * trainer.world_size)
        pl_module.log_dict(metrics)

    def on_train_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        """Restore the Trainer's own accumulation."""
        if self._accumulate is not None:
            trainer.accumulate_grad_batches, self._accumulate = self._accumulate, None
        self.load_state_dict(self.state_dict())  # a further fit of the same Trainer continues these epochs

    on_exception = on_train_end

    def state_dict(self) -> dict[str, Any]:
        """Return plain values: size, accumulation and number of batches of every epoch begun so far."""
        plan = self._plan or self._restored
        begun = [plan[min(index, len(plan) - 1)] for index in range(self._started)]
        return {"epochs": [[epoch.batch.size, epoch.batch.accumulate, epoch.batches] for epoch in begun]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._restored = [_Epoch(BatchSize(size, count), batches) for size, count, batches in state_dict["epochs"]]
        self._started = len(self._restored)

    # -- the plan ----------------------------------------------------------------------------------------------------

    def _planned(self, trainer: Trainer) -> list[_Epoch]:
        if self._plan is not None:
            return self._plan
        loader = sole_train_loader(trainer)
        if self._accumulate is None:
            self._accumulate = int(trainer.accumulate_grad_batches)
        size = batch_size_of(loader)
        self._known_size = size is not None
        base = BatchSize(size or 1, self._accumulate)
        if self.max_batch_size is not None and self.max_batch_size < base.size:
            raise ArgumentError(
                f"must be at least the loader's batch size, {base.size}, got {self.max_batch_size}.", "max_batch_size"
            )
        batches = trainer.num_training_batches
        first = _Epoch(base, None if math.isinf(batches) else int(batches))
        if can_resize(loader):
            self._examples = _batches(trainer, loader, base.size, 1)
        else:
            loader, self._examples = None, None if first.batches is None else first.batches * base.size
            rank_zero_warn(
                "BatchSizeSchedule: the training loader cannot be rebuilt with another batch size (only one map-style"
                " DataLoader that batches by itself, or a loader with with_batch_size(n), can be), so the batch grows"
                " by gradient accumulation alone."
            )
        # epochs before a resume keep their batch; if the checkpoint lacks this callback, it was the first one
        begun = int(_epochs(trainer).started)
        plan = [*self._restored, *[first] * (begun - len(self._restored))] if trainer.global_step > 0 else []
        for multiple in self._multiples(trainer, first)[len(plan) :]:
            plan.append(self._grow(trainer, loader, first, plan[-1] if plan else first, multiple))
        if any(epoch.batch.accumulate != base.accumulate for epoch in plan):
            _check_accumulation(trainer)
        self._plan = plan
        return plan

    def _multiples(self, trainer: Trainer, first: _Epoch) -> tuple[float, ...]:
        epochs = limit if (limit := planned_epochs(trainer)) > 0 else None
        if self.milestones is not None:
            return arithmetic.milestone_multiples(self.milestones, self.factor, epochs)
        if self.mirror is None or epochs is None or first.updates is None:
            raise ArgumentError(
                "BatchSizeSchedule(mirror=...) needs a training loader with a length and Trainer(max_epochs=...)."
                " Give them, or use milestones in epochs instead."
            )
        return arithmetic.mirror_multiples(self.mirror, epochs, first.updates)

    def _grow(self, trainer: Trainer, loader: Any, first: _Epoch, before: _Epoch, multiple: float) -> _Epoch:
        """Return the epoch after ``before``; after a resume with other milestones, too, the batch is never smaller."""
        base = first.batch
        examples = max(base.examples * multiple, before.batch.examples)
        if examples == before.batch.examples:
            return before
        if self._examples is not None:
            examples = max(min(examples, self._examples), before.batch.examples)
        if math.isinf(examples):
            raise ArgumentError(
                "BatchSizeSchedule: mirror is at 0, so the batch would be a whole epoch, whose number of examples is "
                "not known. Give a training loader with a length, or a mirror that stays above 0."
            )
        limits = [limit for limit in (self.max_batch_size, self._examples) if limit is not None]
        largest, reached = min(limits, default=None), before.batch.size
        batch = arithmetic.grown(examples, base, largest=largest, at_least=reached, fixed=loader is None)
        batches = first.batches if loader is None else _batches(trainer, loader, base.size, batch.size)
        # Lightning divides each loss by the accumulation, even if the epoch has fewer batches left
        accumulate = batch.accumulate if batches is None else max(base.accumulate, min(batch.accumulate, batches))
        return _Epoch(BatchSize(batch.size, accumulate), batches)

    def _apply(self, trainer: Trainer) -> None:
        plan, index = self._planned(trainer), int(_epochs(trainer).processed)
        if 0 < planned_epochs(trainer) <= index:
            return  # an epoch of StochasticWeightAveraging that trains nothing
        self._started = index + 1
        epoch = plan[min(index, len(plan) - 1)]
        trainer.accumulate_grad_batches = epoch.batch.accumulate
        loader = sole_train_loader(trainer)
        if can_resize(loader) and epoch.batches is not None and batch_size_of(loader) != epoch.batch.size:
            replace_train_loader(trainer, resized(loader, epoch.batch.size), epoch.batches)


def _epochs(trainer: Trainer) -> Any:
    """Return Lightning's counts of epochs; ``processed`` is the epoch number that it gives to the samplers."""
    return trainer.fit_loop.epoch_progress.current


def _batches(trainer: Trainer, loader: Any, base: int, size: int) -> int:
    """Return the number of batches of this size in an epoch, at least one."""
    count, limit = len(resized(loader, size)), trainer.limit_train_batches
    return max(1, min(count, limit * base // size) if isinstance(limit, int) else int(count * limit))


def _check_accumulation(trainer: Trainer) -> None:
    """Refuse a fit whose accumulation cannot change."""
    how = "Let the batch itself grow: use a loader that can be rebuilt, and a larger max_batch_size."
    if not trainer.lightning_module.automatic_optimization:
        raise ArgumentError(f"BatchSizeSchedule cannot accumulate gradients under manual optimization. {how}")
    if trainer.strategy.handles_gradient_accumulation:
        name = type(trainer.strategy).__name__
        raise ArgumentError(f"BatchSizeSchedule cannot change the accumulation of {name} during a fit. {how}")


# -- the same training loader with another batch size ------------------------------------------------------------------


@runtime_checkable
class Resizable(Protocol):
    """A loader of known length that can return itself with another batch size."""

    batch_size: int

    def __len__(self) -> int: ...  # the number of batches in an epoch

    def with_batch_size(self, batch_size: int) -> Self:
        """Return the same loader, at the same position of the same order, with this many examples in a batch."""


def can_resize(loader: object) -> bool:
    """Return whether :func:`resized` takes this loader: ``Resizable``, or map-style torch with torch's batching."""
    return isinstance(loader, Resizable) or (
        isinstance(loader, DataLoader)
        and not isinstance(loader.dataset, IterableDataset)
        and isinstance(loader.sampler, Sized)
        # a subclass that iterates in another way may count batches in its state
        and type(loader).__iter__ is DataLoader.__iter__
        and type(loader).__len__ is DataLoader.__len__
        and type(loader.batch_sampler) is BatchSampler
        and loader.batch_sampler.sampler is loader.sampler
    )


def resized(loader: Any, size: int) -> Any:
    """Return a copy of a loader with ``size`` examples in a process's batch; sampler and data set are shared."""
    if isinstance(loader, Resizable):
        return loader.with_batch_size(size)
    other = copy.copy(loader)
    # not by the constructor, whose arguments a subclass may have changed, nor by setattr, which torch forbids
    vars(other).update(
        batch_size=size, batch_sampler=BatchSampler(loader.sampler, size, loader.drop_last), _iterator=None
    )
    return other
