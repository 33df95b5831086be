"""Writes scheduled values into an optimizer's param groups."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from lr_lightning._param_groups import initial_value, set_value
from lr_lightning.schedules import Clock, Schedule

__all__ = ["GroupDriver"]


class GroupDriver:
    """Drives the lr, and if asked the momentum and weight decay, of all groups of one optimizer.

    A group's own peak is ``group["initial_lr"]``, set from its lr when it is first seen; its own weight decay is
    ``group["initial_weight_decay"]``. Both are in the optimizer's state, so they survive a resume.

    Args:
        optimizer: The optimizer.
        schedule: Factor of each group's peak lr.
        momentum: The momentum itself, in [0, 1); None leaves it alone.
        weight_decay: Factor of each group's own weight decay; None leaves it alone.
        groups: Other schedules for the lr of some groups, by index or by ``group["name"]``.

    Raises:
        ValueError: The optimizer has no momentum or weight decay to drive.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        schedule: Schedule,
        *,
        momentum: Schedule | None = None,
        weight_decay: Schedule | None = None,
        groups: Mapping[int | str, Schedule] | None = None,
    ) -> None:
        self.optimizer = optimizer
        self.schedule = schedule
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.groups = dict(groups or {})
        self.lrs: list[float] = []
        """The lr of each group as last set, as plain floats."""
        name = type(optimizer).__name__
        for group in optimizer.param_groups:
            if momentum is not None and "momentum" not in group and "betas" not in group:
                raise ValueError(f"LRSchedule(momentum=...): {name} has neither momentum nor betas. Remove momentum=.")
            if weight_decay is not None and "weight_decay" not in group:
                raise ValueError(f"LRSchedule(weight_decay=...): {name} has no weight_decay. Remove weight_decay=.")

    @property
    def schedules(self) -> tuple[Schedule, ...]:
        """All schedules in use."""
        optional = (self.momentum, self.weight_decay)
        return (self.schedule, *self.groups.values(), *(schedule for schedule in optional if schedule is not None))

    def absent_groups(self) -> list[int | str]:
        """Keys of ``groups`` that no group has now."""
        present: set[int | str] = set()
        for index, group in enumerate(self.optimizer.param_groups):
            present |= {index, group.get("name", index)}
        return [key for key in self.groups if key not in present]

    def drive(self, step: int, clock: Clock, scale: float = 1.0) -> None:
        """Set what the next update uses.

        Args:
            step: Updates this optimizer has made.
            clock: Its total and epochs.
            scale: One more factor for the lr of every group.

        Raises:
            ValueError: A schedule cannot be evaluated, or the momentum is outside [0, 1).
        """
        factor = self.schedule(step, clock) * scale
        momentum = None if self.momentum is None else _checked_momentum(self.momentum(step, clock), step)
        decay = None if self.weight_decay is None else self.weight_decay(step, clock)
        lrs = []
        for index, group in enumerate(self.optimizer.param_groups):
            own = self.groups.get(group.get("name", index), self.groups.get(index)) if self.groups else None
            lr = initial_value(group, "lr") * (factor if own is None else own(step, clock) * scale)
            set_value(group, "lr", lr)
            lrs.append(lr)
            if momentum is not None:
                _put_momentum(group, momentum)
            if decay is not None:
                set_value(group, "weight_decay", initial_value(group, "weight_decay") * decay)
        self.lrs = lrs


def _checked_momentum(value: float, step: int) -> float:
    if value >= 1.0:
        raise ValueError(
            f"LRSchedule(momentum=...): the momentum must be < 1, got {value:g} at step {step}. The schedule gives the"
            " momentum itself, such as Linear(0.95, 0.85)."
        )
    return value


def _put_momentum(group: dict[str, Any], value: float) -> None:
    if "momentum" in group:
        set_value(group, "momentum", value)
        return
    first, *rest = group["betas"]
    if isinstance(first, Tensor):
        first.fill_(value)
    else:
        group["betas"] = (value, *rest)
