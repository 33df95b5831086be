"""Resuming a run: its stored config, what may change about it, what it may name, and the checkpoint to start from."""

import math
import os
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lr_lightning import _commands, schedules
from lr_lightning._threads import usable_cores
from lr_lightning.app.composition import validate
from lr_lightning.app.config import GROUP_BASES, PLACES_OF_DATA, SCHEMAS, Config
from lr_lightning.app.error_messages import explain
from lr_lightning.app.run.checkpoints import BEFORE_LAST, LAST, ConfigInCheckpoint, read_checkpoint
from lr_lightning.app.schemas.trainer import TrackingConfig
from lr_lightning.app.world import is_rank_zero
from lr_lightning.errors import ConfigError, DataError, StoreUnavailable, TrackingError
from lr_lightning.tracking import open_store
from lr_lightning.tracking.files import moved
from lr_lightning.tracking.local_log import STATE_NAME, UploadState
from lr_lightning.training import models
from lr_lightning.training.datamodule import ImageDataModule

DEVICE_KEYS = ("trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy")
_PLACES = [f"data.{key}" for key in PLACES_OF_DATA]
CHANGEABLE = {
    *("trainer.max_epochs", "trainer.max_steps", "trainer.progress", "trainer.threads", "data.num_workers"),
    *_PLACES,
    *DEVICE_KEYS,
}
_RENAMED = {"study": "lr_effects"}  # keys of earlier versions
_NO_IDENTITY = ("tracking.", "output_root", "resume", "ckpt", "fork", "trust", "test", "trainer.name")
_RUN_ID = re.compile(r"[0-9a-f]{32}")
_MOST_DIFFERENCES = 8
_DEFAULT_TARGETS = {getattr(schema, "_target_", None) for group in SCHEMAS.values() for schema in group.values()}
ALLOWED_TARGETS = frozenset(
    {target for target in _DEFAULT_TARGETS if isinstance(target, str) and target != MISSING}
    | {f"lr_lightning.training.models.{name}" for name in models.__all__}
    | {f"lr_lightning.schedules.{name}" for name in schedules.__all__}
)
"""What a stored config may name without `trust`. Whole names, because `lr_lightning.x.os.system` has the same start."""


class RunArgument(NamedTuple):
    """The argument that names a stored run, and the option that trusts a target (``{}``), for error messages."""

    name: str = "resume"
    trust: str = "trust=[{}]"


_RESUME = RunArgument()


@dataclass(frozen=True)
class ResumedRun:
    """The run that is resumed, the checkpoint to start from, and the keys that this resume changes."""

    output_dir: Path
    checkpoint: Path
    changed: dict[str, Any]
    step: int = 0  # optimizer steps made
    lr: float = math.nan  # of the last of them, and its peak
    peak_lr: float = math.nan
    next_lr: float = math.nan  # of the next step; nan if it is unknown or has not changed


def identity(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a dotted config that identify a run: those that a resume cannot change."""
    return {key: value for key, value in flat.items() if key not in CHANGEABLE and not key.startswith(_NO_IDENTITY)}


def resume_arguments(folder: Path, container: Mapping[str, Any]) -> list[str]:
    """Return the arguments that resume the run in a folder, with ``trust`` for the foreign targets of its config."""
    untrusted = sorted({target for _, target in _targets(container)} - ALLOWED_TARGETS)
    return [_commands.override("resume", folder), *([f"trust=[{','.join(untrusted)}]"] if untrusted else [])]


def stored_config(cfg: DictConfig, overrides: list[str]) -> tuple[Config, ResumedRun]:
    """Read the config of the run that ``cfg.resume`` names, and apply the overrides of this command line to it."""
    folder, stored = read_run(str(cfg.resume), cfg)
    checkpoint = folder / "checkpoints" / LAST
    if not checkpoint.is_file() and not checkpoint.with_name(BEFORE_LAST).is_file():
        raise ConfigError(f"resume: {folder} has no checkpoint (checkpoints/{LAST}) yet. Start the run anew.")
    for path in (folder, checkpoint.parent, *folder.glob("metrics.*")):
        if not os.access(path, os.R_OK | os.W_OK):
            who = f"this user may not write to {path}. Copy the run's folder"
            raise ConfigError(f"resume: {who}, without {STATE_NAME} if that cannot be read, and resume the copy.")
    changed = _apply_changes(stored, cfg, overrides)
    suit_machine(stored, changed)
    return validate(stored), ResumedRun(folder, checkpoint, changed)


def read_run(name: str, cfg: DictConfig, argument: RunArgument = _RESUME) -> tuple[Path, DictConfig]:
    """Return the folder and the stored config of the run that an argument names, with the paths that hold now."""
    folder = run_folder(name, cfg, argument)
    stored = read_config(folder / "config.yaml", {*ALLOWED_TARGETS, *cfg.trust}, argument)
    _follow_move(stored, cfg, folder)
    stored.resume, stored.ckpt = None, None
    # Its own experiment, whatever MLflow's variables say today.
    stored.tracking.experiment = stored.tracking.experiment or TrackingConfig().experiment_name
    if ":***@" in str(stored.tracking.uri):  # stored without its password, which only the run's owner can read
        state = UploadState.load(folder) if argument is _RESUME else None
        stored.tracking.uri = state.uri if state else None
    return folder, stored


def suit_machine(stored: DictConfig, changed: dict[str, Any]) -> None:
    """Refuse data that is not where it was, and use no more threads than there are cores; ``changed`` notes that."""
    for key in _PLACES:
        place = OmegaConf.select(stored, key)
        if isinstance(place, str) and Path(place).is_absolute() and not os.path.exists(place):
            raise ConfigError(f"{key}: the run's data is not at {place} any more. Give {key}=NEW, where it is now.")
    if (
        "trainer.threads" not in changed
        and str(threads := stored.trainer.threads) != "auto"
        and threads > usable_cores()
    ):
        changed["trainer.threads"] = stored.trainer.threads = "auto"  # the run comes from a larger machine


def _follow_move(stored: DictConfig, cfg: DictConfig, folder: Path) -> None:
    """Correct the paths of a stored config for a run's folder that has moved, alone or with its data and its store.

    A store that is neither where it was nor beside the folder gives way to the one of this command, ``cfg``.
    """
    before, now = str(stored.output_root), folder.parent
    if not Path(before).is_absolute():  # of an older version
        return
    stored.output_root = str(now)
    for key in _PLACES:
        if isinstance(place := OmegaConf.select(stored, key), str) and Path(place).is_absolute():
            OmegaConf.update(stored, key, str(moved(Path(place), before, now)))
    if stored.tracking.name != "mlflow":
        return
    node, own = stored.tracking, cfg.tracking
    if node.uri is not None and not str(node.uri).startswith("sqlite"):
        root = moved(Path(node.root), before, now)
        node.root = str(root if os.path.exists(root) else own.root)
        return
    store = open_store(node.root, node.uri).moved(before, now)
    if store.is_lost and (folder / STATE_NAME).is_file():
        if is_rank_zero():
            gone = f"the run's store is gone: there is no {store.public_uri}, and none beside the run"
            print(f"{gone}. The whole log goes to {own.uri or own.root}.", file=sys.stderr)
        node.root, node.uri = own.root, own.uri
    else:
        node.root, node.uri = str(store.root), node.uri and store.uri


def run_folder(name: str, cfg: DictConfig, argument: RunArgument = _RESUME) -> Path:
    """Return a run's output folder, given that folder or the run's id, which is looked up in the store of ``cfg``."""
    key, output_root = argument.name, Path(str(cfg.output_root))
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.yaml").is_file():
            raise ConfigError(f"{key}: {path} is no run's output folder: it has no config.yaml.")
        return path.resolve()
    for run in sorted(output_root.glob(f"*/{STATE_NAME}")):
        with suppress(TrackingError):  # a run of another user
            if (state := UploadState.load(run.parent)) is not None and state.run_id == name:
                return run.parent
    if cfg.tracking.name == "mlflow" and _RUN_ID.fullmatch(name):
        try:
            store = open_store(Path(cfg.tracking.root), cfg.tracking.uri).for_reading()
            tag = store.run(name).data.tags.get("output_dir")
        except (TrackingError, StoreUnavailable) as e:
            raise ConfigError(f"{key}: {e}") from e
        if tag is not None:
            for folder in (Path(tag), *output_root.glob(f"**/{Path(tag).name}")):  # it may have moved
                if (folder / "config.yaml").is_file():
                    return folder
            raise ConfigError(f"{key}: run {name} kept its checkpoints in {tag}, which is not on this machine.")
    raise ConfigError(
        f"{key}: no run '{name}': neither an output folder (in {Path.cwd()}) nor the id of a run below {output_root}. "
        "The table at a run's end names both."
    )


def read_config(
    path: Path, trusted: set[str], argument: RunArgument = _RESUME, *, without: Collection[str] = ()
) -> DictConfig:
    """Read a stored config as data, ``without`` some keys: it may hold no interpolation and no untrusted target."""
    name = argument.name
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"{name}: {path} cannot be read ({str(e).splitlines()[0]}).") from e
    if not isinstance(raw, dict):
        raise ConfigError(f"{name}: {path} is no stored config.")
    raw = {_RENAMED.get(key, key): value for key, value in raw.items() if key not in without}
    for key, value in _entries(raw):
        for text in (key, value):
            if isinstance(text, str) and "${" in text:  # it could build a _target_ that this check does not see
                raise ConfigError(f"{name}: '{text}' in {path} is an interpolation, which a stored config never has.")
    for key, target in _targets(raw):
        if target not in trusted:
            raise ConfigError(
                f"{key}: the stored config names '{target}', which is not this project's own. "
                f"If you trust it, add {argument.trust.format(target)}."
            )
    try:
        config: DictConfig = OmegaConf.structured(Config)
        for key, value in raw.items():
            if key in GROUP_BASES and isinstance(value, dict):
                config[key] = OmegaConf.merge(OmegaConf.structured(_schema_of(key, value)), value)
            else:
                config[key] = value
    except OmegaConfBaseException as e:
        raise ConfigError(f"{path} does not fit this version: {explain(e)}") from e
    return config


def _entries(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted name and the value of every entry of nested mappings and lists, at every depth."""
    items = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        name = f"{prefix}.{key}" if prefix else str(key)
        yield name, value
        yield from _entries(value, name)


def _targets(node: Any) -> Iterator[tuple[str, str]]:
    for name, value in _entries(node):
        if name.rpartition(".")[2] == "_target_" and value is not None:
            yield name, str(value)


def _schema_of(group: str, stored: dict[str, Any]) -> type:
    """Return the schema that a stored group was written from: of the schemas with all its keys, the smallest."""
    base = GROUP_BASES[group]
    fitting = [schema for schema in [*SCHEMAS[group].values(), base] if set(stored) <= {f.name for f in fields(schema)}]
    return min(fitting, key=lambda schema: len(fields(schema)), default=base)


def _apply_changes(stored: DictConfig, cfg: DictConfig, overrides: list[str]) -> dict[str, Any]:
    """Copy the changed keys that may change into the stored config, and return them; refuse every other difference."""
    refused: list[str] = []
    changed: dict[str, Any] = {}
    for override in overrides:
        key = override.lstrip("+~").split("=", 1)[0].split("@", 1)[0]
        if key == "tracking":
            stored.tracking = cfg.tracking
        elif key == "experiment":
            refused.append("experiment: cannot be given with resume; the run has its config.")
        if key in ("tracking", "experiment", "resume", "trust", "output_root"):  # the last is where a run is looked for
            continue
        names = DEVICE_KEYS if key == "trainer" else (f"{key}.name",) if key in GROUP_BASES else (key,)
        for name in names:
            old, new = OmegaConf.select(stored, name), OmegaConf.select(cfg, name)
            if name in _PLACES and name.partition(".")[2] not in stored.data:
                refused.append(f"{name}: there is no such key of the run's data, {stored.data.name}.")
                continue
            if new == old:
                continue
            if name in CHANGEABLE or name.startswith("tracking."):
                changed[name] = new
                OmegaConf.update(stored, name, new)
            else:
                refused.append(f"{key}: the run has {old}, not {new}.")
    if refused:
        allowed = "resume: only trainer.max_epochs, trainer.max_steps, device keys, tracking and data.root may change:"
        raise ConfigError("\n".join([allowed, *refused]))
    return changed


def choose_checkpoint(resumed: ResumedRun, flat: Mapping[str, Any], data: ImageDataModule) -> ResumedRun:
    """Return the run with the checkpoint to start from: `last`, or the one before if `last` is damaged.

    Nothing is written, because the run may still be alive. ``data`` takes its state from the checkpoint.
    """
    path, checkpoint = newest_undamaged(resumed.checkpoint)
    check_same_config(checkpoint, path, identity(flat))
    check_length(checkpoint, flat)
    load_data_state(data, checkpoint)
    groups = next((state.get("param_groups") for state in checkpoint.get("optimizer_states", ())), None) or [{}]
    lrs = {"lr": groups[0].get("lr", math.nan), "peak_lr": groups[0].get("initial_lr", math.nan)}
    return replace(resumed, checkpoint=path, step=checkpoint.get("global_step", 0), **lrs)


def check_same_config(
    checkpoint: Mapping[str, Any], path: Path, expected: Mapping[str, Any], key: str = "resume"
) -> None:
    """Refuse a checkpoint that was written with other values of these keys."""
    stored = checkpoint.get(ConfigInCheckpoint.KEY, {})
    different = [
        f"{name}: {stored[name]} in the checkpoint, {value} in the run"
        for name, value in expected.items()
        if name in stored and stored[name] != value  # versions add keys
    ]
    if different:
        if more := len(different[_MOST_DIFFERENCES:]):
            different[_MOST_DIFFERENCES:] = [f"and {more} more"]
        raise ConfigError("\n".join([f"{key}: {path} is of a run with another config:", *different]))


def load_data_state(data: ImageDataModule, checkpoint: Mapping[str, Any]) -> None:
    """Give the data module its state in a checkpoint."""
    try:
        data.load_state_dict(checkpoint.get(type(data).__qualname__, {}))
    except DataError as e:
        raise ConfigError(str(e)) from e


def check_length(checkpoint: Mapping[str, Any], flat: Mapping[str, Any]) -> None:
    """Refuse limits below what the run has already trained; Lightning would refuse them only with the record open."""
    if "loops" not in checkpoint:  # weights alone, which Lightning does not resume
        return
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
    epochs, steps = checkpoint["epoch"] + (progress["completed"] > 0), checkpoint["global_step"]  # begun epochs count
    # Each optimizer of a batch counts as a step, so the last batch may have gone beyond the limit.
    beyond = max(0, len(checkpoint.get("optimizer_states", ())) - 1)
    for key, made, least in (("max_epochs", epochs, epochs), ("max_steps", steps, steps - beyond)):
        limit = flat[f"trainer.{key}"]
        if 0 <= limit < least:
            raise ConfigError(
                f"trainer.{key}: {limit}, but the run has made {steps} steps, to epoch {epochs}. Give "
                f"trainer.{key}={made + 1} or more to train on; a shorter run is a new one."
            )


def newest_undamaged(last: Path, key: str = "resume") -> tuple[Path, dict[str, Any]]:
    """Read `last`, or the checkpoint before it if `last` is missing or damaged; ``key`` is that of error messages."""
    before = last.with_name(BEFORE_LAST)
    try:
        if not last.is_file():  # another rank set it aside, or the run was killed between two renamings
            return before, read_checkpoint(before, key)
        return last, read_checkpoint(last, key)
    except ConfigError as e:
        if not before.is_file():
            raise
        checkpoint = read_checkpoint(before, key)
        if is_rank_zero():
            print(f"{e}\nusing the one before, {before}, of step {checkpoint['global_step']}", file=sys.stderr)
        return before, checkpoint


def set_damaged_aside(resumed: ResumedRun) -> None:
    """Rename a damaged `last`, so that the next checkpoint does not replace the undamaged one before it."""
    last = resumed.checkpoint.with_name(LAST)
    if resumed.checkpoint.name == BEFORE_LAST and last.is_file():
        last.replace(last.with_suffix(".damaged"))
