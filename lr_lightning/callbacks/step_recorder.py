"""The learning rate and the loss of every optimizer step, without a device synchronization at each step."""

import math
import time
from collections.abc import Container, Iterable
from functools import cache
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.optim import Optimizer

from lr_lightning._batches import Scalars, batch_loss, mean_loss
from lr_lightning._checks import check_count
from lr_lightning._lightning import (
    STEP_OUTPUT,
    BaseCallback,
    LightningModule,
    Trainer,
    logging_step,
    names_to_loggers,
    rank_zero_warn,
)
from lr_lightning._param_groups import effective_lr, first_group_lr
from lr_lightning.errors import ArgumentError, Diverged

Row = tuple[str, float, int, int]
"""Name, value, step, milliseconds since 1970."""
_Lrs = list[tuple[str, float | Tensor]]
_LOSSES = frozenset({"train/loss", "train/loss_epoch"})
_MOST_UNSUMMED = 1000  # batches whose losses stay on the device, if the optimizer rarely steps


@runtime_checkable
class Flushable(Protocol):
    """A logger that buffers rows which carry their own times, and can be told to write them."""

    def log_rows(self, rows: Iterable[Row]) -> None:
        """Log the rows."""

    def flush(self) -> None:
        """Write the buffered rows."""

    def reserve(self, keys: Iterable[str]) -> None:
        """Accept these names only through ``log_rows``."""


class StepRecorder(BaseCallback):
    """Log ``train/loss`` and ``lr/group<i>`` of every optimizer step, and ``train/loss_epoch`` of every epoch.

    The losses stay on their device until a flush fetches them all at once. A step's loss is the mean over its
    accumulated micro-batches and, with several processes, over the ranks. The learning rates of a second optimizer are
    ``lr/opt1_group<i>``. A param group with a name, ``group["name"]``, is ``lr/<name>``, as in LearningRateMonitor. A
    nameless group whose learning rate equals an earlier group's is left out until they first differ. The step of a
    value is Lightning's count of batches that stepped before it.

    A flush happens every ``flush_seconds`` (with several processes: every ``flush_steps`` steps, at the same step on
    all ranks), before every validation and checkpoint, and on any exception. If a loss is not finite, the flush logs
    every earlier step and then raises :class:`~lr_lightning.errors.Diverged`, so no checkpoint of a diverged run is
    ever saved.

    If the module logs one of these names itself, StepRecorder leaves its own value out and warns once. A
    :class:`Flushable` logger is different: it takes only StepRecorder's values, and groups keep their numbers there.

    Args:
        flush_seconds: Longest time between two flushes of a single process, in seconds, > 0.
        flush_steps: Most optimizer steps between two flushes, >= 1.
        stop_on_divergence: Whether to raise; if not, losses that are not finite are left out.

    Attributes:
        last_loss: The training loss of the last step that was flushed; None before the first flush.

    Raises:
        ArgumentError: An argument is out of range.
    """

    reads_weights_at_steps = False

    def __init__(self, flush_seconds: float = 5.0, flush_steps: int = 500, stop_on_divergence: bool = True) -> None:
        if not flush_seconds > 0:  # infinity is allowed: then only flush_steps counts
            raise ArgumentError(f"must be > 0, got {flush_seconds}", "flush_seconds")
        check_count("flush_steps", flush_steps, 1)
        self.flush_seconds, self.flush_steps, self.stop_on_divergence = flush_seconds, flush_steps, stop_on_divergence
        self.last_loss: float | None = None
        self._pending: list[tuple[int, bool, _Lrs, int]] = []  # step, whether it has a loss, learning rates, time
        self._losses = Scalars()  # of these steps
        self._micro: list[Tensor] = []  # of the current step
        self._lrs: dict[int, _Lrs] = {}  # of the current step, by the index of the optimizer
        self._epoch_losses = Scalars()  # not yet in the sum
        self._epoch_sum, self._epoch_batches = 0.0, 0
        self._flushed_at = 0.0
        self._left_out: set[str] = set()  # names under which the module logs a loss itself
        self._apart: set[str] = set()  # learning rates that have differed from those of all earlier groups
        self._masked: set[Tensor] = set()  # weights that were not finite before training

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of the flushes, and reserve the names, which the module may log too."""
        self._flushed_at = time.monotonic()
        if self.stop_on_divergence:
            trained = _trained(trainer)
            self._masked = {p for p, finite in zip(trained, _are_finite(trained), strict=True) if not finite}
        for logger in trainer.loggers:
            if isinstance(logger, Flushable):
                logger.reserve(_LOSSES)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Note the learning rates of this step: only here are they neither the previous step's nor the next one's."""
        # Lightning passes the optimizer itself, also under manual optimization.
        known = trainer.optimizers
        index = 0 if len(known) == 1 else next((i for i, each in enumerate(known) if each is optimizer), 0)
        names, groups = _numbered(index, len(optimizer.param_groups)), map(effective_lr, optimizer.param_groups)
        # Adafactor chooses its own
        self._lrs[index] = [(name, lr) for name, lr in zip(names, groups, strict=True) if lr is not None]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """Keep the loss on its device; complete the step if the optimizer stepped."""
        loss = batch_loss(outputs, trainer, pl_module)
        if batch_idx < 2:  # an epoch's mean that the module logged at the last epoch's end is seen here, too
            self._step_aside(trainer)
        if loss is not None:
            self._micro.append(loss)
            self._epoch_losses.append(loss)
            if len(self._epoch_losses) >= _MOST_UNSUMMED:
                self._sum_epoch_losses()
        if not self._lrs:
            return  # the step is not complete
        lrs = [pair for index in sorted(self._lrs) for pair in self._lrs[index]]
        if (mean := mean_loss(self._micro)) is not None:
            self._losses.append(mean)
        self._pending.append((logging_step(trainer), mean is not None, lrs, time.time_ns() // 1_000_000))
        self._micro, self._lrs = [], {}
        late = trainer.world_size == 1 and time.monotonic() - self._flushed_at >= self.flush_seconds
        if late or len(self._pending) >= self.flush_steps:
            self.flush(trainer)

    def _step_aside(self, trainer: Trainer) -> None:
        if not (names := _LOSSES & names_to_loggers(trainer) - self._left_out):
            return
        self._left_out |= names
        if not all(isinstance(logger, Flushable) for logger in trainer.loggers):
            rank_zero_warn(
                f"The module logs {' and '.join(sorted(names))} itself, so StepRecorder does not log them. To have "
                "their value at every step, let the module use another name, such as self.log('train_loss', ...)."
            )

    def flush(self, trainer: Trainer, reduce: bool = True) -> None:
        """Fetch the pending losses, in two transfers for any number of them, and log them.

        Args:
            trainer: The Trainer of the loggers.
            reduce: Whether to average over the ranks. If False, because other ranks may be gone, the losses of several
                processes are left out.

        Raises:
            Diverged: A loss is not finite; all earlier steps are logged first.
        """
        if reduce:  # else something failed, and the device may not respond
            self._sum_epoch_losses()
        pending, self._pending = self._pending, []
        self._flushed_at = time.monotonic()
        if not pending:
            return
        losses = self._fetch([has_loss for _, has_loss, _, _ in pending], trainer, reduce)
        rows: list[Row] = []
        by_number = all(isinstance(logger, Flushable) for logger in trainer.loggers)  # these never see the names
        named = set() if by_number else {key for key, name in _named_groups(trainer).items() if name != key}
        bad: Diverged | None = None
        for (step, _, lrs, at), loss in zip(pending, losses, strict=True):
            used = [(name, float(lr)) for name, lr in lrs]
            rows += [(name, lr, step, at) for name, lr in self._without_repeats(used, named)]
            if loss is not None and math.isfinite(loss):
                rows.append(("train/loss", loss, step, at))
                self.last_loss = loss
            elif loss is not None and self.stop_on_divergence:
                bad = Diverged("train/loss", loss, step, used[0][1] if used else None)
                break
        self._log(trainer, rows)
        if bad is not None:
            self._epoch_sum, self._epoch_batches = 0.0, 0
            raise bad

    def _without_repeats(self, lrs: list[tuple[str, float]], named: Container[str]) -> list[tuple[str, float]]:
        """Leave out a nameless group that has had the learning rate of an earlier group at every step so far."""
        seen: set[tuple[str, float]] = set()
        for name, lr in lrs:
            of_optimizer = (name.rpartition("group")[0], lr)
            if name in named or of_optimizer not in seen:
                self._apart.add(name)
            seen.add(of_optimizer)
        return [(name, lr) for name, lr in lrs if name in self._apart]

    def _sum_epoch_losses(self) -> None:
        """Fetch the losses of an epoch's batches and add them one by one, so the sum does not depend on the flushes."""
        losses = self._epoch_losses.stacked()
        for loss in () if losses is None else losses.tolist():
            self._epoch_sum += loss
        self._epoch_batches += len(self._epoch_losses)
        self._epoch_losses.clear()

    def _fetch(self, have_loss: list[bool], trainer: Trainer, reduce: bool) -> list[float | None]:
        stacked = self._losses.stacked()
        self._losses.clear()
        if stacked is None or (trainer.world_size > 1 and not reduce):
            return [None] * len(have_loss)  # one rank's loss is not the mean; a resumed run repeats these steps
        if trainer.world_size > 1:
            stacked = trainer.strategy.reduce(stacked, reduce_op="mean")
        values = iter(stacked.tolist())
        return [next(values) if has_loss else None for has_loss in have_loss]

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Flush before each validation, so that a diverged run stops before it."""
        self.flush(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raise if the validation loss is not finite, before a checkpoint is saved."""
        if trainer.sanity_checking or not self.stop_on_divergence:
            return
        value = trainer.callback_metrics.get("val/loss")
        if value is not None and not math.isfinite(value):
            raise Diverged("val/loss", float(value), logging_step(trainer), first_group_lr(trainer))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the mean training loss of the epoch."""
        self.flush(trainer)
        if self._epoch_batches:
            mean = self._epoch_sum / self._epoch_batches
            if trainer.world_size > 1:
                own = torch.tensor(mean, dtype=torch.float64, device=trainer.strategy.root_device)
                mean = float(trainer.strategy.reduce(own, reduce_op="mean"))
            self._log(trainer, [("train/loss_epoch", mean, logging_step(trainer) - 1, time.time_ns() // 1_000_000)])
        self._epoch_sum, self._epoch_batches = 0.0, 0

    def _log(self, trainer: Trainer, rows: list[Row]) -> None:
        """Log the rows; a logger that is not :class:`Flushable` sets its own times."""
        if not trainer.is_global_zero:
            return
        by_step: dict[int, dict[str, float]] = {}
        if not all(isinstance(logger, Flushable) for logger in trainer.loggers):
            groups = _named_groups(trainer)
            for name, value, step, _ in rows:
                if name not in self._left_out:
                    by_step.setdefault(step, {})[groups.get(name, name)] = value
        for logger in trainer.loggers:
            if isinstance(logger, Flushable):
                logger.log_rows(rows)
                continue
            for step, metrics in by_step.items():
                logger.log_metrics(metrics, step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the remaining steps."""
        self.flush(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Log the remaining steps; a divergence found now becomes a note of the exception that is already raised."""
        try:
            self.flush(trainer, reduce=False)
        except Diverged as diverged:
            exception.add_note(str(diverged))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Log and write every step that the checkpoint contains, before the checkpoint is saved."""
        self.flush(trainer)
        if self.stop_on_divergence and not _weights_are_finite(trainer, self._masked):
            raise Diverged("a weight", math.nan, logging_step(trainer), first_group_lr(trainer))
        for logger in trainer.loggers:
            if isinstance(logger, Flushable) and trainer.is_global_zero:
                logger.flush()

    def state_dict(self) -> dict[str, Any]:
        """Return the running sums of the current epoch, and which groups are logged, as tensors and plain values."""
        self._sum_epoch_losses()
        micro = [loss.cpu() for loss in self._micro]
        sums = {"micro": micro, "epoch_sum": self._epoch_sum, "epoch_batches": self._epoch_batches}
        return {**sums, "apart": sorted(self._apart)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the running sums."""
        self._micro = list(state_dict["micro"])
        self._epoch_losses.clear()
        self._apart = set(state_dict.get("apart", ()))
        self._epoch_sum, self._epoch_batches = float(state_dict["epoch_sum"] or 0.0), state_dict["epoch_batches"]


def _named_groups(trainer: Trainer) -> dict[str, str]:
    """Return the given names of param groups by their numbered names; groups without a name are left out."""
    names: dict[str, str] = {}
    for index, optimizer in enumerate(trainer.optimizers):
        prefix = _prefix(index)
        own = [str(group.get("name") or f"group{i}") for i, group in enumerate(optimizer.param_groups)]
        names |= {f"{prefix}group{i}": prefix + name for i, name in enumerate(own) if own.count(name) == 1}
    return names


def _prefix(optimizer_index: int) -> str:
    return f"lr/opt{optimizer_index}_" if optimizer_index else "lr/"


@cache
def _numbered(optimizer_index: int, groups: int) -> list[str]:
    """Return the numbered names of an optimizer's param groups."""
    return [f"{_prefix(optimizer_index)}group{i}" for i in range(groups)]


def _trained(trainer: Trainer) -> list[Tensor]:
    """Return the parameters that training changes; frozen ones, such as a mask of -inf, are not checked."""
    groups = (group for optimizer in trainer.optimizers for group in optimizer.param_groups)
    return [p for group in groups for p in group["params"] if p.requires_grad and p.is_floating_point()]


def _weights_are_finite(trainer: Trainer, masked: set[Tensor]) -> bool:
    """Return whether all weights are finite; an update may spoil them although its loss was finite."""
    return all(_are_finite([parameter for parameter in _trained(trainer) if parameter not in masked]))


def _are_finite(parameters: list[Tensor]) -> list[bool]:
    """Return for each parameter whether all its values are finite, with one wait for the device."""
    finite: list[bool] = torch.stack([p.isfinite().all() for p in parameters]).tolist() if parameters else []
    return finite
