"""Race learning rates before training. Each trains a shortened run, is judged by validation, and is undone.

With ``keep`` the trainings are the run's own first steps, and the run goes on from the state of one of them. Then the
Trainer's loop goes through these steps once more, as it would have: it loads the batches, calls the callbacks, logs and
validates. Only the update of the weights is left out, and what the step returned, logged and drew at random is repeated
(:class:`_Replay`). Wherever anything may look at the weights, at a validation or the end of an epoch, they are put into
place. The first step after each of these places is trained again, and compared: where the run differs from what was
recorded, it goes on by itself.
"""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader, RandomSampler
from torchmetrics import Metric as TorchMetric

from lr_lightning import _lightning
from lr_lightning._lightning import (
    Callback,
    LightningModule,
    Timer,
    Trainer,
    callbacks_of,
    isolate_rng,
    of_both_packages,
    overrides,
    rank_zero_info,
    rank_zero_warn,
)
from lr_lightning.callbacks import found_lr
from lr_lightning.callbacks.base_finder import Instruments, Metric
from lr_lightning.callbacks.cooldown_preview import RunningAverage
from lr_lightning.callbacks.lr_finder import LRFinder, NoShortRuns, planned_run
from lr_lightning.callbacks.optimizer_driver import OptimizerDriver
from lr_lightning.callbacks.random_state import global_random_state, restore_random_state
from lr_lightning.errors import ArgumentError, UsageError
from lr_lightning.lr_finder.dry_run import DryRun, carried_digest, is_watched, validation_loaders
from lr_lightning.lr_finder.planned_run import PlannedRun
from lr_lightning.lr_finder.race import FEWEST_STEPS, FEWEST_UPDATES, KeptRace, RacePlan, RaceTest, at_peak, range_steps
from lr_lightning.lr_finder.snapshot import Snapshot, batch_checksum
from lr_lightning.schedules import Clock
from lr_lightning.schedules.clock import DurationLike, parse_duration

__all__ = ["LRRace"]

_AFTER_WARMUP = 1.25  # length of the shortest training, if the run goes on from one / length of the warmup
_BLIND = {"DeviceStatsMonitor", "LearningRateMonitor", "ModelCheckpoint", "ProgressBar", "ThroughputMonitor"}
_BATCH_HOOKS = ("on_train_batch_start", "on_train_batch_end")
_UPDATE_HOOKS = ("on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step")


class LRRace(LRFinder):
    """Find the peak learning rate of the planned run by racing several, and train with the one that it suggests.

    A short range test says where to begin. Then five or more learning rates train the run's own schedule, shortened,
    from the same weights and over the same batches, and are judged by the validation. The best learning rates then
    train four times as long, and so on, as far as ``budget`` goes. If the best learning rate is the lowest or highest
    one, the race goes beyond it. The best learning rate changes with the length of the training. This trend is
    extrapolated to the length of the run (:func:`~lr_lightning.lr_finder.race.read_race`).

    As with LRFinder, the schedule is taken from ``LRSchedule``, or else constant, and nothing but the peak differs
    afterwards, bit for bit. If a race was killed, it continues when the same run is started again: until the race is
    over, its results are kept in a file beside the checkpoints.

    Args:
        budget: The most updates that range test and race take together, such as ``"50%"`` of the run or ``500``.
        metric: What decides: ``"val_loss"`` or ``"accuracy"`` of the validation, or ``"loss"``, the training loss of
            the last fifth of the updates.
        apply: Whether to train with the lr that was found.
        keep: Whether the run goes on from the state of the training that the race has chosen. It then equals, bit for
            bit, a run that had this lr from the start, and these updates are not made twice. The schedule must stay
            constant at first, or after its warmup, as WSD and Constant do. The race then trains the run's own first
            steps, and judges a running average of the weights.
        min_lr: The first lr of the range test, > 0.
        max_lr: The last lr of the range test, > ``min_lr``. The race may go beyond both.
        val_batches: Number of validation batches, >= 1; fewer if there are fewer.
        monitor: The name under which the module logs the metric, if it is not a usual one.
        attribute: The name of the module's own lr, if it is not ``lr`` or ``learning_rate``; dots lead into hparams.
        folder: Where a race that is not over is kept. Default: the Trainer's ``default_root_dir``.
        progress: Whether to show a progress bar on a terminal.

    Attributes:
        result: What was found, None before it.
        kept: The updates of the race that the run has gone on from so far.

    Raises:
        ArgumentError: An argument is out of range. At the start of a fit, before anything trains: as LRFinder, or there
            is no validation, the length of the run is not known, the budget is below 50 updates, or the schedule is
            cyclical above a base_lr or comes from ``configure_optimizers``; with ``keep`` also: the schedule does not
            stay constant at first, there are several processes, or a callback would have to see each step's weights.
        UsageError: With ``keep``, among the steps that are repeated: something saves or validates where the weights are
            not in place, or the loader gives a batch that it has not given in the race. Another start of the same run
            then trains from its start with the lr that was found.

    Example:
        >>> race = LRRace(budget="25%")
    """

    kind = RaceTest
    reads_weights_at_steps = False
    artifact = "lr_race/race"

    def __init__(
        self,
        budget: DurationLike = "50%",
        metric: Metric = "val_loss",
        apply: bool = True,
        keep: bool = False,
        *,
        min_lr: float = 1e-6,
        max_lr: float = 10.0,
        val_batches: int = 50,
        monitor: str | None = None,
        attribute: str | None = None,
        folder: str | Path | None = None,
        progress: bool = True,
    ) -> None:
        parse_duration(budget, "budget", positive=True)
        if not isinstance(keep, bool) or (keep and not apply):
            raise ArgumentError(f"must be True or False, and with apply=False only False, got {keep!r}", "keep")
        super().__init__(
            *(min_lr, max_lr),
            metric=metric,
            apply=apply,
            retry=False,
            budget=budget,
            val_batches=val_batches,
            monitor=monitor,
            attribute=attribute,
            progress=progress,
        )
        self.folder, self.keep = folder, keep

    def _reset(self) -> None:
        super()._reset()
        self.kept = 0
        self._trunks: dict[float, _Trunk] = {}
        self._replay: _Replay | None = None
        self._kept_race: KeptRace | None = None
        self._continued = False  # a race that was interrupted

    def _find(self, trainer: Trainer, module: LightningModule, reference: float) -> RaceTest:
        with self._instruments(trainer, module, reference, "LR race", 0, "step") as instruments:
            planned = self._planned(instruments.dry_run)
            if isinstance(planned, NoShortRuns):
                raise ArgumentError(f"LRRace {planned.value}")
            driver, clock = planned
            run, budget = planned_run(driver, clock), clock.steps(self.budget or 0)
            if budget < FEWEST_UPDATES:
                raise ArgumentError(
                    f"LRRace: budget must be {FEWEST_UPDATES} updates or more, and {str(self.budget)!r} of this run of "
                    f"{run.steps} updates is {budget}. Give more, or use LRFinder."
                )
            steps = range_steps(budget)
            plan = self._plan(instruments.dry_run, driver, clock, budget - steps - int(self.keep))  # keep tries a step
            instruments.bar.extend(budget)
            level = None
            if instruments.validation is not None:
                with instruments.dry_run.run():
                    level = instruments.validation()
            found = self._test(instruments._replace(validation=None), self._grid(self.min_lr, self.max_lr, steps))
            values = {field.name: getattr(found, field.name) for field in fields(found)}
            values |= {"planned": run, "judged": self.metric, "keep": self.keep}
            values["level"] = found.start if level is None else level
            kept = KeptRace(self._file(trainer, module, run), trainer, self.say or rank_zero_info)
            begun = RaceTest(**values)
            race = kept.load(begun)
            self._continued = race is not begun
            plan = replace(plan, budget=budget - min(len(race.curves[0]) + 1, steps) - int(self.keep))
            instruments.bar.update(sum(len(rung.lrs) * rung.num_steps for rung in race.trials))
            while (trial := race.next_trial(plan)) is not None:
                (rung, lr), length = trial, plan.rungs[trial[0]].length
                if self.keep:
                    losses, final = self._own_steps(instruments, lr, length, driver, clock, rung + 1 == len(plan.rungs))
                else:
                    ((losses, final),) = self._trial(instruments, lr, length, driver, clock)
                race = race.with_trial(rung, length, lr, losses, final)
                kept.save(race)
            if self.keep:
                self._kept_race = kept  # until the run has gone through the steps
            else:
                kept.remove()
            return race

    def _plan(self, dry_run: DryRun, driver: OptimizerDriver, clock: Clock, budget: int) -> RacePlan:
        total = clock.need_total("a race")
        if not self.keep:
            return RacePlan.of(budget, total)
        _check_keep(dry_run)
        factors = [driver.schedule(step, clock) for step in range(total)]
        if (flat := at_peak(factors)) is None:
            raise ArgumentError(
                "LRRace(keep=True) needs a schedule that is constant at first, or after its warmup, such as WSD or "
                f"Constant. This one is {driver.schedule.describe(clock)}. Use another schedule, or keep=False."
            )
        plan = RacePlan.of(budget, flat[1], max(FEWEST_STEPS, math.ceil(_AFTER_WARMUP * flat[0])))
        if plan.rungs[0].length < _AFTER_WARMUP * flat[0]:
            raise ArgumentError(
                f"LRRace(keep=True): trainings of {plan.rungs[0].length} updates are too short for a warmup of "
                f"{flat[0]}. Give a larger budget or a shorter warmup, or use keep=False."
            )
        with dry_run.run(), _recorded(dry_run) as trunk:  # what one step shows is refused before the others
            before = dry_run.state()
            dry_run.step(None)
            if lost := before.restore():
                trunk.problem = f"changes objects that cannot be restored ({', '.join(lost)})"
        if trunk.problem:
            raise ArgumentError(f"LRRace(keep=True) cannot repeat a step that {trunk.problem}. Use keep=False.")
        return plan

    def _own_steps(
        self, instruments: Instruments, lr: float, length: int, driver: OptimizerDriver, clock: Clock, last: bool
    ) -> tuple[tuple[float, ...], float]:
        """Train the run's own first steps with a peak; return the losses, and the metric of the averaged weights."""
        dry_run, validation, bar = instruments
        module, losses, final = dry_run.module, [], math.nan
        with dry_run.undo():
            found_lr.set_peak(dry_run.trainer, module, lr, None, self.attribute)
            with dry_run.run(), _recorded(dry_run, last) as trunk:
                average = RunningAverage(module.named_parameters())
                for step in range(length):
                    driver.drive(step, clock)
                    loss = dry_run.step(None)
                    if not math.isfinite(loss):
                        break
                    losses.append(loss)
                    average.update(module.named_parameters())
                else:
                    trunk.close()
                    if last:
                        self._trunks[lr] = trunk
                    if validation is not None:
                        with torch.no_grad():
                            for name, parameter in module.named_parameters():
                                parameter.copy_(average.values[name])
                        final = validation()
            if dry_run.lost:
                trunk.problem = f"changes objects that cannot be restored ({', '.join(dry_run.lost)})"
        bar.update(length)
        return tuple(losses), final

    # -- the run goes on from the race -------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Race and apply; of the trainings, only the one that the run goes on from is still needed."""
        super().on_fit_start(trainer, pl_module)
        trunk = None if self.applied_lr is None else self._trunks.get(self.applied_lr)
        steps = {tuple(micro.batch for micro in trunk.micros) for trunk in self._trunks.values()}
        if self.keep and not self._resumed and self.applied_lr is not None:
            why = "the lr is not that of one of the longest trainings"
            if trunk is None and self._continued:
                why = "the trainings of a race that was interrupted are not kept"
            elif trunk is not None and len(steps) > 1:
                why = "the loader gives other batches each time"
            elif trunk is not None:
                why = trunk.problem and f"a step that {trunk.problem} cannot be repeated (keep=False spares the memory)"
            if why:
                (self.say or rank_zero_info)(
                    f"LRRace: the run trains from its start with the lr that was found, since {why}."
                )
            elif trunk is not None:
                self._replay = _Replay(trunk, trainer, pl_module)
        self._trunks = {}
        if self._replay is None:
            self._forget()

    def _forget(self) -> None:
        """Remove the file of the race, as the run no longer depends on it."""
        if self._kept_race is not None:
            self._kept_race.remove()
            self._kept_race = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to go through the steps of the race."""
        super().on_train_start(trainer, pl_module)
        if self._replay is not None:
            self._replay.begin()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Say where the run goes on by itself."""
        if (replay := self._replay) is not None:
            self.kept = replay.kept
            replay.hold_sigterm()
            if replay.ended:
                self._replay, why = None, ", since it differs from the race there" if replay.differs else ""
                (self.say or rank_zero_info)(
                    f"LRRace: the run trains by itself from update {trainer.global_step} on{why}. It took "
                    f"{self.kept} updates from the race."
                )
                self._forget()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make sure that nobody gets the weights of another step."""
        if self._replay is not None and not trainer.sanity_checking:
            self._replay.check()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Make sure that nobody gets the weights of another step."""
        if self._replay is not None:
            self._replay.check()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let Lightning train again."""
        if self._replay is not None:
            self._replay.check()
            self._replay.end()
            self._forget()

    def state_dict(self) -> dict[str, Any]:
        """Return also the number of updates that were kept."""
        return {**super().state_dict(), "kept": self.kept}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        super().load_state_dict(state_dict)
        self.kept = state_dict.get("kept", 0)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let Lightning train again."""
        if self._replay is not None:
            self._replay.end()
            self._replay.warn()

    def _file(self, trainer: Trainer, module: LightningModule, run: PlannedRun) -> Path:
        """Return the file that keeps this race until it is over; another run or another race has another file."""
        groups = [
            {key: repr(value) for key, value in group.items() if key != "params"}
            for group in trainer.optimizers[0].param_groups
        ]
        names = [name for name, _ in module.named_parameters()]
        race = [str(self.budget), self.metric, self.min_lr, self.max_lr, self.val_batches, self.monitor, self.keep]
        key = json.dumps(
            [run.describe(), race, trainer.world_size, type(trainer.optimizers[0]).__name__, groups, names]
        )
        return Path(self.folder or trainer.default_root_dir) / f".lr_race-{sha256(key.encode()).hexdigest()[:16]}.json"


# -- the steps of a training that the run may go on from ---------------------------------------------------------------


@dataclass
class _Micro:
    """A batch that was trained on: what the step returned and logged, and the random state after it."""

    batch: int  # checksum
    output: Any  # held
    logged: list[tuple[Any, ...]]
    random: dict[str, Any]


@dataclass
class _Segment:
    """The batches up to a place where anything may look at the weights, and the state there."""

    micros: list[_Micro] = field(default_factory=list)
    first: int | None = None  # checksum of the state after the first update
    end: Snapshot | None = None


class _Trunk:
    """The run's own first steps with one learning rate, as a dry run makes them."""

    def __init__(self, dry_run: DryRun) -> None:
        self.dry_run: DryRun | None = dry_run
        self.segments: list[_Segment] = [_Segment()]
        self.problem = ""  # why a step cannot be repeated
        self._logged: list[tuple[Any, ...]] = []
        self._count = 0
        self._loaders: list[Any] | None = None  # of the validation

    @property
    def micros(self) -> Iterator[_Micro]:
        return (micro for segment in self.segments for micro in segment.micros)

    def log(self, hook: str, name: str, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep what the module logs."""
        if isinstance(value, TorchMetric):
            self.problem = f"logs a metric object ({name!r}: {type(value).__name__})"
        kept = value.detach().clone() if isinstance(value, Tensor) else value
        self._logged.append((hook, name, kept, args, kwargs))

    def write(self) -> None:
        """Note what cannot be repeated."""
        self.problem = "uses the logger itself instead of self.log"

    def add(self, arguments: Mapping[str, Any], output: Any, updated: bool) -> None:
        """Keep a batch; at a place where the run validates or ends an epoch, the state too."""
        if (dry_run := self.dry_run) is None:
            return
        segment, trainer = self.segments[-1], dry_run.trainer
        if output.get("loss") is None:
            self.problem = "returns no loss"
        segment.micros.append(
            _Micro(batch_checksum(arguments), _hold(dict(output)), self._logged, global_random_state())
        )
        self._logged, self._count = [], self._count + 1
        if segment.first is None and updated:
            segment.first = carried_digest(trainer, dry_run.module, {"random": global_random_state()})
        validates, ends = is_watched(trainer, self._count)
        if validates or ends or (updated and _lightning.is_checkpoint_due(trainer)):
            self.close()
            if validates:
                self._draw_for_validation()
            if ends and any(overrides(f"on_train_epoch_{when}", dry_run.module) for when in ("start", "end")):
                self.dry_run = None  # what the module does there is not known
            elif ends:
                _lightning.end_epoch_of_dry_run(trainer)
            self.segments.append(_Segment())

    def _draw_for_validation(self) -> None:
        """Draw the random numbers that a validation draws when it makes the iterators of its loaders."""
        if self._loaders is None and self.dry_run is not None:
            with isolate_rng():
                self._loaders = validation_loaders(self.dry_run.trainer).flattened
        for loader in self._loaders or ():
            if isinstance(loader, DataLoader):
                torch.empty((), dtype=torch.int64).random_(generator=loader.generator)
                if isinstance(loader.sampler, RandomSampler) and loader.sampler.generator is None:
                    torch.empty((), dtype=torch.int64).random_()

    def close(self) -> None:
        """End a segment with the present state."""
        if self.dry_run is not None and self.segments[-1].micros:
            self.segments[-1].end = self.dry_run.state()


@contextmanager
def _recorded(dry_run: DryRun, wanted: bool = True) -> Iterator[_Trunk]:
    """Record the steps of a dry run, if wanted."""
    trunk = _Trunk(dry_run)
    dry_run.recorder = trunk if wanted else None
    try:
        yield trunk
    finally:
        dry_run.recorder = trunk.dry_run = None


class _Replay:
    """Takes the place of Lightning's update while the run goes through the steps of a trunk."""

    def __init__(self, trunk: _Trunk, trainer: Trainer, module: LightningModule) -> None:
        self.segments = [segment for segment in trunk.segments if segment.end is not None]
        self.trainer, self.module = trainer, module
        self.kept = 0  # updates that were not made again
        self.ended = self.differs = False
        self._least = trainer.min_steps
        self._told = False  # that SIGTERM has come
        self._index = 0  # of the next batch in the first segment
        self._stale = self._same = False  # whether the weights are not in place; whether the segment is as recorded

    def begin(self) -> None:
        """Take the place of Lightning's update."""
        self._update = _lightning.replace_update(self.trainer, self)

    def end(self) -> None:
        """Let Lightning train."""
        _lightning.replace_update(self.trainer, None)
        _lightning.hold_stops(self.trainer, self._least, False)
        self.segments, self.ended = [], True

    def hold_sigterm(self) -> None:
        """Let SIGTERM wait until the weights are in place."""
        self._told = _lightning.take_sigterm(self.trainer) or self._told
        if self._told and not self._stale:
            self._told = False
            _lightning.stop_after_batch(self.trainer)

    def warn(self) -> None:
        """Say so if the run has stopped where the weights are not in place."""
        if self._stale:
            rank_zero_warn(
                f"LRRace(keep=True): the run stopped at step {self.trainer.global_step} among the steps that it "
                "repeated, and the module has the weights of an earlier one. Start the same run again: it trains from "
                "its start with the lr that was found."
            )

    def check(self) -> None:
        """Refuse to let anything look at weights that are not in place."""
        if self._stale:
            raise UsageError(
                f"LRRace(keep=True) repeats the first steps of the run, and the weights of step "
                f"{self.trainer.global_step} are not known. Save checkpoints and validate at the end of an epoch or "
                "each val_check_interval batches, or use keep=False."
            )

    def __call__(self, optimizer: Any, batch_idx: int, arguments: dict[str, Any]) -> Any:
        """Train the first update of a segment and compare it; repeat the others."""
        segment = self.segments[0]
        micro = segment.micros[self._index]
        self._index += 1
        if not self._same:
            output = self._update(optimizer, batch_idx, arguments)
            if _lightning.is_step_complete(self.trainer):
                now = carried_digest(self.trainer, self.module, {"random": global_random_state()})
                self._same = now == segment.first
                self.differs = not self._same
                if self.differs:
                    self.end()
                    return output
        else:
            if batch_checksum(arguments) != micro.batch:
                raise UsageError(
                    "LRRace(keep=True): the training loader gives other batches than in the race. Start the run again, "
                    "and it trains from its start with the lr that was found, or use keep=False."
                )
            output, self._stale = _given(micro.output), True
            _lightning.hold_stops(self.trainer, self._least, True)
            for logged in micro.logged:
                _lightning.log_in_hook(self.module, *logged)
            self.kept += _lightning.is_step_complete(self.trainer)
            _lightning.count_update(self.trainer, batch_idx)
            restore_random_state(micro.random)
        if self._index == len(segment.micros):
            self._finish(segment)
        return output

    def _finish(self, segment: _Segment) -> None:
        """Put the state into place, and go to the next segment."""
        if self._stale and segment.end is not None and (lost := segment.end.restore()):
            raise UsageError(f"LRRace(keep=True) cannot carry {', '.join(lost)} into the run. Use keep=False.")
        self._stale, self._same, self._index = False, False, 0
        _lightning.hold_stops(self.trainer, self._least, False)
        del self.segments[0]
        if not self.segments:
            self.end()


@dataclass
class _Held:
    """A tensor in host memory, without its graph, and its device."""

    values: Tensor
    device: torch.device


def _hold(output: Mapping[str, Any]) -> Any:
    """Return what a step returned, with its tensors held."""
    return tree_map(lambda v: _Held(v.detach().to("cpu", copy=True), v.device) if isinstance(v, Tensor) else v, output)


def _given(output: Any) -> Any:
    """Return what :func:`_hold` was given."""
    return tree_map(lambda v: v.values.to(v.device, copy=True) if isinstance(v, _Held) else v, output)


def _sees_steps(callback: Callback) -> bool:
    """Return whether a callback may read the weights or the gradients after single steps."""
    known: Any = getattr(callback, "reads_weights_at_steps", None)
    if known is None:
        kinds = {kind.__name__ for kind in type(callback).__mro__ if "lightning" in kind.__module__.split(".")[0]}
        known = not kinds & _BLIND
    plain = {getattr(kind, hook) for kind in of_both_packages(Callback) for hook in (*_BATCH_HOOKS, *_UPDATE_HOOKS)}
    own = (getattr(callback, hook) for hook in (*_BATCH_HOOKS, *_UPDATE_HOOKS))
    return bool(known) and any(hook is not None and getattr(hook, "__func__", hook) not in plain for hook in own)


def _check_keep(dry_run: DryRun) -> None:
    """Refuse a run whose first steps cannot be repeated, before any of them is made."""
    trainer, module = dry_run.trainer, dry_run.module
    seeing = [type(callback).__name__ for callback in callbacks_of(trainer, Callback) if _sees_steps(callback)]
    with dry_run.with_loaders():
        length = trainer.num_training_batches
    problem = ""
    if callbacks_of(trainer, Timer):
        problem = "cannot end after a max_time, when the weights may not be in place. Use max_steps, or keep=False."
    elif _lightning.saves_by_time(trainer):
        problem = "cannot save after a train_time_interval. Use every_n_train_steps, or keep=False."
    elif trainer.world_size > 1:
        problem = f"works in one process, and this run has {trainer.world_size}. Use keep=False."
    elif seeing:
        problem = (
            f"cannot show {' and '.join(seeing)} the weights and gradients of every step. Remove it, set its attribute "
            "reads_weights_at_steps = False if it does not read them, or use keep=False."
        )
    elif hasattr(dry_run.optimizer, "train"):
        problem = f"cannot continue with {type(dry_run.optimizer).__name__}: it averages the weights. Use keep=False."
    elif hooks := [hook for hook in _BATCH_HOOKS if overrides(hook, module)]:
        problem = f"cannot repeat {type(module).__name__}.{' and '.join(hooks)}. Use keep=False."
    elif not math.isfinite(length):
        problem = "needs a training loader with a length. Use keep=False."
    elif int(length) % dry_run.accumulate:
        problem = (
            f"needs whole updates in an epoch, and {dry_run.accumulate} accumulated batches do not divide its "
            f"{int(length)} batches. Use keep=False."
        )
    elif not isinstance(trainer.val_check_interval, int | float):
        problem = "cannot know when a val_check_interval in time is over. Use keep=False."
    if problem:
        raise ArgumentError(f"LRRace(keep=True) {problem}")
