"""An optimizer's param groups: each one's own peak rate, and how a value is written."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor

__all__ = ["effective_lr", "first_lr", "initial", "put"]


def initial(group: dict[str, Any], name: str) -> float:
    """A group's own value, such as its peak lr: remembered as ``initial_<name>`` when it is first seen.

    Args:
        group: One of ``optimizer.param_groups``.
        name: ``"lr"`` or ``"weight_decay"``.
    """
    value = group.get(f"initial_{name}")
    if value is None or isinstance(value, Tensor):
        # reading a tensor waits for its device: once, not at every step
        value = group[f"initial_{name}"] = float(group[name] if value is None else value)
    return float(value)


def peak(group: Mapping[str, Any]) -> float:
    """A group's peak lr: where a scheduler has come before, the one it was told; nothing is remembered."""
    # OneCycleLR notes its peak in the group, and puts its first rate into lr and initial_lr
    return float(group.get("max_lr", group.get("initial_lr", group["lr"])))


def put(group: dict[str, Any], name: str, value: float) -> None:
    """Write a value; into the tensor, where the group holds one."""
    current = group[name]
    if isinstance(current, Tensor):
        current.fill_(value)  # a captured graph or a compiled step holds this very tensor
    else:
        group[name] = value


# --- The rate that a param group's next update uses, for optimizers that scale it themselves.


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
