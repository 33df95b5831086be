"""The other callbacks of a Trainer."""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor

__all__ = ["FreshMetric", "batch_loss", "callbacks_of", "gather_numbers", "gather_rows", "mean_loss", "mean_over_ranks"]

_T = TypeVar("_T", bound=Callback)


def callbacks_of(trainer: Trainer, kind: type[_T]) -> list[_T]:
    """Those of one kind, in the Trainer's order."""
    every: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set outside the class
    return [callback for callback in every if isinstance(callback, kind)]


# --- Numbers from all ranks to all. Every rank must call these, also one that has nothing to give.


def gather_numbers(trainer: Trainer, values: Sequence[float]) -> list[list[float]]:
    """The values of each rank, rank by rank; as many on all of them, in float64."""
    if trainer.world_size == 1:
        return [list(map(float, values))]
    mine = torch.tensor(values, dtype=torch.float64, device=trainer.strategy.root_device)
    every: list[list[float]] = trainer.strategy.all_gather(mine).cpu().tolist()
    return every


def mean_over_ranks(trainer: Trainer, value: float | Tensor | None) -> float | None:
    """The mean over the ranks that have a value; None where none has."""
    rows = gather_numbers(trainer, [0.0, 0.0] if value is None else [float(value), 1.0])
    known = sum(have for _, have in rows)
    return sum(own for own, _ in rows) / known if known else None


def gather_rows(trainer: Trainer, rows: Tensor) -> Tensor:
    """The rows of all ranks, which may differ in number and be none, one rank after the other."""
    if trainer.world_size == 1:
        return rows
    counts: Any = trainer.strategy.all_gather(torch.tensor(len(rows), device=rows.device)).flatten().tolist()
    if not max(counts):
        return rows
    padded = rows.new_zeros((max(counts), *rows.shape[1:]))
    padded[: len(rows)] = rows
    every = trainer.strategy.all_gather(padded)
    return torch.cat([part[:count] for part, count in zip(every, counts, strict=True)])


# --- Whether a metric was logged anew.


class FreshMetric:
    """Tells a metric that was logged since it was last asked for from one that is left from before.

    Lightning keeps the last value of every metric, so a monitor that measures at every second validation leaves its
    metrics at those between. What the running validation has logged its results tell; of all others Lightning makes a
    new tensor whenever they are logged.
    """

    def __init__(self) -> None:
        self._last: Tensor | None = None  # held, so that its identity is not given to another

    def __call__(self, trainer: Trainer, name: str) -> bool:
        """Whether ``name`` is among the Trainer's metrics with a new value. Ask once a validation."""
        now, results = trainer.callback_metrics.get(name), trainer._results
        before, self._last = self._last, now
        if now is None:
            return False
        own = [] if results is None else [r for r in results.values() if name in results._forked_name(r, False)]
        return any(not result.has_reset for result in own) if own else now is not before


# --- The loss of a training batch as callbacks keep it: detached, where it lies, and unscaled.


def batch_loss(outputs: STEP_OUTPUT, trainer: Trainer, module: LightningModule) -> Tensor | None:
    """What ``training_step`` returned, without a transfer and with as few operations as there can be.

    Args:
        outputs: As ``on_train_batch_end`` gets it.
        trainer: In a fit.
        module: Its module.

    Returns:
        A float32 (or float64) scalar on the loss's device, before Lightning divides it by the accumulated batches;
        None where the step returned no loss.
    """
    loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
    if not isinstance(loss, Tensor):
        return None
    # a module that optimizes by itself may return a tensor of its own, and write into it at the next step
    loss = loss.detach() if module.automatic_optimization else loss.detach().clone()
    if loss.dtype not in (torch.float32, torch.float64):
        loss = loss.float()
    if loss.ndim:
        loss = loss.mean()
    if trainer.accumulate_grad_batches > 1 and module.automatic_optimization:
        loss = loss * trainer.accumulate_grad_batches
    return loss


def mean_loss(losses: Sequence[Tensor]) -> Tensor | None:
    """The mean of the micro-batches of a step, where the last one lies (those of a loaded checkpoint: the host)."""
    if len(losses) > 1:
        return torch.stack([loss.to(losses[-1].device) for loss in losses]).mean()
    return losses[0] if losses else None
