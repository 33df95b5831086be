"""An optimizer's param groups: each one's own peak rate, and how a value is written."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

__all__ = ["initial", "put"]


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
