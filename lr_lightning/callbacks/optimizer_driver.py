"""Write the lr of each step into one optimizer's param groups, by a schedule or by a cooldown that replaces it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from lr_lightning._lightning import rank_zero_warn
from lr_lightning._param_groups import initial_value, set_value
from lr_lightning.errors import ArgumentError, TotalStepsUnknown
from lr_lightning.schedules import Clock, Schedule
from lr_lightning.schedules.compose import WithCooldown

__all__ = ["OptimizerDriver", "PlannedCooldown", "plain_clock"]


@dataclass(eq=False)
class OptimizerDriver:
    """Set the lr, and on request the momentum and weight decay, of all param groups of one optimizer.

    A group's own peak is ``group["initial_lr"]``, set from its lr when the group is first seen; its own weight decay is
    ``group["initial_weight_decay"]``. Both are part of the optimizer's state, so they survive a resume.
    """

    optimizer: Optimizer
    schedule: Schedule
    momentum: Schedule | None = None
    weight_decay: Schedule | None = None
    groups: Mapping[int | str, Schedule] = field(default_factory=dict)
    lrs: list[float] = field(default_factory=list, init=False)  # of each group, as last set
    peaks: list[float] = field(default_factory=list, init=False)  # of each group

    def __post_init__(self) -> None:
        needs = (
            ("momentum", self.momentum, {"momentum", "betas"}, "neither momentum nor betas"),
            ("weight_decay", self.weight_decay, {"weight_decay"}, "no weight_decay"),
        )
        for group, (argument, schedule, keys, has) in product(self.optimizer.param_groups, needs):
            if schedule is not None and not keys & group.keys():
                name = type(self.optimizer).__name__
                raise ArgumentError(f"LRSchedule({argument}=...): {name} has {has}. Remove {argument}=.")

    @property
    def schedules(self) -> list[Schedule]:
        """All schedules in use."""
        every = (self.schedule, *self.groups.values(), self.momentum, self.weight_decay)
        return [schedule for schedule in every if schedule is not None]

    def check(self, clock: Clock) -> None:
        """Raise the errors now that would be raised in the middle of the run."""
        for schedule in self.schedules:
            if clock.total is None and schedule.needs_total:
                raise TotalStepsUnknown(schedule)
            schedule.check(clock)
        groups = self.optimizer.param_groups
        present = {*range(len(groups)), *(group["name"] for group in groups if "name" in group)}
        if absent := [key for key in self.groups if key not in present]:
            rank_zero_warn(f"LRSchedule(groups=...): no param group is called {absent} now; one added later may be.")

    def drive(self, step: int, clock: Clock, scale: float = 1.0, sets_lr: bool = True) -> None:
        """Set the values that the next update uses.

        ``step`` is the number of updates this optimizer has made; ``scale`` is one more factor for the lr. Without
        ``sets_lr``, the lr is unchanged.
        """
        factor = self.schedule(step, clock) * scale
        momentum = None if self.momentum is None else self.momentum(step, clock)
        if momentum is not None and momentum >= 1.0:
            raise ArgumentError(
                f"LRSchedule(momentum=...): the momentum must be < 1, got {momentum:g} at step {step}. The schedule"
                " gives the momentum itself, such as Linear(0.95, 0.85)."
            )
        decay = None if self.weight_decay is None else self.weight_decay(step, clock)
        lrs, peaks = [], []
        for index, group in enumerate(self.optimizer.param_groups):
            if sets_lr:
                own = self.groups.get(group.get("name", index), self.groups.get(index)) if self.groups else None
                peaks.append(initial_value(group, "lr"))
                lr = peaks[-1] * (factor if own is None else own(step, clock) * scale)
                set_value(group, "lr", lr)
            else:
                lr = float(group["lr"])
            lrs.append(lr)
            if momentum is not None:
                _set_momentum(group, momentum)
            if decay is not None:
                set_value(group, "weight_decay", initial_value(group, "weight_decay") * decay)
        self.lrs, self.peaks = lrs, peaks if sets_lr else self.peaks


def _set_momentum(group: dict[str, Any], value: float) -> None:
    if "momentum" in group:
        set_value(group, "momentum", value)
    elif isinstance(first := group["betas"][0], Tensor):
        first.fill_(value)
    else:
        group["betas"] = (value, *group["betas"][1:])


@dataclass(frozen=True)
class PlannedCooldown:
    """A cooldown in a line to zero: the update at which each optimizer leaves its schedules, and where the fit ends."""

    starts: list[int]
    length: int
    end: int  # in the Trainer's global_step
    clocks: list[Clock]  # that the schedules followed until then

    def applied_to(self, schedule: Schedule, index: int, *, hold: bool = False) -> Schedule:
        """Return an optimizer's schedule with the cooldown at its end. With ``hold``, the last value stays instead."""
        length = None if hold else self.length
        return WithCooldown(schedule, self.starts[index], length, self.clocks[index])

    def clocks_to_end(self) -> list[Clock]:
        """Return the clock of each optimizer, which ends with the line."""
        ends = [start + self.length for start in self.starts]
        return [replace(clock, total=end) for clock, end in zip(self.clocks, ends, strict=True)]

    def state(self) -> list[Any]:
        """Return plain values."""
        return [self.starts, self.length, self.end, list(map(plain_clock, self.clocks))]

    @classmethod
    def from_state(cls, state: list[Any]) -> "PlannedCooldown":
        """Restore what ``state`` returned."""
        starts, length, end, clocks = state
        return cls(starts, length, end, [Clock(*each) for each in clocks])


def plain_clock(clock: Clock) -> list[Any]:
    """Return the plain values that ``Clock(*values)`` takes."""
    return [clock.total, clock.steps_per_epoch, clock.epoch_starts and list(clock.epoch_starts)]
