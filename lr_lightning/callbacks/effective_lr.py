"""The rate that a param group's next update uses, for optimizers that scale it themselves."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor

__all__ = ["effective_lr", "first_lr"]


def effective_lr(group: Mapping[str, Any]) -> float | Tensor:
    """The lr of a param group as its next update uses it; read it before that update.

    Most optimizers use ``group["lr"]`` as it is. Prodigy and D-Adaptation multiply it by their estimate ``d`` of the
    distance to the solution (Defazio & Mishchenko 2023, Mishchenko & Defazio 2023); schedule-free optimizers by their
    own warm-up, ``min(1, (k + 1) / warmup_steps)`` at step k.

    Args:
        group: One of ``optimizer.param_groups``.

    Returns:
        A float, or a tensor of its own (no device is asked) where the lr or ``d`` is a tensor.
    """
    lr: float | Tensor = group["lr"]
    if isinstance(lr, Tensor):
        lr = lr.detach().clone()
    if "d" in group:
        d = group["d"]
        lr = lr * (d.detach() if isinstance(d, Tensor) else d)
    if "k" in group and group.get("warmup_steps", 0) > group["k"]:
        lr = lr * ((group["k"] + 1) / group["warmup_steps"])
    return lr


def first_lr(trainer: Trainer) -> float | None:
    """That of the first param group of the first optimizer; None without optimizers."""
    return float(effective_lr(trainer.optimizers[0].param_groups[0])) if trainer.optimizers else None
