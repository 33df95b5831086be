"""The callback that applies schedules to a LightningModule's optimizers."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, Literal, TypeVar, get_args

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lr_lightning._checks import check_choice, check_count
from lr_lightning._lightning import FreshMetric, is_dev_run, mean_over_ranks
from lr_lightning._param_groups import initial_value, set_value
from lr_lightning._threads import ThreadWatch
from lr_lightning.callbacks.trainer_clock import trainer_clock
from lr_lightning.errors import ArgumentError, DurationError, TotalStepsUnknown
from lr_lightning.schedules import Clock, Plateau, Schedule
from lr_lightning.schedules.base import ScheduleLike, as_schedule

__all__ = ["LRSchedule", "OptimizerDriver"]

_Entry = TypeVar("_Entry")
_OnResume = Literal["rebase", "keep"]
_LONGEST_DEV_RUN = 2**40


class LRSchedule(Callback):
    """Set the lr of every param group to its own peak times a schedule's factor, before each update.

    A step is one update of that optimizer: ``trainer.global_step`` under automatic optimization; under manual
    optimization the callback counts. The lr that was used stays in ``group["lr"]`` until the next batch. The number of
    steps is read in ``on_train_start``. A plain function ``(step, clock) -> factor`` may replace any schedule.

    Args:
        schedule: Factor of the peak; a list gives one for each optimizer.
        momentum: Schedule of the momentum itself (of the first of ``betas`` if the optimizer has those), in [0, 1).
        weight_decay: Factor of each group's own weight decay.
        plateau: Multiplies the lr when its metric stops improving. It reads one value at each validation that logs the
            metric, or at the end of each training epoch if there is no validation.
        groups: Other schedules for the lr of some param groups, by index or by ``group["name"]``.
        total_steps: Number of updates, if Lightning cannot know it; a list gives one for each optimizer.
        on_resume: ``"rebase"``: a resumed run follows its present length; ``"keep"``: the length in the checkpoint.

    Raises:
        ArgumentError: An argument is out of range. At the start of a fit: the module has its own lr_scheduler, a
            schedule needs a total that is not known, or the optimizers do not match the arguments.
        DurationError: At the start of a fit: durations do not fit into its steps.

    Example:
        >>> from lr_lightning.schedules import Cosine, Warmup
        >>> callback = LRSchedule(Warmup("5%", then=Cosine()))
    """

    def __init__(
        self,
        schedule: ScheduleLike | Sequence[ScheduleLike],
        *,
        momentum: ScheduleLike | None = None,
        weight_decay: ScheduleLike | None = None,
        plateau: Plateau | None = None,
        groups: Mapping[int | str, ScheduleLike] | None = None,
        total_steps: int | Sequence[int] | None = None,
        on_resume: _OnResume = "rebase",
    ) -> None:
        super().__init__()
        self.schedule = _per_optimizer("schedule", schedule, as_schedule)
        self.momentum = None if momentum is None else as_schedule("momentum", momentum)
        self.weight_decay = None if weight_decay is None else as_schedule("weight_decay", weight_decay)
        if plateau is not None and not isinstance(plateau, Plateau):
            raise ArgumentError(f"must be a Plateau, got {plateau!r}", "plateau")
        self.plateau = plateau
        for key in groups or {}:
            if not isinstance(key, int | str):
                problem = f"must map indices or names of param groups to schedules, got key {key!r}"
                raise ArgumentError(problem, "groups")
        self.groups = {key: as_schedule(f"groups[{key!r}]", own) for key, own in (groups or {}).items()}
        self.total_steps = None if total_steps is None else _per_optimizer("total_steps", total_steps, _counted)
        check_choice("on_resume", on_resume, get_args(_OnResume))
        self.on_resume = on_resume
        self._drivers: list[OptimizerDriver] = []
        self._clocks: list[Clock] = []
        self._steps: list[int] = []  # updates of each optimizer; used under manual optimization only
        self._history: list[float] = []
        self._scale = 1.0
        self._is_fresh = FreshMetric()
        self._observed = False  # in this validation
        self._hooks: list[RemovableHandle] = []
        self._threads: ThreadWatch | None = None
        self._base: float | None = None  # base_lr / max_lr, if a range test found it
        self._configured = (self.schedule, self.groups)  # before a range test set that bound

    # -- for other callbacks -----------------------------------------------------------------------------------------

    @property
    def has_base(self) -> bool:
        """Whether one of the schedules of the lr is cyclical between a base_lr and the peak."""
        schedules = self.schedule if isinstance(self.schedule, tuple) else (self.schedule,)
        return any(schedule.has_base for schedule in (*schedules, *self.groups.values()))

    def set_base(self, ratio: float) -> None:
        """Set the lower bound of cyclical schedules, as a fraction of max_lr.

        Call it no later than ``on_fit_start``. Checkpoints keep it.

        Raises:
            ArgumentError: ``ratio`` is outside [0, 1].
        """
        if self._base is None:
            self._configured = (self.schedule, self.groups)
        schedule, groups = self._configured
        if isinstance(schedule, tuple):
            self.schedule = tuple(each.with_base(ratio) for each in schedule)
        else:
            self.schedule = schedule.with_base(ratio)
        self.groups = {key: each.with_base(ratio) for key, each in groups.items()}
        self._base = ratio

    def last_lr(self, optimizer_index: int = 0) -> list[float]:
        """Return the lr of each param group, in their order, as last set, without asking the device.

        From ``on_train_batch_start`` to the next one these are the learning rates that the batch's update uses.

        Raises:
            IndexError: There is no such optimizer, or no fit has started.
        """
        return list(self._drivers[optimizer_index].lrs)

    @property
    def plateau_factor(self) -> float:
        """The factor by which the plateau multiplies the lr now; 1 without a plateau."""
        return self._scale

    def schedule_of(self, optimizer_index: int = 0) -> Schedule:
        """Return the schedule of an optimizer's lr; the plateau is not part of it."""
        return _entry(self.schedule, optimizer_index)

    def plan(self, optimizer_index: int = 0) -> tuple[Schedule, Clock]:
        """Return the schedule that an optimizer follows, and the clock that the schedule reads.

        Raises:
            IndexError: There is no such optimizer, or no training has started.
        """
        return self.schedule_of(optimizer_index), self._clocks[optimizer_index]

    def observe(self, trainer: Trainer) -> None:
        """Read the plateau's metric of a validation that has ended; only the first call in a validation has an effect.

        A callback that acts on the plateau in ``on_validation_end`` calls this first, so their order does not matter.
        """
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking and not self._observed:
            self._observed = True
            self._update_plateau(trainer)

    # -- hooks -------------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget the bounds of an earlier fit; a checkpoint's state is loaded after this."""
        if stage == "fit" and self._base is not None:
            (self.schedule, self.groups), self._base = self._configured, None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check what can be checked before anything trains."""
        for config in trainer.lr_scheduler_configs:
            name, module = type(config.scheduler).__name__, type(pl_module).__name__
            raise ArgumentError(
                f"LRSchedule and an lr_scheduler would both set the lr: {module}.configure_optimizers returns {name}."
                " Remove it there (return the optimizer alone), or remove LRSchedule from the Trainer's callbacks."
            )
        count = len(trainer.optimizers)
        for name, values in (("schedule", self.schedule), ("total_steps", self.total_steps)):
            if isinstance(values, tuple) and (given := len(values)) != count:
                raise ArgumentError(f"LRSchedule: {name} has {given} entries for {count} optimizers; give {count}.")
        self._drivers = self._make_drivers(trainer)  # checks momentum and weight_decay

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the total, now that the loader is built and all state is restored, and set the first lr."""
        if trainer.global_step == 0:  # nothing carries over from an earlier fit
            self._clocks, self._steps, self._history = [], [], []
        # Made anew: a range test in another callback's on_fit_start may have set a lower bound.
        self._drivers = self._make_drivers(trainer)
        self._clocks = self._make_clocks(trainer, pl_module)
        for driver, clock in zip(self._drivers, self._clocks, strict=True):
            driver.check(clock)
        self._scale = 1.0 if self.plateau is None else self.plateau(self._history)
        if pl_module.automatic_optimization:
            self._steps = []
        else:
            self._steps = self._restored_steps(trainer)
            self._attach()
        self._threads = ThreadWatch() if pl_module.device.type == "cpu" else None
        self._drive(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Set the lr that this batch's update uses."""
        if self._threads is not None and not self._threads.step():
            self._threads = None
        self._drive(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Await the plateau's metric of this validation."""
        self._observed = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the plateau's metric: after every ``on_validation_epoch_end``, before checkpoints are saved."""
        self.observe(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the plateau's metric if there is no validation."""
        if not trainer.enable_validation:
            self._update_plateau(trainer)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Remove the hooks from the optimizers."""
        self._detach()

    on_exception = on_train_end

    def state_dict(self) -> dict[str, Any]:
        """Return plain values: the updates counted, the length followed, the plateau's history, a found lower bound."""
        clocks = [[c.total, c.steps_per_epoch, c.epoch_starts and list(c.epoch_starts)] for c in self._clocks]
        return {"steps": list(self._steps), "clocks": clocks, "plateau": list(self._history), "base": self._base}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._steps = list(state_dict["steps"])
        self._clocks = [Clock(total, per_epoch, starts) for total, per_epoch, starts in state_dict["clocks"]]
        self._history = list(state_dict["plateau"])
        if state_dict.get("base") is not None:
            self.set_base(state_dict["base"])

    # -- the plan of a fit, and what happens at each step ------------------------------------------------------------

    def _make_drivers(self, trainer: Trainer) -> "list[OptimizerDriver]":
        return [
            OptimizerDriver(optimizer, self.schedule_of(index), self.momentum, self.weight_decay, self.groups)
            for index, optimizer in enumerate(trainer.optimizers)
        ]

    def _make_clocks(self, trainer: Trainer, pl_module: LightningModule) -> list[Clock]:
        count = len(self._drivers)
        if self.on_resume == "keep" and trainer.global_step > 0:
            if len(self._clocks) == count:
                return self._clocks
            rank_zero_warn(
                "LRSchedule(on_resume='keep'): the checkpoint holds no length, so the run's present length is followed."
            )
        sharing = 1 if pl_module.automatic_optimization else max(1, count)
        totals = (_entry(self.total_steps, index) for index in range(count))
        clocks = [trainer_clock(trainer, optimizers=sharing, total_steps=total) for total in totals]
        if is_dev_run(trainer):
            return [_stretched(driver, clock) for driver, clock in zip(self._drivers, clocks, strict=True)]
        return clocks

    def _restored_steps(self, trainer: Trainer) -> list[int]:
        count = len(self._drivers)
        if len(self._steps) == count:
            return self._steps
        if trainer.global_step == 0 or count == 1:
            return [trainer.global_step] * count
        raise ArgumentError(
            f"LRSchedule cannot know how many updates each of the {count} optimizers has made: the checkpoint was saved"
            " without LRSchedule. Start a new run from its weights instead of resuming it."
        )

    def _drive(self, trainer: Trainer) -> None:
        step = trainer.global_step
        for index, driver in enumerate(self._drivers):
            driver.drive(self._steps[index] if self._steps else step, self._clocks[index], self._scale)

    def _attach(self) -> None:
        """Count each optimizer's updates: under manual optimization a batch may make none or several."""
        self._detach()  # a fit before this one may have ended early
        for index, driver in enumerate(self._drivers):

            def before(*_: Any, index: int = index) -> None:
                self._drivers[index].drive(self._steps[index], self._clocks[index], self._scale)

            def after(*_: Any, index: int = index) -> None:
                self._steps[index] += 1

            optimizer = driver.optimizer
            self._hooks += [optimizer.register_step_pre_hook(before), optimizer.register_step_post_hook(after)]

    def _detach(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _update_plateau(self, trainer: Trainer) -> None:
        metrics, plateau = trainer.callback_metrics, self.plateau
        if plateau is None:
            return
        is_fresh = self._is_fresh(trainer, plateau.monitor)
        # all ranks must take the same decision
        value = mean_over_ranks(trainer, metrics[plateau.monitor] if is_fresh else None)
        if value is not None:
            self._history.append(value)
            self._scale = plateau(self._history)
        elif not self._history:
            known = ", ".join(sorted(metrics)) or "none"
            raise ArgumentError(f"plateau.monitor: no metric {plateau.monitor!r} was logged. There are: {known}.")


@dataclass(eq=False)
class OptimizerDriver:
    """Sets the lr, and on request the momentum and weight decay, of all param groups of one optimizer.

    A group's own peak is ``group["initial_lr"]``, set from its lr when the group is first seen; its own weight decay is
    ``group["initial_weight_decay"]``. Both are part of the optimizer's state, so they survive a resume.
    """

    optimizer: Optimizer
    schedule: Schedule
    momentum: Schedule | None = None
    weight_decay: Schedule | None = None
    groups: Mapping[int | str, Schedule] = field(default_factory=dict)
    lrs: list[float] = field(default_factory=list, init=False)  # of each group, as last set

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

    def drive(self, step: int, clock: Clock, scale: float = 1.0) -> None:
        """Set the values that the next update uses.

        ``step`` is the number of updates this optimizer has made; ``scale`` is one more factor for the lr.
        """
        factor = self.schedule(step, clock) * scale
        momentum = None if self.momentum is None else self.momentum(step, clock)
        if momentum is not None and momentum >= 1.0:
            raise ArgumentError(
                f"LRSchedule(momentum=...): the momentum must be < 1, got {momentum:g} at step {step}. The schedule"
                " gives the momentum itself, such as Linear(0.95, 0.85)."
            )
        decay = None if self.weight_decay is None else self.weight_decay(step, clock)
        lrs = []
        for index, group in enumerate(self.optimizer.param_groups):
            own = self.groups.get(group.get("name", index), self.groups.get(index)) if self.groups else None
            lr = initial_value(group, "lr") * (factor if own is None else own(step, clock) * scale)
            set_value(group, "lr", lr)
            lrs.append(lr)
            if momentum is not None:
                _set_momentum(group, momentum)
            if decay is not None:
                set_value(group, "weight_decay", initial_value(group, "weight_decay") * decay)
        self.lrs = lrs


def _set_momentum(group: dict[str, Any], value: float) -> None:
    if "momentum" in group:
        set_value(group, "momentum", value)
    elif isinstance(first := group["betas"][0], Tensor):
        first.fill_(value)
    else:
        group["betas"] = (value, *group["betas"][1:])


def _per_optimizer(name: str, value: Any, convert: Callable[[str, Any], _Entry]) -> _Entry | tuple[_Entry, ...]:
    """Convert a single value, or each item of a per-optimizer list."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(convert(f"each entry of {name}", each) for each in value)
    try:
        return convert(name, value)
    except ArgumentError as e:
        raise ArgumentError(f"{e.problem}; a list gives one for each optimizer", name) from None


def _counted(name: str, value: int) -> int:
    check_count(name, value, 1)
    return value


def _entry(shared: _Entry | tuple[_Entry, ...], index: int) -> _Entry:
    """Return the value of one optimizer: the single value that all share, or its item of the tuple."""
    return shared[index] if isinstance(shared, tuple) else shared


def _stretched(driver: OptimizerDriver, clock: Clock) -> Clock:
    """Return a clock that is long enough for the durations: a development run is the first steps of such a run."""
    total = clock.total
    while total is not None and total < _LONGEST_DEV_RUN:
        longer = replace(clock, total=total)
        with suppress(DurationError):
            for schedule in driver.schedules:
                schedule.check(longer)
            return longer
        total = max(1, 2 * total)
    return clock
