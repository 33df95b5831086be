"""The callback that applies schedules to a LightningModule's optimizers."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lr_lightning._lightning import FreshMetric, is_dev_run, mean_over_ranks
from lr_lightning._param_groups import initial_value, set_value
from lr_lightning.callbacks.trainer_clock import trainer_clock
from lr_lightning.errors import DurationError
from lr_lightning.schedules import Clock, Plateau, Schedule

__all__ = [
    "LRSchedule",
    "OptimizerDriver",
    "check_plan",
    "each_of",
    "group_schedules",
    "of_kind",
    "schedules_of",
    "stretched",
    "totals_of",
]


class OptimizerDriver:
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


# --- The arguments of LRSchedule: what is refused when it is made, and what when the run's length is known.

_T = TypeVar("_T")
_LONGEST_DEV_RUN = 2**40


def check_plan(driver: OptimizerDriver, clock: Clock) -> None:
    """Raise now what would be raised in the middle of the run."""
    for schedule in driver.schedules:
        if clock.total is None and schedule.needs_total:
            raise ValueError(
                f"LRSchedule: {schedule!r} needs the number of steps, and nothing says it here (a loader without a"
                " length, or only max_time). Give LRSchedule(total_steps=...) or Trainer(max_steps=...), or take a"
                " schedule that needs none, such as Constant() or InverseSqrt(...)."
            )
        schedule.check(clock)
    if absent := driver.absent_groups():
        rank_zero_warn(f"LRSchedule(groups=...): no param group is called {absent} now; one added later may be.")


def stretched(driver: OptimizerDriver, clock: Clock) -> Clock:
    """A clock that is long enough for the durations, for a development run, which is the first steps of such a run."""
    total = clock.total
    while total is not None and total < _LONGEST_DEV_RUN:
        longer = Clock(total, clock.steps_per_epoch, clock.epoch_starts)
        try:
            for schedule in driver.schedules:
                schedule.check(longer)
        except DurationError:
            total = max(1, 2 * total)
        else:
            return longer
    return clock


def each_of(value: Schedule | tuple[Schedule, ...]) -> tuple[Schedule, ...]:
    """One schedule or several, as several."""
    return value if isinstance(value, tuple) else (value,)


def schedules_of(value: Schedule | Sequence[Schedule]) -> Schedule | tuple[Schedule, ...]:
    """``schedule``, or one for each optimizer; anything else is refused."""
    every = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    for schedule in every:
        if not isinstance(schedule, Schedule):
            raise ValueError(f"schedule must be a schedule such as Cosine(), or one for each optimizer, got {value!r}")
    return value if isinstance(value, Schedule) else tuple(value)


def totals_of(value: int | Sequence[int] | None) -> int | tuple[int, ...] | None:
    """``total_steps``, or one for each optimizer; anything else is refused."""
    every = tuple(value) if isinstance(value, Sequence) else () if value is None else (value,)
    for total in every:
        if not isinstance(total, int) or isinstance(total, bool) or total < 1:
            raise ValueError(f"total_steps must be a whole number >= 1, or one for each optimizer, got {value!r}")
    return value if value is None or isinstance(value, int) else every


def group_schedules(value: Mapping[int | str, Schedule] | None) -> dict[int | str, Schedule]:
    """``groups``; what does not map indices or names to schedules is refused."""
    for key, schedule in (value or {}).items():
        if not isinstance(key, int | str) or not isinstance(schedule, Schedule):
            raise ValueError(
                f"groups must map indices or names of param groups to schedules, got {key!r}: {schedule!r}"
            )
    return dict(value or {})


def of_kind(name: str, value: _T | None, kind: type[Any]) -> _T | None:
    """An argument that is of one class or None; anything else is refused."""
    if value is not None and not isinstance(value, kind):
        raise ValueError(f"{name} must be a {kind.__name__}, got {value!r}")
    return value


class LRSchedule(Callback):
    """Sets the lr of every param group to its own peak times a schedule's factor, before each update.

    A step is one update of that optimizer. Under automatic optimization it is ``trainer.global_step``; under manual
    optimization the callback counts each optimizer's updates. The lr used stays in ``group["lr"]`` until the next
    batch. The number of steps is read in ``on_train_start``.

    Args:
        schedule: Factor of the peak; or one for each optimizer, as a list.
        momentum: Schedule of the momentum itself (the first of ``betas`` where the optimizer has those), in [0, 1).
        weight_decay: Factor of each group's own weight decay.
        plateau: Multiplies the lr when its metric stops improving. One value is taken at each validation that logs it,
            or at each training epoch's end where there is no validation.
        groups: Other schedules for the lr of some param groups, by index or by ``group["name"]``.
        total_steps: Number of updates, where Lightning cannot know it; or one for each optimizer, as a list.
        on_resume: ``"rebase"``: a resumed run follows the length it has now; ``"keep"``: the length it had.

    Raises:
        ValueError: An argument is out of range. At the start of a fit: the module brings its own lr_scheduler, a
            schedule needs a total that is not known, durations do not fit, or the optimizers do not match.

    Example:
        >>> from lr_lightning.schedules import Cosine, Warmup
        >>> callback = LRSchedule(Warmup("5%", then=Cosine()))
    """

    def __init__(
        self,
        schedule: Schedule | Sequence[Schedule],
        *,
        momentum: Schedule | None = None,
        weight_decay: Schedule | None = None,
        plateau: Plateau | None = None,
        groups: Mapping[int | str, Schedule] | None = None,
        total_steps: int | Sequence[int] | None = None,
        on_resume: Literal["rebase", "keep"] = "rebase",
    ) -> None:
        super().__init__()
        self.schedule = schedules_of(schedule)
        self.momentum = of_kind("momentum", momentum, Schedule)
        self.weight_decay = of_kind("weight_decay", weight_decay, Schedule)
        self.plateau = of_kind("plateau", plateau, Plateau)
        self.groups = group_schedules(groups)
        self.total_steps = totals_of(total_steps)
        if on_resume not in ("rebase", "keep"):
            raise ValueError(f"on_resume must be 'rebase' or 'keep', got {on_resume!r}")
        self.on_resume = on_resume
        self._drivers: list[OptimizerDriver] = []
        self._clocks: list[Clock] = []
        self._steps: list[int] = []  # updates of each optimizer; used under manual optimization only
        self._history: list[float] = []
        self._scale = 1.0
        self._renewed = FreshMetric()
        self._observed = False  # in this validation
        self._hooks: list[RemovableHandle] = []
        self._base: float | None = None  # found by a range test
        self._unbounded = (self.schedule, self.groups)  # before it

    @property
    def has_base(self) -> bool:
        """Whether one of the schedules of the lr is cyclical between a base_lr and the peak."""
        return any(schedule.has_base for schedule in (*each_of(self.schedule), *self.groups.values()))

    def set_base(self, ratio: float) -> None:
        """Give cyclical schedules this lower bound, in this fit and when it is resumed. Not after ``on_fit_start``.

        Args:
            ratio: base_lr / max_lr, in [0, 1].

        Raises:
            ValueError: ``ratio`` is outside [0, 1].
        """
        if self._base is None:
            self._unbounded = (self.schedule, self.groups)
        schedule, groups = self._unbounded
        bounded = tuple(each.with_base(ratio) for each in each_of(schedule))
        self.schedule = bounded if isinstance(schedule, tuple) else bounded[0]
        self.groups = {key: each.with_base(ratio) for key, each in groups.items()}
        self._base = ratio

    def last_lr(self, optimizer_index: int = 0) -> list[float]:
        """The lr of each param group as last set, without asking the device.

        Args:
            optimizer_index: Which optimizer.

        Returns:
            One float for each group, in the order of ``optimizer.param_groups``. Between ``on_train_batch_start`` and
            the next one these are the rates that the batch's update uses.

        Raises:
            IndexError: There is no such optimizer, or no fit has started.
        """
        return list(self._drivers[optimizer_index].lrs)

    @property
    def plateau_factor(self) -> float:
        """What the plateau multiplies the rates by now; 1 without one."""
        return self._scale

    def plan(self, optimizer_index: int = 0) -> tuple[Schedule, Clock]:
        """The schedule that an optimizer follows, and the clock it reads; the plateau is not in it.

        Raises:
            IndexError: There is no such optimizer, or no training has started.
        """
        shared = self.schedule
        return shared[optimizer_index] if isinstance(shared, tuple) else shared, self._clocks[optimizer_index]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget the bounds of an earlier fit; a checkpoint's state is loaded after this."""
        if stage == "fit" and self._base is not None:
            (self.schedule, self.groups), self._base = self._unbounded, None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check what can be checked before anything trains."""
        for config in trainer.lr_scheduler_configs:
            name, module = type(config.scheduler).__name__, type(pl_module).__name__
            raise ValueError(
                f"LRSchedule and an lr_scheduler would both set the lr: {module}.configure_optimizers returns {name}."
                " Remove it there (return the optimizer alone), or remove LRSchedule from the Trainer's callbacks."
            )
        count = len(trainer.optimizers)
        for name, values in (("schedule", self.schedule), ("total_steps", self.total_steps)):
            if isinstance(values, tuple) and len(values) != count:
                raise ValueError(f"LRSchedule: {name} has {len(values)} entries for {count} optimizers; give {count}.")
        self._drivers = self._make_drivers(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the total, now that the loader and all state are there, and set the first rates."""
        if trainer.global_step == 0:  # nothing carries over from an earlier fit
            self._clocks, self._steps, self._history = [], [], []
        self._drivers = self._make_drivers(trainer)
        self._clocks = self._make_clocks(trainer, pl_module)
        for driver, clock in zip(self._drivers, self._clocks, strict=True):
            check_plan(driver, clock)
        self._scale = 1.0 if self.plateau is None else self.plateau(self._history)
        if pl_module.automatic_optimization:
            self._steps = []
        else:
            self._steps = self._restored_steps(trainer)
            self._attach()
        self._drive(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Set the rates that this batch's update uses."""
        self._drive(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The plateau's metric is yet to come."""
        self._observed = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the plateau's metric; after every ``on_validation_epoch_end``, before checkpoints are saved."""
        self.observe(trainer)

    def observe(self, trainer: Trainer) -> None:
        """Take the plateau's metric of a validation that has ended, once, whoever asks first.

        A callback that acts on the plateau in its own ``on_validation_end`` calls this, so that the order of the two
        does not matter.
        """
        if self.plateau is None or trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking or self._observed:
            return
        self._observed = True
        self._observe(trainer, self.plateau)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the plateau's metric where there is no validation."""
        if self.plateau is not None and not trainer.enable_validation:
            self._observe(trainer, self.plateau)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let go of the optimizers."""
        self._detach()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let go of the optimizers."""
        self._detach()

    def state_dict(self) -> dict[str, Any]:
        """Plain values only: updates counted, the length followed, the plateau's history, a found lower bound."""
        clocks = [(clock.total, clock.steps_per_epoch, clock.epoch_starts) for clock in self._clocks]
        return {
            "steps": list(self._steps),
            "clocks": [
                [total, per_epoch, None if starts is None else list(starts)] for total, per_epoch, starts in clocks
            ],
            "plateau": list(self._history),
            "base": self._base,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self._steps = list(state_dict["steps"])
        self._clocks = [Clock(total, per_epoch, starts) for total, per_epoch, starts in state_dict["clocks"]]
        self._history = list(state_dict["plateau"])
        if state_dict.get("base") is not None:
            self.set_base(state_dict["base"])

    def _make_drivers(self, trainer: Trainer) -> list[OptimizerDriver]:
        shared = self.schedule
        return [
            OptimizerDriver(
                optimizer,
                shared[index] if isinstance(shared, tuple) else shared,
                momentum=self.momentum,
                weight_decay=self.weight_decay,
                groups=self.groups,
            )
            for index, optimizer in enumerate(trainer.optimizers)
        ]

    def _make_clocks(self, trainer: Trainer, pl_module: LightningModule) -> list[Clock]:
        count = len(self._drivers)
        if self.on_resume == "keep" and trainer.global_step > 0:
            if len(self._clocks) == count:
                return self._clocks
            rank_zero_warn("LRSchedule(on_resume='keep'): the checkpoint holds no length, so the new one is followed.")
        totals = self.total_steps if isinstance(self.total_steps, tuple) else (self.total_steps,) * count
        sharing = 1 if pl_module.automatic_optimization else max(1, count)
        clocks = [trainer_clock(trainer, optimizers=sharing, total_steps=total) for total in totals]
        # a development run is the first steps of a run that is long enough for its durations
        dev_run = is_dev_run(trainer)
        return [
            stretched(driver, clock) if dev_run else clock for driver, clock in zip(self._drivers, clocks, strict=True)
        ]

    def _restored_steps(self, trainer: Trainer) -> list[int]:
        count = len(self._drivers)
        if trainer.global_step == 0:
            return [0] * count
        if len(self._steps) == count:
            return self._steps
        if count == 1:
            return [trainer.global_step]
        raise ValueError(
            f"LRSchedule cannot know how many updates each of the {count} optimizers has made: the checkpoint was saved"
            " without LRSchedule. Start a new run from its weights instead of resuming it."
        )

    def _attach(self) -> None:
        """Follow each optimizer's own updates: in manual optimization there may be none or many in a batch."""
        self._detach()
        for index, driver in enumerate(self._drivers):

            def before(optimizer: Optimizer, args: Any, kwargs: Any, index: int = index) -> None:
                self._drivers[index].drive(self._steps[index], self._clocks[index], self._scale)

            def after(optimizer: Optimizer, args: Any, kwargs: Any, index: int = index) -> None:
                self._steps[index] += 1

            self._hooks.append(driver.optimizer.register_step_pre_hook(before))
            self._hooks.append(driver.optimizer.register_step_post_hook(after))

    def _detach(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _drive(self, trainer: Trainer) -> None:
        step = trainer.global_step
        for index, driver in enumerate(self._drivers):
            driver.drive(self._steps[index] if self._steps else step, self._clocks[index], self._scale)

    def _observe(self, trainer: Trainer, plateau: Plateau) -> None:
        metrics = trainer.callback_metrics
        renewed = self._renewed(trainer, plateau.monitor)
        # all processes must take the same decision
        value = mean_over_ranks(trainer, metrics[plateau.monitor] if renewed else None)
        if value is not None:
            self._history.append(value)
            self._scale = plateau(self._history)
        elif not self._history:
            known = ", ".join(sorted(metrics)) or "none"
            raise ValueError(f"plateau.monitor: no metric {plateau.monitor!r} was logged. There are: {known}.")
