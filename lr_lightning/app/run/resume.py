"""Going on with a stopped run: its stored config, what may be changed about it, and what its config may name."""

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lr_lightning import schedules
from lr_lightning.app.checks import validate
from lr_lightning.app.config import GROUP_BASES, SCHEMAS, Config, flatten
from lr_lightning.app.error_messages import explain
from lr_lightning.app.run.checkpoints import config_differences, read_checkpoint
from lr_lightning.app.run.output import BEFORE_LAST, LAST
from lr_lightning.app.world import is_rank_zero
from lr_lightning.errors import ConfigError, DataError
from lr_lightning.training.datamodule import ImageDataModule

CHANGEABLE = frozenset(
    {
        "trainer.max_epochs",
        "trainer.max_steps",
        "trainer.accelerator",
        "trainer.devices",
        "trainer.num_nodes",
        "trainer.strategy",
        "trainer.progress",
        "data.num_workers",
    }
)
"""The keys a resumed run may be given anew, besides `tracking`."""


def identity(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that say which run it is: those that a resume of it cannot change.

    Args:
        flat: A config, dotted.
    """
    others = ("tracking.", "output_root", "resume", "ckpt", "trust", "test", "trainer.name")
    return {key: value for key, value in flat.items() if key not in CHANGEABLE and not key.startswith(others)}


_RUN_ID = re.compile(r"[0-9a-f]{32}")
_DEVICE_KEYS = ("accelerator", "devices", "num_nodes", "strategy")
_MODELS = ("small_cnn", "smith_cnn", "resnet9", "resnet20", "resnet56", "wrn16_4")


def untrusted(config: Config) -> list[str]:
    """The targets of a config that a resume of it would have to be told to trust."""
    named = {target for _, target in _targets(asdict(config)) if target is not None}
    return sorted(named - ALLOWED_TARGETS)


def _default_target(schema: type) -> str | None:
    target = getattr(schema, "_target_", None)
    return target if isinstance(target, str) and target != MISSING else None


ALLOWED_TARGETS = frozenset(
    {target for choices in SCHEMAS.values() for schema in choices.values() if (target := _default_target(schema))}
    | {f"lr_lightning.training.models.{name}" for name in _MODELS}
    | {f"lr_lightning.schedules.{name}" for name in schedules.__all__}
)
"""What a stored config may name without `trust`: whole names, since `lr_lightning.x.os.system` has the same start."""


@dataclass(frozen=True)
class Asker:
    """Who reads a stored run: what its messages call the run, and how it is told to trust a target."""

    key: str
    trust: str


RESUME = Asker("resume", "trust=[{}]")


@dataclass(frozen=True)
class Previous:
    """The run that is gone on with.

    Attributes:
        output_dir: Its output folder.
        checkpoint: The checkpoint it goes on from.
        changed: The keys that were given anew.
    """

    output_dir: Path
    checkpoint: Path
    changed: dict[str, Any]


def stored_config(cfg: DictConfig, overrides: list[str]) -> tuple[Config, Previous]:
    """The config of the run that ``cfg.resume`` names, with the changes that are allowed.

    Args:
        cfg: The config composed from this command line.
        overrides: The command line's overrides, to know which keys were given.

    Raises:
        ConfigError: If there is no such run, no checkpoint of it, or the config was changed or names a target that
            is not trusted.
    """
    folder = run_folder(str(cfg.resume), cfg)
    checkpoint = folder / "checkpoints" / LAST
    if not checkpoint.is_file() and not checkpoint.with_name(BEFORE_LAST).is_file():
        raise ConfigError(f"resume: {folder} has no checkpoint (checkpoints/{LAST}) yet. Start the run anew.")
    stored = read_config(folder / "config.yaml", trusted={*ALLOWED_TARGETS, *cfg.trust})
    changed = _apply(stored, cfg, overrides)
    stored.resume, stored.ckpt = None, None
    if ":***@" in str(stored.tracking.uri):  # the password was left out; only its owner can read the run's own copy
        from lr_lightning.tracking.local_log import UploadState

        stored.tracking.uri = state.uri if (state := UploadState.load(folder)) else None
    return validate(stored), Previous(folder, checkpoint, changed)


def run_folder(name: str, cfg: DictConfig, asker: Asker = RESUME) -> Path:
    """The output folder of a run, from its path or its MLflow run id.

    Args:
        name: Either of them.
        cfg: Where to look: its ``output_root`` and its ``tracking``.
        asker: For whom.

    Raises:
        ConfigError: If there is no such run, or its folder is not on this machine.
    """
    key, output_root = asker.key, Path(str(cfg.output_root))
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.yaml").is_file():
            raise ConfigError(f"{key}: {path} is no run's output folder: it has no config.yaml.")
        return path.resolve()
    from lr_lightning.tracking.local_log import STATE_NAME, UploadState

    for run in sorted(output_root.glob(f"*/{STATE_NAME}")):
        if (state := UploadState.load(run.parent)) is not None and state.run_id == name:
            return run.parent
    if cfg.tracking.name == "mlflow" and _RUN_ID.fullmatch(name):
        tag = _output_dir_tag(name, cfg, key)
        if tag is not None and (Path(tag) / "config.yaml").is_file():
            return Path(tag)
        if tag is not None:
            raise ConfigError(f"{key}: run {name} kept its checkpoints in {tag}, which is not on this machine.")
    raise ConfigError(
        f"{key}: no run '{name}': neither an output folder (in {Path.cwd()}) nor the id of a run below {output_root}. "
        "The run's table names both."
    )


def _output_dir_tag(run_id: str, cfg: DictConfig, key: str) -> str | None:
    """Ask the store where a run that is not below the output root has its folder."""
    from lr_lightning.errors import StoreUnavailable, TrackingError
    from lr_lightning.tracking import open_store

    try:
        return open_store(Path(cfg.tracking.root), cfg.tracking.uri).run_tags(run_id).get("output_dir")
    except (TrackingError, StoreUnavailable) as e:
        raise ConfigError(f"{key}: {e}") from e


def read_config(path: Path, trusted: set[str], asker: Asker = RESUME) -> DictConfig:
    """Read a stored config as data: no interpolation, no target that is not trusted.

    Raises:
        ConfigError: If it cannot be read, or holds either.
    """
    name = asker.key
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"{name}: {path} cannot be read ({str(e).splitlines()[0]}).") from e
    if not isinstance(raw, dict):
        raise ConfigError(f"{name}: {path} is no stored config.")
    for text in _texts(raw):
        if "${" in text:  # also as a key, or in a list: it could build a _target_ that is not seen here
            raise ConfigError(f"{name}: '{text}' in {path} holds an interpolation, which a stored config never does.")
    for key, target in _targets(raw):
        if target is not None and target not in trusted:
            raise ConfigError(
                f"{key}: the stored config names '{target}', which is not this project's own. "
                f"If you trust it, add {asker.trust.format(target)}."
            )
    try:
        config = OmegaConf.structured(Config)
        for key, value in raw.items():
            if key in GROUP_BASES and isinstance(value, dict):
                config[key] = OmegaConf.merge(OmegaConf.structured(_schema(key, value)), value)
            else:
                config[key] = value
    except OmegaConfBaseException as e:
        raise ConfigError(f"{path} does not fit this version: {explain(e)}") from e
    result: DictConfig = config
    return result


def _texts(node: Any) -> Iterator[str]:
    """Every text in a nested value: keys, values, and items of lists."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict):
        for key, value in node.items():
            yield from _texts(key)
            yield from _texts(value)
    elif isinstance(node, list):
        for value in node:
            yield from _texts(value)


def _targets(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict):
        for key, value in node.items():
            name = f"{prefix}.{key}" if prefix else str(key)
            if key == "_target_":
                yield name, value
            else:
                yield from _targets(value, name)
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from _targets(value, f"{prefix}.{i}")


def _schema(group: str, stored: dict[str, Any]) -> type:
    """The schema a stored group was written from: with its keys, and the fewest that came later."""
    base = GROUP_BASES[group]
    fitting = [schema for schema in [*SCHEMAS[group].values(), base] if set(stored) <= {f.name for f in fields(schema)}]
    return min(fitting, key=lambda schema: len(fields(schema)), default=base)


def _apply(stored: DictConfig, cfg: DictConfig, overrides: list[str]) -> dict[str, Any]:
    """Take over what may change; returns it.

    Raises:
        ConfigError: With every other difference.
    """
    refused: list[str] = []
    changed: dict[str, Any] = {}

    def take(key: str) -> None:
        new = OmegaConf.select(cfg, key)
        if new != OmegaConf.select(stored, key):
            changed[key] = new
            OmegaConf.update(stored, key, new)

    for override in overrides:
        key = override.lstrip("+~").split("=", 1)[0].split("@", 1)[0]
        if key in ("resume", "trust"):
            continue
        if key == "trainer":
            for name in _DEVICE_KEYS:
                take(f"trainer.{name}")
        elif key == "tracking":
            stored.tracking = cfg.tracking
        elif key in CHANGEABLE or key.startswith("tracking."):
            take(key)
        elif key in GROUP_BASES:
            if cfg[key].name != stored[key].name:
                refused.append(f"{key}: the run has {stored[key].name}, not {cfg[key].name}.")
        elif key == "experiment":
            refused.append("experiment: cannot be given with resume; the run has its config.")
        elif (new := OmegaConf.select(cfg, key)) != (old := OmegaConf.select(stored, key)):
            refused.append(f"{key}: the run has {old}, not {new}.")
    if refused:
        may = "resume: only trainer.max_epochs, trainer.max_steps, device keys and tracking may change:"
        raise ConfigError("\n".join([may, *refused]))
    return changed


# --- Which checkpoint a stopped run goes on from: the last whole one, of this very run.

_MOST_DIFFERENCES = 8


def checked(previous: Previous, config: Config, data: ImageDataModule) -> Previous:
    """The run with the checkpoint to go on from: `last`, or the one before it if that is damaged, which is said.

    Nothing is written: the run may turn out to be alive.

    Args:
        previous: The run.
        config: Its config.
        data: Its data, loaded.

    Raises:
        ConfigError: If no checkpoint is whole, it is of another config or other data, or the run is to end before it.
    """
    path, checkpoint = _newest_whole(previous.checkpoint)
    if different := config_differences(checkpoint, identity(flatten(asdict(config)))):
        more = len(different) - _MOST_DIFFERENCES
        shown = different[:_MOST_DIFFERENCES] + ([f"and {more} more"] if more > 0 else [])
        raise ConfigError("\n".join([f"resume: {path} is of a run with another config:", *shown]))
    _check_length(checkpoint, config)
    try:
        data.load_state_dict(checkpoint.get(type(data).__qualname__, {}))
    except DataError as e:
        raise ConfigError(str(e)) from e
    return replace(previous, checkpoint=path)


def _check_length(checkpoint: Mapping[str, Any], config: Config) -> None:
    """Refuse an end that lies before what the run has made: Lightning would, but only with the record open."""
    if "loops" not in checkpoint:  # weights alone, which Lightning does not go on from
        return
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
    epochs, steps = checkpoint["epoch"] + (progress["completed"] > 0), checkpoint["global_step"]  # begun ones count
    # the optimizers of one batch each count as a step, so the last batch may have gone beyond the limit
    beyond = max(0, len(checkpoint.get("optimizer_states", ())) - 1)
    for key, made, least in (("max_epochs", epochs, epochs), ("max_steps", steps, steps - beyond)):
        limit = getattr(config.trainer, key)
        if 0 <= limit < least:
            raise ConfigError(
                f"trainer.{key}: {limit}, but the run has made {steps} steps, to epoch {epochs}. Give "
                f"trainer.{key}={made + 1} or more to train on; a shorter run is a new one."
            )


def _newest_whole(last: Path) -> tuple[Path, dict[str, Any]]:
    before = last.with_name(BEFORE_LAST)
    try:
        if not last.is_file():  # set aside by another rank, or killed between two renamings
            return before, read_checkpoint(before, "resume")
        return last, read_checkpoint(last, "resume")
    except ConfigError as e:
        if not before.is_file():
            raise
        checkpoint = read_checkpoint(before, "resume")
        if is_rank_zero():
            print(f"{e}\ngoing on from the one before, {before}, of step {checkpoint['global_step']}", file=sys.stderr)
        return before, checkpoint


def set_damaged_aside(previous: Previous) -> None:
    """Rename a damaged `last`, so that the next one does not put it in the place of the whole one before it."""
    last = previous.checkpoint.with_name(LAST)
    if previous.checkpoint.name == BEFORE_LAST and last.is_file():
        last.replace(last.with_suffix(".damaged"))
