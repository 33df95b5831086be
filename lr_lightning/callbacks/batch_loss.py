"""The loss of a training batch as callbacks keep it: detached, where it lies, and unscaled."""

from collections.abc import Sequence

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor

__all__ = ["batch_loss", "mean_loss"]


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
