"""Any schedule as a torch scheduler, for configure_optimizers, Fabric, Accelerate and plain loops."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lr_lightning._checks import check_count
from lr_lightning._param_groups import initial_value, set_value
from lr_lightning.errors import ArgumentError
from lr_lightning.schedules import Clock
from lr_lightning.schedules.base import ScheduleLike, as_schedule

__all__ = ["TorchSchedule"]


class TorchSchedule(LRScheduler):
    """A schedule as a ``torch.optim.lr_scheduler.LRScheduler``: call ``step()`` after each ``optimizer.step()``.

    The lr of every param group is its own peak, ``group["initial_lr"]``, times the schedule's factor at the number of
    steps so far; groups that are added later follow too. The state is that number alone, so a resumed run follows its
    present schedule and length, exactly, in whichever order optimizer and scheduler are loaded. In a Lightning project
    LRSchedule is simpler, as it finds the number of steps itself; ``configure_optimizers`` must return this one with
    ``"interval": "step"``, or its steps are epochs. Accelerate calls ``step()`` once for each process unless it splits
    batches, so there ``total_steps`` is the number of updates times the number of processes.

    Args:
        optimizer: Its learning rates now are the peaks, unless its groups already have an ``initial_lr``.
        schedule: Factor of the peak; a plain function ``(step, clock) -> factor`` is accepted as well.
        total_steps: Number of updates, >= 1; most schedules need it.
        steps_per_epoch: Updates in an epoch, if the schedule has durations in epochs.
        groups: Other schedules for some param groups, by index or by ``group["name"]``.
        last_epoch: Number of updates made before, minus 1, as in torch; groups must then have an ``initial_lr``.

    Raises:
        ArgumentError: An argument is out of range, or the schedule needs ``total_steps`` or ``steps_per_epoch``.
        DurationError: Durations do not fit into ``total_steps``.

    Example:
        >>> import torch
        >>> from lr_lightning.schedules import Linear
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
        >>> scheduler = TorchSchedule(optimizer, Linear(end=0.0), total_steps=4)
        >>> optimizer.step()
        >>> scheduler.step()
        >>> scheduler.get_last_lr(), scheduler.state_dict()
        ([0.075], {'last_epoch': 1})
    """

    def __init__(
        self,
        optimizer: Optimizer,
        schedule: ScheduleLike,
        total_steps: int | None = None,
        *,
        steps_per_epoch: float | None = None,
        groups: Mapping[int | str, ScheduleLike] | None = None,
        last_epoch: int = -1,
    ) -> None:
        if total_steps is not None:
            check_count("total_steps", total_steps, 1)
        self.schedule, self.clock = as_schedule("schedule", schedule), Clock(total_steps, steps_per_epoch)
        self.groups = {key: as_schedule(f"groups[{key!r}]", own) for key, own in (groups or {}).items()}
        self._base: float | None = None  # lower bound / peak, if a range test found it
        for each in (self.schedule, *self.groups.values()):
            if each.needs_total and total_steps is None:
                raise ArgumentError(f"{each} needs to know the number of updates: give a number", "total_steps")
            each.check(self.clock)
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        """Return the lr of each param group at the present step."""
        return [
            initial_value(group, "lr") * self._schedule_of(group, index)(self.last_epoch, self.clock)
            for index, group in enumerate(self.optimizer.param_groups)
        ]

    _get_closed_form_lr = get_lr  # for step(epoch)

    def _schedule_of(self, group: dict[str, Any], index: int) -> Any:
        return self.groups.get(group.get("name", index), self.groups.get(index, self.schedule))

    @property
    def has_base(self) -> bool:
        """Whether one of the schedules is cyclical between a base_lr and the peak."""
        return any(each.has_base for each in (self.schedule, *self.groups.values()))

    def set_base(self, ratio: float) -> None:
        """Set the lower bound of cyclical schedules, as a fraction of the peak, and the lr of the present step.

        Raises:
            ArgumentError: ``ratio`` is outside [0, 1].
        """
        self.schedule = self.schedule.with_base(ratio)
        self.groups = {key: each.with_base(ratio) for key, each in self.groups.items()}
        self._base = ratio
        self._set_lr()

    def state_dict(self) -> dict[str, Any]:
        """Return the number of steps, and a lower bound that was found; the peaks are in the optimizer's state."""
        return {"last_epoch": self.last_epoch} | ({} if self._base is None else {"base": self._base})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the number of steps, and set the lr that belongs to it."""
        self.last_epoch = state_dict["last_epoch"]
        self._step_count = self.last_epoch + 1
        if "base" in state_dict:
            self.set_base(state_dict["base"])
        self._set_lr()

    def _set_lr(self) -> None:
        self._last_lr = self.get_lr()
        for group, lr in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            set_value(group, "lr", float(lr))
