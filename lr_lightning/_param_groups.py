"""Read and write the values of an optimizer's param groups.

Every lr is written with :func:`set_value`: by the schedule at each step (``callbacks.optimizer_driver``, or
``torch_schedule``), by a range test that sets the peak (``callbacks.found_lr``), and in its trial steps
(``lr_finder.dry_run``).
"""

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

if TYPE_CHECKING:
    from lr_lightning._lightning import Trainer

__all__ = [
    *("effective_lr", "first_group_lr", "initial_value", "missing_lr", "peak_lr"),
    *("restart_without_scheduler", "scheduler_lrs", "set_value"),
]


def missing_lr(optimizer: Optimizer) -> str:
    """Say why nobody can set this optimizer's lr; empty if its groups have one."""
    name = type(optimizer).__name__
    if name == "_MockOptimizer":  # Lightning's, if configure_optimizers returns None
        return "there is no optimizer (configure_optimizers returns None)"
    if not optimizer.param_groups or any("lr" not in group for group in optimizer.param_groups):
        return f"{name} has no lr"
    if any(group["lr"] is None for group in optimizer.param_groups):
        return f"{name} has lr=None and chooses its own learning rate"
    return ""


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


MOST_STEPS = 20_000
"""How far a scheduler is followed to find its highest lr."""


def scheduler_lrs(scheduler: Any, groups: list[dict[str, Any]], steps: int) -> list[list[float]] | None:
    """Return the lr of each group at the next ``steps`` steps, the present one first; None if it cannot be known.

    CyclicLR, OneCycleLR and ReduceLROnPlateau tell their peaks. Others are stepped, and the caller must restore them;
    the groups are restored here.
    """
    if hasattr(scheduler, "max_lrs"):  # CyclicLR
        return [list(map(float, scheduler.max_lrs))]
    if all("max_lr" in group for group in groups) or hasattr(scheduler, "min_lrs"):  # OneCycleLR, ReduceLROnPlateau
        return [[peak_lr(group) for group in groups]]
    before = [dict(group, lr=float(group["lr"])) for group in groups]
    own = [group["lr"] for group in groups]  # may be tensors, which are filled in place
    lrs = [[float(lr) for lr in own]]
    try:
        numbered = not isinstance(scheduler, LRScheduler)  # timm's step(epoch)
        with warnings.catch_warnings(action="ignore"):  # "step() before optimizer.step()"
            for step in range(1, steps):
                scheduler.step(*([step] if numbered else []))
                lrs.append([float(group["lr"]) for group in groups])
    except Exception:  # a scheduler of another kind
        return None
    finally:
        for group, values, lr in zip(groups, before, own, strict=True):
            group.update(values, lr=lr)
            set_value(group, "lr", values["lr"])
    return lrs


def restart_without_scheduler(optimizer: Optimizer, peaks: list[float]) -> None:
    """Give each group its peak again, after a scheduler that is no longer used has set lr and momentum."""
    for group, peak in zip(optimizer.param_groups, peaks, strict=True):
        if "max_momentum" in group:  # OneCycleLR has replaced it; optimizer.defaults still has it
            group |= {key: value for key, value in optimizer.defaults.items() if key in ("momentum", "betas")}
        for key in ("max_lr", "min_lr", "max_momentum", "base_momentum"):
            group.pop(key, None)
        set_value(group, "lr", peak)
        group["initial_lr"] = peak


def effective_lr(group: Mapping[str, Any]) -> float | Tensor | None:
    """Return the lr that a group's next update uses, as known before that update; None if the group has none.

    Most optimizers use ``group["lr"]`` unchanged. Prodigy and D-Adaptation multiply it by their estimate ``d`` of the
    distance to the solution (Defazio & Mishchenko 2023, Mishchenko & Defazio 2023). Schedule-free optimizers multiply
    it by their own warmup, ``min(1, (k + 1) / warmup_steps)`` at step k. If the lr or ``d`` is a tensor, the result is
    a new tensor, so that nothing waits for the device.
    """
    lr: float | Tensor | None = group.get("lr")
    if lr is None:
        return None
    if isinstance(lr, Tensor):
        lr = lr.detach().clone()
    if "d" in group:
        d = group["d"]
        lr = lr * (d.detach() if isinstance(d, Tensor) else d)
    if "k" in group and group.get("warmup_steps", 0) > group["k"]:
        lr = lr * ((group["k"] + 1) / group["warmup_steps"])
    return lr


def first_group_lr(trainer: "Trainer") -> float | None:
    """Return the effective lr of the first optimizer's first param group; None without an optimizer or without lr."""
    lr = effective_lr(trainer.optimizers[0].param_groups[0]) if trainer.optimizers else None
    return None if lr is None else float(lr)
