"""Every optimizer step's rate and loss, without a synchronisation a step."""

import math
import time
from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor
from torch.optim import Optimizer

from lr_lightning._lightning import batch_loss, logging_step, mean_loss
from lr_lightning._param_groups import effective_lr, first_group_lr
from lr_lightning.errors import Diverged


@runtime_checkable
class Flushable(Protocol):
    """A logger that buffers, takes rows with times of their own, and can be told to write them."""

    def log_rows(self, rows: Iterable[tuple[str, float, int, int]]) -> None:
        """Take (name, value, step, milliseconds since 1970) rows."""

    def flush(self) -> None:
        """Write what is buffered."""

    def reserve(self, keys: Iterable[str]) -> None:
        """Take rows of these names through ``log_rows`` alone."""


_MOST_UNSUMMED = 1000  # batches whose losses stay on the device, however seldom the optimizer steps


class StepRecorder(Callback):
    """Log ``train/loss`` and ``lr/group<i>`` of every optimizer step, and ``train/loss_epoch`` of every epoch.

    The losses stay on their device until a flush fetches them all at once. A step's loss is the mean over its
    accumulated micro-batches and, with several processes, over the ranks. A second optimizer's rates are
    ``lr/opt1_group<i>``. The step of a value is Lightning's count of batches that stepped before it.

    A flush happens every ``flush_seconds`` (with several processes: every ``flush_steps`` steps, alike on all
    ranks), before every validation and checkpoint, and on any exception. It raises :class:`Diverged` when a loss is
    not finite, after logging every step before that one; so no checkpoint of a diverged run is ever saved.

    Args:
        flush_seconds: Longest time between two flushes in a run of one process, in seconds.
        flush_steps: Most optimizer steps between two flushes.
        stop_on_divergence: Whether to raise; otherwise non-finite losses are left out.
    """

    def __init__(self, flush_seconds: float = 5.0, flush_steps: int = 500, stop_on_divergence: bool = True) -> None:
        if flush_seconds <= 0:
            raise ValueError(f"flush_seconds must be > 0, got {flush_seconds}")
        if flush_steps < 1:
            raise ValueError(f"flush_steps must be >= 1, got {flush_steps}")
        self.flush_seconds, self.flush_steps, self.stop_on_divergence = flush_seconds, flush_steps, stop_on_divergence
        self.last_loss: float | None = None  # as of the last flush
        self._pending: list[tuple[int, Tensor | None, list[tuple[str, float | Tensor]], int]] = []
        self._micro: list[Tensor] = []  # of the step that is under way
        self._lrs: dict[int, list[tuple[str, float | Tensor]]] = {}
        self._epoch_losses: list[Tensor] = []  # not yet in the sum
        self._epoch_sum, self._epoch_batches = 0.0, 0
        self._flushed_at = 0.0

    # -- gathering ---------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of the flushes, and keep the module's own values of the same names out."""
        self._flushed_at = time.monotonic()
        for logger in trainer.loggers:
            if isinstance(logger, Flushable):
                logger.reserve(("train/loss", "train/loss_epoch"))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Note the rates this step uses: only here are they neither of the step before nor of the one after."""
        index = _index(trainer, optimizer)
        prefix = "lr/group" if index == 0 else f"lr/opt{index}_group"
        self._lrs[index] = [(f"{prefix}{i}", effective_lr(group)) for i, group in enumerate(optimizer.param_groups)]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """Keep the loss where it is; complete the step if the optimizer stepped."""
        loss = batch_loss(outputs, trainer, pl_module)
        if loss is not None:
            self._micro.append(loss)
            self._epoch_losses.append(loss)
            if len(self._epoch_losses) >= _MOST_UNSUMMED:
                self._add_up()
        if not self._lrs:
            return  # a micro-batch of a step that is not complete
        mean = mean_loss(self._micro)
        lrs = [pair for index in sorted(self._lrs) for pair in self._lrs[index]]
        self._pending.append((logging_step(trainer), mean, lrs, time.time_ns() // 1_000_000))
        self._micro, self._lrs = [], {}
        due = len(self._pending) >= self.flush_steps
        if trainer.world_size == 1 and not due:
            due = time.monotonic() - self._flushed_at >= self.flush_seconds
        if due:
            self.flush(trainer)

    # -- flushing ----------------------------------------------------------------------------------------------------

    def flush(self, trainer: Trainer, reduce: bool = True) -> None:
        """Fetch the pending losses, in two transfers however many there are, and log them.

        Args:
            trainer: The trainer whose loggers are written to.
            reduce: Whether to average over the ranks; False, and the losses left out, where others are gone.

        Raises:
            Diverged: If a loss is not finite; all steps before it are logged first.
        """
        if reduce:  # else something has failed, and the device may not answer
            self._add_up()
        pending, self._pending = self._pending, []
        self._flushed_at = time.monotonic()
        if not pending:
            return
        losses = self._fetch([loss for _, loss, _, _ in pending], trainer, reduce)
        rows: list[tuple[str, float, int, int]] = []
        bad: Diverged | None = None
        for (step, _, lrs, at), loss in zip(pending, losses, strict=True):
            used = [(name, float(lr)) for name, lr in lrs]
            rows += [(name, lr, step, at) for name, lr in used]
            if loss is not None and math.isfinite(loss):
                rows.append(("train/loss", loss, step, at))
                self.last_loss = loss
            elif loss is not None and self.stop_on_divergence:
                bad = Diverged("train/loss", loss, step, used[0][1] if used else None)
                break
        _log(trainer, rows)
        if bad is not None:
            self._epoch_sum, self._epoch_batches = 0.0, 0
            raise bad

    def _add_up(self) -> None:
        """Fetch the losses of an epoch's batches; one after the other, so that the sum does not depend on when."""
        losses, self._epoch_losses = self._epoch_losses, []
        if losses:
            for loss in torch.stack(losses).tolist():
                self._epoch_sum += loss
            self._epoch_batches += len(losses)

    @staticmethod
    def _fetch(losses: list[Tensor | None], trainer: Trainer, reduce: bool) -> list[float | None]:
        known = [loss for loss in losses if loss is not None]
        if not known or (trainer.world_size > 1 and not reduce):
            return [None] * len(losses)  # one rank's loss is not the mean; a resume comes by these steps again
        stacked = torch.stack(known)
        if reduce and trainer.world_size > 1:
            stacked = trainer.strategy.reduce(stacked, reduce_op="mean")
        values = iter(stacked.tolist())
        return [None if loss is None else next(values) for loss in losses]

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Flush before each validation, so that a diverged run stops before it."""
        self.flush(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop on a validation loss that is not finite, before a checkpoint of it is saved."""
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
            _log(trainer, [("train/loss_epoch", mean, logging_step(trainer) - 1, time.time_ns() // 1_000_000)])
        self._epoch_sum, self._epoch_batches = 0.0, 0

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log what is left."""
        self.flush(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Log what is left, whatever happened; the exception that is under way stays the one that is raised."""
        try:
            self.flush(trainer, reduce=False)
        except Diverged as diverged:
            exception.add_note(str(diverged))

    # -- state -------------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Log every step the checkpoint contains, and make it durable, before the checkpoint is written."""
        self.flush(trainer)
        if self.stop_on_divergence and not _finite(pl_module):
            raise Diverged("a weight", math.nan, logging_step(trainer), first_group_lr(trainer))
        for logger in trainer.loggers:
            if isinstance(logger, Flushable) and trainer.is_global_zero:
                logger.flush()

    def state_dict(self) -> dict[str, Any]:
        """The running sums of an epoch in progress, as tensors and plain values."""
        self._add_up()
        return {
            "micro": [loss.cpu() for loss in self._micro],
            "epoch_sum": self._epoch_sum,
            "epoch_batches": self._epoch_batches,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with an epoch in progress."""
        self._micro = list(state_dict["micro"])
        self._epoch_losses, self._epoch_sum = [], float(state_dict["epoch_sum"] or 0.0)
        self._epoch_batches = state_dict["epoch_batches"]


def _finite(module: LightningModule) -> bool:
    """Whether all weights are: the loss of the step that spoilt them was computed before it."""
    checks = [parameter.isfinite().all() for parameter in module.parameters() if parameter.is_floating_point()]
    return not checks or bool(torch.stack(checks).all())


def _index(trainer: Trainer, optimizer: Optimizer) -> int:
    # Lightning hands out the optimizer itself here, under manual optimization as well.
    return next((i for i, known in enumerate(trainer.optimizers) if known is optimizer), 0)


def _log(trainer: Trainer, rows: list[tuple[str, float, int, int]]) -> None:
    """Give (name, value, step, milliseconds) rows to every logger: with their own times where it takes them."""
    if not trainer.is_global_zero:
        return
    for logger in trainer.loggers:
        if isinstance(logger, Flushable):
            logger.log_rows(rows)
            continue
        by_step: dict[int, dict[str, float]] = {}
        for name, value, step, _ in rows:
            by_step.setdefault(step, {})[name] = value
        for step, metrics in by_step.items():
            logger.log_metrics(metrics, step)
