"""Read and write the values of an optimizer's param groups.

Every lr is written by :func:`set_value`: by the schedule at each step (``callbacks.lr_schedule``), by a range test that
sets the peak (``callbacks.set_lr``), and by its trial steps (``lr_finder.dry_run``).
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from lr_lightning._lightning import Trainer

__all__ = ["effective_lr", "first_group_lr", "initial_value", "peak_lr", "set_value"]


def initial_value(group: dict[str, Any], name: str) -> float:
    """Return a group's configured value (of ``"lr"``: the peak); remember it as ``initial_<name>`` when first seen."""
    value = group.get(f"initial_{name}")
    if value is None or isinstance(value, Tensor):
        # Reading a tensor waits for its device, so read it once and not at every step.
        value = group[f"initial_{name}"] = float(group[name] if value is None else value)
    return float(value)


def peak_lr(group: Mapping[str, Any]) -> float:
    """Return the peak that a group was configured with, even if a scheduler has set its lr since; write nothing."""
    # OneCycleLR stores its peak as max_lr and overwrites both lr and initial_lr with its first learning rate.
    return float(group.get("max_lr", group.get("initial_lr", group["lr"])))


def set_value(group: dict[str, Any], name: str, value: float) -> None:
    """Write a value into a group; a tensor is filled in place, since a captured graph or compiled step reads it."""
    current = group[name]
    if isinstance(current, Tensor):
        current.fill_(value)
    else:
        group[name] = value


def effective_lr(group: Mapping[str, Any]) -> float | Tensor:
    """Return the lr that a group's next update uses, as known before that update.

    Most optimizers use ``group["lr"]`` unchanged. Prodigy and D-Adaptation multiply it by their estimate ``d`` of the
    distance to the solution (Defazio & Mishchenko 2023, Mishchenko & Defazio 2023). Schedule-free optimizers multiply
    it by their own warm-up, ``min(1, (k + 1) / warmup_steps)`` at step k. If the lr or ``d`` is a tensor, the result is
    a new tensor, so that nothing waits for the device.
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


def first_group_lr(trainer: "Trainer") -> float | None:
    """Return the effective lr of the first optimizer's first param group, or None without optimizers."""
    return float(effective_lr(trainer.optimizers[0].param_groups[0])) if trainer.optimizers else None
