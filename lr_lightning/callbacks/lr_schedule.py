"""The callback that applies schedules to a LightningModule's optimizers."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any, Literal, TypeVar, get_args

from torch.utils.hooks import RemovableHandle

from lr_lightning._checks import check_choice, check_count, check_flag
from lr_lightning._lightning import (
    BaseCallback,
    FreshMetric,
    LightningModule,
    Trainer,
    TrainerFn,
    averaging_callbacks,
    callbacks_of,
    end_fit_at,
    is_dev_run,
    is_missed_in_sanity_check,
    is_resuming,
    mean_over_ranks,
    planned_epochs,
    rank_zero_info,
    rank_zero_warn,
)
from lr_lightning._param_groups import MOST_STEPS, missing_lr, peak_lr, restart_without_scheduler, scheduler_lrs
from lr_lightning._threads import ThreadWatch
from lr_lightning.callbacks.batch_size import BatchSizeSchedule
from lr_lightning.callbacks.optimizer_driver import OptimizerDriver, PlannedCooldown, plain_clock
from lr_lightning.callbacks.trainer_clock import longer_clock, trainer_clock
from lr_lightning.errors import ArgumentError, UsageError
from lr_lightning.schedules import Clock, Plateau, Schedule
from lr_lightning.schedules.base import ScheduleLike, as_schedule
from lr_lightning.schedules.clock import updates_per_epoch
from lr_lightning.schedules.compose import Shifted

__all__ = ["LRSchedule"]

_Entry = TypeVar("_Entry")
_OnResume = Literal["rebase", "keep"]
_PeakOnResume = Literal["checkpoint", "module"]
_Peaks = list[list[float]]  # of each optimizer's param groups
_FEW = 2  # updates by which a plan may be wrong
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # of a function


class LRSchedule(BaseCallback):
    """Set the lr of every param group to its own peak times a schedule's factor, before each update.

    A step is one update of the group's optimizer: ``trainer.global_step`` under automatic optimization; under manual
    optimization the callback counts. The lr that was used stays in ``group["lr"]`` until the next batch. The number of
    steps is read in ``on_train_start``. A plain function ``(step, clock) -> factor`` may replace any schedule.

    Args:
        schedule: Factor of the peak; a list gives one for each optimizer.
        momentum: Schedule of the momentum itself (or of the first of ``betas``, as in Adam), in [0, 1).
        weight_decay: Factor of each group's own weight decay.
        plateau: Multiplies the lr when its metric stops improving. It reads one value at each validation that logs the
            metric, or at the end of each training epoch if there is no validation.
        groups: Other schedules for the lr of some param groups, by index or by ``group["name"]``.
        total_steps: Number of updates, if Lightning cannot know it; a list gives one for each optimizer.
        start: The update at which every schedule starts; before it, the first value is kept. ``"here"``: the update
            that the fit starts from, so that any checkpoint can be forked. Percentages are of the updates that are
            left. The start is part of a checkpoint, and a fit that resumes the fork with the same schedule keeps it.
        on_resume: ``"rebase"``: a resumed run follows its present length; ``"keep"``: the length in the checkpoint.
        peak_on_resume: ``"checkpoint"``: a resumed run keeps its peak lr; ``"module"``: it takes the lr that
            ``configure_optimizers`` gives now.
        replace: Whether to take the place of the lr_schedulers that ``configure_optimizers`` returns; the peak is the
            highest lr that they would reach.

    StochasticWeightAveraging sets the lr from the epoch at which it starts; this callback then leaves it alone.

    Raises:
        ArgumentError: An argument is out of range. At the start of a fit: the module has its own lr_scheduler, a
            schedule needs a total that is not known, an optimizer has no lr, or the optimizers do not match the
            arguments.
        DurationError: At the start of a fit: durations do not fit into its steps.

    Example:
        >>> from lr_lightning.schedules import Cosine, Warmup
        >>> callback = LRSchedule(Warmup("5%", then=Cosine()))
    """

    reads_weights_at_steps = False

    def __init__(
        self,
        schedule: Sequence[ScheduleLike] | ScheduleLike,  # in this order a LightningCLI saves a list that it can read
        *,
        momentum: ScheduleLike | None = None,
        weight_decay: ScheduleLike | None = None,
        plateau: Plateau | None = None,
        groups: Mapping[int | str, ScheduleLike] | None = None,
        total_steps: int | Sequence[int] | None = None,
        start: int | Literal["here"] = 0,
        on_resume: _OnResume = "rebase",
        peak_on_resume: _PeakOnResume = "checkpoint",
        replace: bool = False,
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
        if start != "here" and (not isinstance(start, int) or isinstance(start, bool) or start < 0):
            raise ArgumentError(f"must be 'here' or a whole number >= 0, got {start!r}", "start")
        self.start = start
        check_choice("on_resume", on_resume, get_args(_OnResume))
        check_choice("peak_on_resume", peak_on_resume, get_args(_PeakOnResume))
        check_flag("replace", replace)
        self.on_resume, self.peak_on_resume, self.replace = on_resume, peak_on_resume, replace
        self._drivers: list[OptimizerDriver] = []
        self._clocks: list[Clock] = []
        self._steps: list[int] = []  # updates of each optimizer; used under manual optimization only
        self._starts: list[int] = []  # the update at which each optimizer's schedules start
        self._cooldown: PlannedCooldown | None = None
        self._history: list[float] = []
        self._scale = 1.0
        self._growing: list[BatchSizeSchedule] = []
        self._batch_factor = 1.0  # for a batch that has grown
        self._is_fresh = FreshMetric()
        self._observed = False  # in this validation
        self._hooks: list[RemovableHandle] = []
        self._threads: ThreadWatch | None = None
        self._base: float | None = None  # base_lr / max_lr, if a range test found it
        self._configured = (self.schedule, self.groups)  # before a range test set that bound
        self._resumed = False
        self._successor = ""  # the scheduler that another callback has added, and that sets the lr since then
        self._warned = False  # that the updates are not those that were planned
        self._module_peaks: _Peaks | None = None  # as configure_optimizers gives them
        self._saved: dict[str, _Peaks] = {}  # a checkpoint's peaks, used and configured

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
        return self._started(_entry(self.schedule, optimizer_index), optimizer_index)

    def plan(self, optimizer_index: int = 0) -> tuple[Schedule, Clock]:
        """Return the schedule that an optimizer follows, and the clock that the schedule reads.

        Raises:
            IndexError: There is no such optimizer, or no training has started.
        """
        return self.schedule_of(optimizer_index), self._clocks[optimizer_index]

    @property
    def is_cooling(self) -> bool:
        """Whether the schedule was left for a cooldown."""
        return self._cooldown is not None

    def cool_down(self, trainer: Trainer, updates: int) -> int:
        """Leave the schedule now: bring the lr to zero in a straight line, and end the fit there.

        Call it on every rank between two updates, such as in ``on_train_batch_end`` of a batch that completed one.
        Momentum, weight decay and plateau stay as they are. A checkpoint keeps it, so a fit that resumes cools down as
        well. A second call changes nothing.

        Args:
            trainer: The Trainer, in a fit.
            updates: Length of the cooldown, >= 1. It ends with the planned run at the latest.

        Returns:
            The updates until the end.

        Raises:
            ArgumentError: ``updates`` is < 1.
            UsageError: StochasticWeightAveraging is among the callbacks, or another scheduler sets the lr by now.
        """
        check_count("updates", updates, 1)
        if self._cooldown is None:
            others = [type(each).__name__ for each in averaging_callbacks(trainer, "StochasticWeightAveraging")]
            if other := next(iter(others), self._successor):
                raise UsageError(f"LRSchedule cannot cool down, since {other} sets the lr. Let the run reach its end.")
            starts = list(self._steps) or [int(trainer.global_step)]
            left = [clock.total - start for clock, start in zip(self._clocks, starts, strict=True) if clock.total]
            length = max(1, min([updates, *left]))
            end = int(trainer.global_step) + length * len(starts)
            self._cooldown = PlannedCooldown(starts, length, end, list(self._clocks))
            self._drivers = self._make_drivers(trainer)
            self._follow(trainer, self._cooldown)
        return self._cooldown.length

    def _follow(self, trainer: Trainer, cooldown: PlannedCooldown) -> None:
        end_fit_at(trainer, cooldown.end)
        self._clocks = cooldown.clocks_to_end()

    def planned_driver(self, trainer: Trainer, pl_module: LightningModule) -> tuple[OptimizerDriver, Clock]:
        """Return what will drive the first optimizer, and its clock, in a fit that has not begun.

        Call it only where the fit loop knows its training loader, and undo what that changed.
        """
        self._drivers = self._make_drivers(trainer)
        driver, clock = self._drivers[0], self._make_clocks(trainer, pl_module)[0]
        driver.check(clock)
        return driver, clock

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
        if stage != "fit":
            return
        if self._base is not None:
            (self.schedule, self.groups), self._base = self._configured, None
        self._successor, self._warned, self._module_peaks, self._saved, self._starts = "", False, None, {}, []
        self._cooldown = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check what can be checked before anything trains."""
        self.check_fit(trainer, pl_module)
        self._resumed = is_resuming(trainer)
        if not (self._resumed and averaging_callbacks(trainer, "StochasticWeightAveraging")):
            self._successor = ""

    def check_fit(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what cannot work, and take the place of the module's schedulers; a finder calls it before it measures.

        Raises:
            ArgumentError: As the class says of the start of a fit.
        """
        for optimizer in trainer.optimizers:
            if problem := missing_lr(optimizer):
                raise ArgumentError(f"LRSchedule sets the lr of every optimizer, but {problem}. Remove LRSchedule.")
        if self._module_peaks is None:
            self._module_peaks = self._take_over(trainer, pl_module)
        count = len(trainer.optimizers)
        for name, values in (("schedule", self.schedule), ("total_steps", self.total_steps)):
            if isinstance(values, tuple) and (given := len(values)) != count:
                raise ArgumentError(f"LRSchedule: {name} has {given} entries for {count} optimizers; give {count}.")
        self._drivers = self._make_drivers(trainer)  # checks momentum and weight_decay

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the total, now that the loader is built and all state is restored, and set the first lr."""
        if trainer.global_step == 0:  # nothing carries over from an earlier fit
            self._clocks, self._steps, self._history = [], [], []
        if self._resumed and not self._successor:
            self._restore_peaks(trainer, pl_module)
        by_hand = not pl_module.automatic_optimization
        self._steps = self._restored_steps(trainer) if by_hand else []
        self._starts = self._find_starts(trainer)
        # Made anew: a range test in another callback's on_fit_start may have set a lower bound.
        self._drivers = self._make_drivers(trainer)
        self._clocks = self._make_clocks(trainer, pl_module)
        if self._cooldown is not None:
            self._follow(trainer, self._cooldown)
        for driver, clock in zip(self._drivers, self._clocks, strict=True):
            driver.check(clock)
        self._scale = 1.0 if self.plateau is None else self.plateau(self._history)
        if by_hand:
            self._attach()
        self._growing = callbacks_of(trainer, BatchSizeSchedule)
        self._threads = ThreadWatch() if pl_module.device.type == "cpu" else None
        self._drive(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Set the lr that this batch's update uses."""
        if self._threads is not None and not self._threads.step():
            self._threads = None
        if batch_idx == 0 and pl_module.automatic_optimization:
            planned, batches = self._planned_updates(trainer), trainer.num_training_batches
            if planned and math.isfinite(batches):
                start, end = planned
                present = updates_per_epoch(int(batches), trainer.accumulate_grad_batches)
                if present != end - start:
                    self._warn_of_plan(f"{end - start} updates in epoch {trainer.current_epoch}, and it has {present}")
        self._drive(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Compare the updates with the plan, where only the module knows when it makes one."""
        for index, made in enumerate(self._steps):
            if (planned := self._planned_updates(trainer, index)) and (total := self._clocks[index].total):
                expected = planned[0] + batch_idx + 1
                if abs(made - expected) > max(_FEW, total / 100):
                    which = f"optimizer {index}" if len(self._steps) > 1 else "the module"
                    self._warn_of_plan(f"{expected} updates by now, one a batch, and {which} has made {made}")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Await the plateau's metric of this validation."""
        self._observed = False

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn of a plateau whose metric the validation does not log, before the first update."""
        if self.plateau is not None and is_missed_in_sanity_check(trainer, self.plateau.monitor):
            rank_zero_warn(self._missing(trainer))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the plateau's metric: after every ``on_validation_epoch_end``, before checkpoints are saved."""
        self.observe(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the plateau's metric if there is no validation."""
        if not trainer.enable_validation:
            self._update_plateau(trainer)
        planned, made = self._planned_updates(trainer), trainer.global_step
        if planned and not self._steps and made != planned[1] and not trainer.should_stop and made != trainer.max_steps:
            self._warn_of_plan(f"{planned[1]} updates up to epoch {trainer.current_epoch}, and there were {made}")

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Remove the hooks from the optimizers."""
        self._detach()

    on_exception = on_train_end

    def state_dict(self) -> dict[str, Any]:
        """Return plain values: the updates counted, the length followed, the plateau's history, a found lower bound."""
        clocks = list(map(plain_clock, self._clocks))
        peaks = {"used": [driver.peaks for driver in self._drivers], "module": self._module_peaks or []}
        own = {"steps": list(self._steps), "clocks": clocks, "plateau": list(self._history), "base": self._base}
        start = {"starts": list(self._starts), "started": self._fingerprint()} if self.start == "here" else {}
        if (left := self._cooldown) is not None:
            start["cooldown"] = left.state()
        return {**own, **start, "peaks": peaks if self._drivers else self._saved, "successor": self._successor}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._steps = list(state_dict["steps"])
        self._clocks = [Clock(total, per_epoch, starts) for total, per_epoch, starts in state_dict["clocks"]]
        self._history = list(state_dict["plateau"])
        self._saved, self._successor = dict(state_dict.get("peaks", {})), state_dict.get("successor", "")
        if self.start == "here" and state_dict.get("started") != self._fingerprint():  # other schedules, begun anew
            self._history = []
            return
        self._starts = list(state_dict.get("starts", []))
        if (left := state_dict.get("cooldown")) is not None:
            self._cooldown = PlannedCooldown.from_state(left)
        if state_dict.get("base") is not None:
            self.set_base(state_dict["base"])

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Read the peaks of a run that began with CyclicLR, whose param groups do not tell them."""
        states = checkpoint.get("lr_schedulers", [])
        if states and all("max_lrs" in state for state in states):
            self._saved = {"used": [list(map(float, state["max_lrs"])) for state in states]}

    # -- the peaks ---------------------------------------------------------------------------------------------------

    def _take_over(self, trainer: Trainer, module: LightningModule) -> _Peaks:
        """Return the peaks that the module configures, and end the use of its schedulers."""
        configs, name = list(trainer.lr_scheduler_configs), type(module).__name__
        names = " and ".join(type(config.scheduler).__name__ for config in configs)
        if configs and not self.replace:
            raise ArgumentError(
                f"LRSchedule and an lr_scheduler would both set the lr: {name}.configure_optimizers returns {names}."
                " Remove it there (return the optimizer alone), take its place by LRSchedule(replace=True), or remove"
                " LRSchedule from the Trainer's callbacks."
            )
        if configs and not module.automatic_optimization:
            raise ArgumentError(
                f"LRSchedule(replace=True) cannot take the place of {names}, since {name} steps it itself"
                " (automatic_optimization=False). Remove it in configure_optimizers."
            )
        for config in configs:
            optimizer = getattr(config.scheduler, "optimizer", trainer.optimizers[0])
            run = trainer.max_steps if config.interval == "step" else trainer.max_epochs or -1
            steps = MOST_STEPS if run < 0 else min(run, MOST_STEPS)
            lrs = scheduler_lrs(config.scheduler, optimizer.param_groups, -(-steps // config.frequency))
            peaks = [max(own) for own in zip(*lrs, strict=True)] if lrs else map(peak_lr, optimizer.param_groups)
            restart_without_scheduler(optimizer, list(peaks))
        trainer.lr_scheduler_configs.clear()
        every = [list(map(peak_lr, optimizer.param_groups)) for optimizer in trainer.optimizers]
        if configs:
            rank_zero_info(
                f"LRSchedule takes the place of {names}, which {name}.configure_optimizers returns; {_said(every)}."
            )
        return every

    def _restore_peaks(self, trainer: Trainer, module: LightningModule) -> None:
        """Give the groups of a resumed run the checkpoint's peaks, or the module's; say so if they differ."""
        now = self._module_peaks or []
        used = self._saved.get("used") or [list(map(peak_lr, each.param_groups)) for each in trainer.optimizers]
        before = self._saved.get("module") or used
        peaks = now if self.peak_on_resume == "module" else used
        for optimizer, each in zip(trainer.optimizers, peaks, strict=False):
            groups = optimizer.param_groups
            restart_without_scheduler(optimizer, [*each, *map(peak_lr, groups[len(each) :])][: len(groups)])
        same = [all(map(math.isclose, chain(*now), chain(*each))) for each in (before, used)]
        if self.peak_on_resume == "checkpoint" and any(same):
            return
        name = f"{type(module).__name__}.configure_optimizers"
        if self.peak_on_resume == "module":
            rank_zero_info(f"LRSchedule: the resumed run takes the lr of {name}: {_said(now)}, before {_said(used)}.")
        else:
            rank_zero_warn(
                f"LRSchedule: the resumed run keeps the checkpoint's peak, though {name} gives another lr now: "
                f"{_said(used)}, not {_said(now)}. LRSchedule(peak_on_resume='module') takes the new one."
            )

    # -- the plan of a fit, and what happens at each step ------------------------------------------------------------

    def _make_drivers(self, trainer: Trainer) -> list[OptimizerDriver]:
        drivers = []
        for index, optimizer in enumerate(trainer.optimizers):
            held = (each and self._started(each, index, hold=True) for each in (self.momentum, self.weight_decay))
            momentum, decay = held
            groups = {key: self._started(own, index) for key, own in self.groups.items()}
            drivers.append(OptimizerDriver(optimizer, self.schedule_of(index), momentum, decay, groups))
        return drivers

    def _started(self, schedule: Schedule, index: int, *, hold: bool = False) -> Schedule:
        """Return the schedule as this optimizer follows it: from its start step on, with a cooldown if there is one."""
        if index < len(self._starts) and (start := self._starts[index]):
            schedule = Shifted(start, schedule)
        return schedule if self._cooldown is None else self._cooldown.applied_to(schedule, index, hold=hold)

    def _find_starts(self, trainer: Trainer) -> list[int]:
        """Return where the schedules of each optimizer start; a fit that resumes a fork starts where the fork did."""
        count = len(trainer.optimizers)
        if self.start != "here":
            return [self.start] * count
        if self._resumed and len(self._starts) == count:
            return self._starts
        return list(self._steps) or [int(trainer.global_step)] * count

    def _fingerprint(self) -> str:
        """Return a text by which a checkpoint of these schedules is known from one of others."""
        schedules = (self.schedule, self.groups) if self._base is None else self._configured
        return _ADDRESS.sub("", repr((schedules, self.momentum, self.weight_decay, self.plateau)))

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
            return [longer_clock(clock, driver.schedules) for driver, clock in zip(self._drivers, clocks, strict=True)]
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
        if trainer.lr_scheduler_configs and not self._successor:
            self._successor = type(trainer.lr_scheduler_configs[0].scheduler).__name__
            rank_zero_info(f"LRSchedule: another callback has added {self._successor}, which sets the lr from now on.")
        self._batch_factor = math.prod(growing.lr_factor(trainer) for growing in self._growing)
        for index in range(len(self._drivers)):
            self._drive_one(index, trainer.global_step)

    def _drive_one(self, index: int, step: int) -> None:
        step = self._steps[index] if self._steps else step
        factor = self._scale * self._batch_factor
        self._drivers[index].drive(step, self._clocks[index], factor, sets_lr=not self._successor)

    def _planned_updates(self, trainer: Trainer, index: int = 0) -> tuple[int, int] | None:
        """Return the updates planned up to the start and the end of this epoch; None where no plan must hold."""
        clock, epoch = self._clocks[index], trainer.current_epoch
        given = self.total_steps is not None or (self._resumed and self.on_resume == "keep")
        if self._warned or given or clock.total is None or is_dev_run(trainer):
            return None
        if not (clock.epoch_starts or clock.steps_per_epoch) or 0 < planned_epochs(trainer) <= epoch:
            return None
        return clock.steps(f"{epoch} epochs"), clock.steps(f"{epoch + 1} epochs")

    def _warn_of_plan(self, planned: str) -> None:
        """Warn once that the run is not the one that was planned."""
        self._warned = True
        rank_zero_warn(
            f"LRSchedule planned {planned}. So the schedule ends too early or too late: give "
            "LRSchedule(total_steps=...) the updates of the whole run."
        )

    def _attach(self) -> None:
        """Count each optimizer's updates: under manual optimization a batch may make none or several."""
        self._detach()  # a fit before this one may have ended early
        for index, driver in enumerate(self._drivers):

            def before(*_: Any, index: int = index) -> None:
                self._drive_one(index, 0)

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
        if plateau is None or self.is_cooling:
            return
        is_fresh = self._is_fresh(trainer, plateau.monitor)
        # all ranks must take the same decision
        value = mean_over_ranks(trainer, metrics[plateau.monitor] if is_fresh else None)
        if value is not None:
            self._history.append(value)
            self._scale = plateau(self._history)
        elif not self._history:
            raise ArgumentError(self._missing(trainer))

    def _missing(self, trainer: Trainer) -> str:
        known, name = ", ".join(sorted(trainer.callback_metrics)) or "none", self.plateau and self.plateau.monitor
        return f"plateau.monitor: no metric {name!r} was logged. There are: {known}."


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


def _said(peaks: _Peaks) -> str:
    each = [", ".join(f"{peak:.3g}" for peak in dict.fromkeys(own)) for own in peaks]
    return f"a peak lr of {'; '.join(each)}"
