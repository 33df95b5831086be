"""Forking a run: a new run from a state of another one, with another schedule, length, peak lr or weight decay.

The other run is the fork's trunk. A fork of a fork has the first run as its trunk.
"""

import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lr_lightning._commands import override
from lr_lightning._param_groups import set_value
from lr_lightning.app.composition import validate
from lr_lightning.app.config import GROUP_BASES, Config
from lr_lightning.app.error_messages import explain
from lr_lightning.app.run import resume
from lr_lightning.app.run.checkpoints import BEFORE_LAST, LAST, RunCheckpoint, TrunkCheckpoints, read_checkpoint
from lr_lightning.app.schemas.schedule import CooldownConfig, OneCycleConfig
from lr_lightning.app.schemas.search import FinderConfig
from lr_lightning.app.world import is_rank_zero
from lr_lightning.callbacks.early_stopping import ScheduleAwareStopping
from lr_lightning.errors import ArgumentError, ConfigError, TrackingError
from lr_lightning.schedules import Clock, parse_duration
from lr_lightning.tracking.local_log import LOG_NAME, SUMMARY, LocalLog, Metric, Tag, UploadState
from lr_lightning.training.datamodule import ImageDataModule

_ARGUMENT = resume.RunArgument("fork")
_POINTS = "RUN@60%, RUN@step=500, RUN@epoch=5, RUN@best or RUN@last"
_LIMITS = {"trainer.max_epochs", "trainer.max_steps"}
_WHOLE_GROUPS = ("schedule", "callbacks", "tracking")  # that a fork takes from its own command line
_FREE_GROUPS = tuple(f"{group}." for group in (*_WHOLE_GROUPS, "trainer"))
_FREE = {*("optimizer.lr", "optimizer.weight_decay", "test", "output_root"), *resume.CHANGEABLE}
_FIXED = {"trainer.accumulate_grad_batches", "trainer.limit_train_batches"}  # they decide which batch comes next
_OF_STATE = ("data.", "model.", "module.", "seed")  # keys that a checkpoint must share with its run
RUN_TAG, TRUNK_TAG, STEP_TAG, POINT_TAG = "fork.run", "fork.trunk", "fork.step", "fork.point"


@dataclass(frozen=True)
class ForkedRun:
    """The state of another run that a run starts from, and what it changes."""

    origin: Path  # the other run's output folder
    point: str  # as asked for
    checkpoint: Path
    step: int  # updates up to the state
    changed: dict[str, Any] = field(default_factory=dict)
    new_schedule: bool = False  # it starts here

    @property
    def new_peak(self) -> bool:
        """Whether the peak learning rate is another one."""
        return "optimizer.lr" in self.changed

    @property
    def tags(self) -> dict[str, str]:
        """The tags that name the forked run, its trunk, the point and the step."""
        name, trunk = _name_in_store(self.origin), None
        for record in LocalLog(self.origin / LOG_NAME).records():
            if isinstance(record, Metric):  # the tags of a start come first
                break
            if isinstance(record, Tag) and record.key == TRUNK_TAG:
                trunk = record.value
        return {RUN_TAG: name, TRUNK_TAG: trunk or name, POINT_TAG: self.point, STEP_TAG: str(self.step)}

    def rows_before(self) -> Iterator[Metric]:
        """Yield what the forked run logged up to the state, without its summary and test."""
        for record in LocalLog(self.origin / LOG_NAME).records():
            if isinstance(record, Metric) and record.step < self.step and not record.key.startswith((SUMMARY, "test/")):
                yield record


def _name_in_store(folder: Path) -> str:
    with suppress(TrackingError):  # a run of another user
        if (state := UploadState.load(folder)) is not None and state.run_id:
            return state.run_id
    return folder.name


def forked_config(cfg: DictConfig, overrides: list[str]) -> tuple[Config, ForkedRun]:
    """Return the config of the run that ``cfg.fork`` names with this command line's overrides, and where it starts.

    Raises:
        ConfigError: There is no such run, it has no checkpoint of the point, or an override is of what a fork keeps.
    """
    name, _, point = str(cfg.fork).rpartition("@")
    if not name:
        raise ConfigError(f"fork: '{point}' names no state of a run. Give {_POINTS}.")
    folder, stored = resume.read_run(name, cfg, _ARGUMENT)
    _, last = resume.newest_undamaged(_existing_last(folder), "fork")
    path, checkpoint = _find_state(folder, point, last)
    step, ratio = _updates(checkpoint), max(1, len(checkpoint.get("optimizer_states", ())))
    stored.fork, stored.tracking.run_name, stored.tracking.tags = f"{folder.name}@{point}", None, cfg.tracking.tags
    if stored.callbacks.checkpoint is not None:
        stored.callbacks.checkpoint.every = None
    grows, ema = getattr(stored.schedule, "growth", None) is not None, stored.callbacks.ema
    changed = _apply(stored, cfg, overrides)
    if stored.callbacks.ema != ema:  # the weights of a checkpoint are the averaged ones
        raise ConfigError(f"callbacks.ema: a fork keeps the run's value, {ema}, not {stored.callbacks.ema}.")
    new_schedule = "schedule" in changed
    _settle_peak(stored, changed)
    if new_schedule:
        if grows:
            raise ConfigError("schedule: the run's batch grows by its schedule, which a fork keeps. Leave it out.")
        if "schedule.start_step" not in changed:
            stored.schedule.start_step = step
        if "schedule.warmup" not in changed and not issubclass(_schema(stored.schedule), OneCycleConfig):
            stored.schedule.warmup = 0  # the weights are trained
        if issubclass(_schema(stored.schedule), CooldownConfig):
            _settle_cooldown(stored, changed, checkpoint, step, ratio)
    resume.suit_machine(stored, changed)
    return validate(stored), ForkedRun(folder, point, path, step, changed, new_schedule)


def _schema(node: DictConfig) -> type:
    return OmegaConf.get_type(node) or object


def _apply(stored: DictConfig, cfg: DictConfig, overrides: list[str]) -> dict[str, Any]:
    """Copy what the command line gives into the stored config, and return it; refuse what a fork keeps."""
    changed: dict[str, Any] = {}
    refused: list[str] = []
    keys = [each.lstrip("+~").split("=", 1)[0].split("@", 1)[0] for each in overrides]
    for key in sorted(keys, key=lambda key: key not in GROUP_BASES):  # a group before its keys
        if key in ("fork", "trust"):
            continue
        new = OmegaConf.select(cfg, key)
        if key in _WHOLE_GROUPS:
            stored[key], changed[key] = new, new.name
            continue
        names: Sequence[str] = [f"{key}.name" if key in GROUP_BASES else key]
        if key == "trainer":
            names = resume.DEVICE_KEYS
        for name in names:
            new, old = OmegaConf.select(cfg, name), OmegaConf.select(stored, name)
            if (name in _FREE or name.startswith(_FREE_GROUPS)) and name not in _FIXED:
                if new != old or name == key:
                    _update(stored, name, new)
                    changed[name] = new
            elif new != old:
                refused.append(f"{name}: the run has {old}, not {new}.")
    if refused:
        may = "schedule, trainer, optimizer.lr, optimizer.weight_decay, callbacks and tracking"
        raise ConfigError("\n".join([f"fork: the keys of {may} may change, but not these:", *refused]))
    return changed


def _update(stored: DictConfig, key: str, value: Any) -> None:
    try:
        OmegaConf.update(stored, key, value)
    except OmegaConfBaseException as e:
        raise ConfigError(f"{key}: {explain(e)}") from e


def _settle_peak(stored: DictConfig, changed: dict[str, Any]) -> None:
    """Use the peak that the command line gives. Drop the trunk's finder, lr_rule and schedule.max_lr."""
    if changed.get("schedule.max_lr") is not None and "optimizer.lr" not in changed:
        changed["optimizer.lr"] = stored.optimizer.lr = float(changed["schedule.max_lr"])
    if "optimizer.lr" not in changed:
        return
    if "schedule.max_lr" not in changed and "max_lr" in stored.schedule:
        stored.schedule.max_lr = None
    stored.finder, stored.optimizer.lr_rule = OmegaConf.structured(FinderConfig), "none"


def _settle_cooldown(
    stored: DictConfig, changed: Mapping[str, Any], checkpoint: Mapping[str, Any], step: int, ratio: int
) -> None:
    """Start a cooldown at the lr of the state, and end it with the run: after its length unless a limit is given."""
    node = stored.schedule
    if node.start is None:
        group = checkpoint["optimizer_states"][0]["param_groups"][0]
        node.start = 1.0 if "optimizer.lr" in changed else float(group["lr"]) / float(group["initial_lr"])
    limits = sorted(_LIMITS & changed.keys())
    if limits and "schedule.length" in changed:
        raise ConfigError(f"schedule.length: {node.length}, and {limits[0]} is another length. Give one of them.")
    if not limits:
        clock = _clock(checkpoint)
        length = Clock(step, clock.steps_per_epoch, clock.epoch_starts).steps(node.length)
        stored.trainer.max_epochs, stored.trainer.max_steps = -1, ratio * (step + max(1, length))


# -- the state ---------------------------------------------------------------------------------------------------------


def _existing_last(folder: Path) -> Path:
    last = folder / "checkpoints" / LAST
    if not last.is_file() and not last.with_name(BEFORE_LAST).is_file():
        raise ConfigError(f"fork: {folder} has no checkpoint (checkpoints/{LAST}) yet. Wait for its first validation.")
    return last


def _updates(checkpoint: Mapping[str, Any]) -> int:
    """Return the updates that each optimizer has made."""
    return int(checkpoint["global_step"]) // max(1, len(checkpoint.get("optimizer_states", ())))


def _clock(checkpoint: Mapping[str, Any]) -> Clock:
    """Return the clock that the run followed."""
    clocks = checkpoint.get("callbacks", {}).get("LRSchedule", {}).get("clocks", ())
    return Clock(*clocks[0]) if clocks else Clock()


def _find_state(folder: Path, point: str, last: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """Return the checkpoint of a point; the error tells which points there are, and how to have more."""
    checkpoints, clock = folder / "checkpoints", _clock(last)
    if point == "last":
        path, _ = resume.newest_undamaged(checkpoints / LAST, "fork")
        return path, last
    best = checkpoints / "best.ckpt"
    if point == "best" and best.is_file():
        return best, read_checkpoint(best, "fork")
    kept = {int(found[1]): p for p in checkpoints.iterdir() if (found := TrunkCheckpoints.NAME.fullmatch(p.name))}
    there = [_describe(clock, step) for step in sorted(kept)]
    if point != "best":
        step = _step_of(point, clock)
        if step == _updates(last):
            return _find_state(folder, "last", last)
        if step in kept:
            return kept[step], read_checkpoint(kept[step], "fork")
        if best.is_file() and _updates(state := read_checkpoint(best, "fork")) == step:
            return best, state
        point = point if point.startswith("step=") else f"{point}, which is step {step}"
    there += ["best"] * best.is_file() + [f"last, which is {_describe(clock, _updates(last))}"]
    raise ConfigError(
        f"fork: {folder.name} has no checkpoint of {point}. It has: {'; '.join(there)}. A run with "
        'callbacks.checkpoint.every="10%" keeps one at every tenth of its steps.'
    )


def _step_of(point: str, clock: Clock) -> int:
    """Return the number of updates up to a point: a share of the run's length, ``step=500`` or ``epoch=5``."""
    unit, equals, amount = point.partition("=")
    try:
        if unit in ("step", "epoch") and equals:
            return clock.steps(parse_duration(f"{amount} {unit}s"))
        if point.endswith("%"):
            return clock.steps(parse_duration(point))
    except ArgumentError as e:
        raise ConfigError(f"fork: {point}: {e.problem}.") from e
    raise ConfigError(f"fork: '{point}' is no point of a run. Give {_POINTS}.")


def _describe(clock: Clock, step: int) -> str:
    return f"step={step}" + (f" ({100 * step / clock.total:.3g}%)" if clock.total else "")


def check_fork(forked: ForkedRun, flat: Mapping[str, Any], data: ImageDataModule) -> None:
    """Check that the state is of this data and model, and that something is left to train; ``data`` takes its state."""
    checkpoint = read_checkpoint(forked.checkpoint, "fork")
    expected = {key: value for key, value in resume.identity(flat).items() if key.startswith(_OF_STATE)}
    resume.check_same_config(checkpoint, forked.checkpoint, expected, "fork")
    resume.check_length(checkpoint, flat)
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    epochs = checkpoint["epoch"] + bool(progress["is_last_batch"])
    for key, made in (("trainer.max_epochs", epochs), ("trainer.max_steps", checkpoint["global_step"])):
        if 0 < flat[key] <= made:
            raise ConfigError(
                f"{key}: {flat[key]}, but the run has made {made} up to {forked.point}, so nothing is left to train. "
                f"The limit counts from the start of the run: give {override(key, 2 * made)} or more than {made}."
            )
    within = progress["current"]["ready"] % flat["trainer.accumulate_grad_batches"]
    if within and not progress["is_last_batch"] and is_rank_zero():
        lost = f"{forked.checkpoint} was saved between two updates: the gradients of {within} batches are not in it"
        print(f"{lost}, so the fork is not exactly a continuation.", file=sys.stderr)
    resume.load_data_state(data, checkpoint)


class ForkState(Callback):
    """Begin a run from the state of another: leave out what is the other run's own, and set what has changed.

    List this callback first. A fit that resumes the fork does not need it.
    """

    def __init__(self, forked: ForkedRun) -> None:
        self.forked = forked
        self._decays: list[list[float]] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let Lightning be silent about callbacks of the other run that this one has not."""
        warnings.filterwarnings("ignore", message=".*callbacks used to create the checkpoint need to be provided")

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Forget the best values and checkpoints, and before another schedule what stopping and plateau have seen."""
        states = checkpoint["callbacks"]
        gone = [RunCheckpoint.__name__, *([ScheduleAwareStopping.__name__] if self.forked.new_schedule else [])]
        for key in [key for key in states if key.startswith(tuple(gone))]:
            del states[key]
        for key in (key for key in states if key.startswith("MonitorCheck")):
            states[key] = {"validated": False}
        if "Summary" in states:
            states["Summary"]["values"] = {}
        if self.forked.new_schedule and "LRSchedule" in states:
            states["LRSchedule"] |= {"plateau": [], "base": None, "cooldown": None}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the weight decay of the config, before the checkpoint's replaces it."""
        self._decays = [[group.get("weight_decay", 0.0) for group in each.param_groups] for each in trainer.optimizers]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the weight decay, if it has changed."""
        if "optimizer.weight_decay" in self.forked.changed:
            for optimizer, decays in zip(trainer.optimizers, self._decays, strict=True):
                for group, decay in zip(optimizer.param_groups, decays, strict=True):
                    if "weight_decay" in group:
                        set_value(group, "weight_decay", decay)
