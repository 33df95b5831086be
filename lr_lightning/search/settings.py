"""A search as its command line describes it, checked before anything is trained."""

import itertools
import math
import os
import re
import secrets
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lr_lightning.app.composition import choices_of, compose_config, validate
from lr_lightning.app.config import Config
from lr_lightning.app.error_messages import did_you_mean, explain
from lr_lightning.app.schemas.search import SearchConfig
from lr_lightning.app.world import world_size
from lr_lightning.errors import ConfigError, SpaceError
from lr_lightning.reports.run_metrics import is_higher_better
from lr_lightning.search.space import KINDS, Arguments, Choice, Space, Value, override, parse_arguments

__all__ = ["SAMPLERS", "Composer", "Search", "check_space", "check_store", "direction_of", "read_search"]

SAMPLERS = ("grid", "random", "qmc", "tpe", "gp")
PRUNERS = ("median", "hyperband", "verdict")
FINDER = "finder"
"""In search.start: stands for the learning rate that the LR finder suggests."""

_MOST_POINTS = 10_000
_NO_IDENTITY = ("tracking.", "output_root=", "trainer.progress=", "trust=")  # where and how, not what
_MOST_CHECKED = 60


@dataclass
class Composer:
    """Composes the config of a trial; Hydra, which takes a fifth of a second, runs once for each choice of groups.

    Attributes:
        root: The checkout.
        training: Overrides for every trial.
    """

    root: Path
    training: tuple[str, ...]
    _cache: dict[tuple[str, ...], DictConfig] = field(default_factory=dict, repr=False)

    def overrides(self, point: Mapping[str, Value]) -> list[str]:
        """Return the overrides of a trial. The searched values come last, and so they win."""
        return [*self.training, *(override(key, value) for key, value in point.items())]

    def config(self, point: Mapping[str, Value]) -> Config:
        """Return the checked config of a trial.

        Raises:
            ConfigError: A key or a value is bad, or two values conflict.
        """
        cfg = self._of_groups(point)
        for key, value in point.items():
            if key not in self.groups:
                self._set(cfg, key, value)
        try:
            return validate(cfg)
        except ConfigError as e:
            where = ", ".join(override(key, value) for key, value in point.items())
            raise ConfigError(f"search.space: a trial with {where} cannot be run.\n{e}") from e

    def check_key(self, key: str, point: Mapping[str, Value]) -> None:
        """Check that the chosen groups have a key, and that it takes its value.

        Raises:
            ConfigError: They do not, or it does not.
        """
        self._set(self._of_groups(point), key, point[key])

    @cached_property
    def groups(self) -> dict[str, list[str]]:
        """Return the config groups and their choices."""
        return choices_of(self.root)

    def _of_groups(self, point: Mapping[str, Value]) -> DictConfig:
        words = tuple(override(key, value) for key, value in point.items() if key in self.groups)
        if words not in self._cache:
            self._cache[words] = compose_config(self.root, [*self.training, *words])[0]
        return deepcopy(self._cache[words])

    def _set(self, cfg: DictConfig, key: str, value: Value) -> None:
        missing = object()
        try:
            if OmegaConf.select(cfg, key, default=missing) is missing and not OmegaConf.is_missing(*_place(cfg, key)):
                raise ConfigError(f"search.space.{key}: there is no such key{self._under(cfg)}.{_remedy(cfg, key)}")
            OmegaConf.update(cfg, key, value)
        except (OmegaConfBaseException, AttributeError, TypeError) as e:
            text = explain(e, key)
            raise ConfigError(f"search.space.{text if text.startswith(key) else f'{key}: {text}'}") from e

    def _under(self, cfg: DictConfig) -> str:
        names = {group: OmegaConf.select(cfg, f"{group}.name") for group in ("optimizer", "schedule", "model", "data")}
        return " with " + ", ".join(f"{group}={name}" for group, name in names.items() if name)


def _place(cfg: DictConfig, key: str) -> tuple[DictConfig, str]:
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else cfg
    return (node, name) if isinstance(node, DictConfig) and name in node else (OmegaConf.create({name: None}), name)


def _remedy(cfg: DictConfig, key: str) -> str:
    parent, _, name = key.rpartition(".")
    if parent and isinstance(OmegaConf.select(cfg, parent), int | float | str):
        return f" The values of {parent} are given as a list or by one of {', '.join(sorted(KINDS))}, not by '{name}'."
    group = key.split(".")[0]
    return (
        f" If only some choices of {group} have it, add when: {{{group}: ...}} to its entry; a new one of kwargs is "
        f"added with +{key}=... first. `scripts/train.py --cfg job` shows every key."
    )


@dataclass(frozen=True)
class Search:
    """A checked search.

    Attributes:
        root: The checkout.
        node: The config's ``search``, without the space.
        space: The searched keys.
        training: Overrides for every trial.
        config: The config of a trial without the searched values.
        base: Values of the keys that conditions name but that are not searched.
        name: Name of the sweep, and of Optuna's study.
        composer: Composes the configs of trials.
    """

    root: Path
    node: SearchConfig
    space: Space
    training: tuple[str, ...]
    config: Config
    base: dict[str, Value]
    name: str
    composer: Composer = field(repr=False)

    @property
    def identity(self) -> dict[str, Any]:
        """Return what two searches under one name must share, as plain values."""
        return {
            "space": self.space.as_dict(),
            "sampler": self.node.sampler,
            "objective": self.node.objective,
            "direction": self.direction,
            "start": [{str(k): v for k, v in point.items()} for point in self.node.start],
            "seeds": list(self.node.seeds),
            "pruners": sorted(self.node.pruners),
            "overrides": sorted(w for w in self.training if not w.lstrip("+~").startswith(_NO_IDENTITY)),
        }

    @property
    def higher(self) -> bool:
        """Tell whether a higher objective is better."""
        return self.direction == "maximize"

    @property
    def direction(self) -> str:
        """Return ``maximize`` or ``minimize``."""
        return self.node.direction or direction_of(self.node.objective) or "maximize"

    @property
    def folder(self) -> Path:
        """Return the folder of the trials."""
        return Path(self.config.output_root).expanduser().absolute() / self.name

    @property
    def storage(self) -> str:
        """Return the SQLAlchemy URL of Optuna's storage."""
        return self.node.storage or f"sqlite:///{Path(self.config.tracking.root).expanduser().absolute() / 'search.db'}"

    @property
    def monitor(self) -> str:
        """Return the validation metric by which trials are compared while they run."""
        name = self.node.objective
        if not name.startswith("summary/"):
            return name
        known = {"val_loss": "val/loss", "probe_loss": "probe/loss", "gap_loss": "overfit/gap_loss"}
        return next((metric for part, metric in known.items() if part in name), "val/acc")

    @property
    def monitor_higher(self) -> bool:
        """Tell whether a higher value of the monitored metric is better."""
        return self.higher if self.monitor == self.node.objective else self.monitor.endswith("acc")

    @property
    def validations(self) -> int | None:
        """Return the number of validations in a run, or None if the epochs do not tell."""
        node = self.config.trainer
        if node.max_epochs < 1 or node.max_steps > 0:
            return None
        return max(1, -(-node.max_epochs // node.check_val_every_n_epoch))


def read_search(root: Path, words: Sequence[str]) -> Search:
    """Read a search from its command line, and check it.

    Args:
        root: The checkout.
        words: The arguments.

    Raises:
        ConfigError: An argument is bad; the message names the key, the value and the remedy.
    """
    if not any(word.startswith("search=") for word in words):
        words = ["search=bayes", *words]
    arguments = parse_arguments(words)
    try:
        return _checked(root, arguments)
    except SpaceError as e:
        raise ConfigError(str(e)) from e


def _checked(root: Path, arguments: Arguments) -> Search:
    cfg, choices = compose_config(root, [*arguments.training, *arguments.search])
    node = _node(cfg)
    if problems := list(_bad_settings(node)):
        raise ConfigError("\n".join(problems[:5]))
    written = {str(key): entry for key, entry in node.space.items() if str(key) not in arguments.fixed}
    space = Space.of(written | arguments.space)
    node = replace(node, space={})
    cfg.search = None
    config = validate(cfg)
    composer = Composer(root, tuple(arguments.training))
    base = {key: _base_value(key, cfg, choices, space.keys) for key in space.condition_keys}
    name = node.sweep or f"{node.name}-{config.data.name}-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    search = Search(root, node, space, tuple(arguments.training), config, base, name, composer)
    _refuse(search)
    _check_start(search)
    if node.sampler == "grid" and space.size() > _MOST_POINTS:
        raise ConfigError(
            f"search.space: a grid of up to {space.size():,} points. Give fewer values or points, or search=random."
        )
    check_space(search.space, search.base, search.composer)
    return search


def _node(cfg: DictConfig) -> SearchConfig:
    if cfg.search is None:
        raise ConfigError("search: none. Give search=grid, random, bayes or hyperband.")
    node = cfg.search
    known = [f.name for f in fields(SearchConfig)]
    for key in map(str, node):
        if key not in known:
            raise ConfigError(f"search.{key}: there is no such key.{did_you_mean(key, known)}")
    return cast(SearchConfig, OmegaConf.to_object(node))


def _bad_settings(node: SearchConfig) -> Iterator[str]:
    for key, given, choices in (("sampler", [node.sampler], SAMPLERS), ("pruners", node.pruners, PRUNERS)):
        for name in given:
            if name not in choices:
                close = did_you_mean(name, choices)
                yield f"search.{key}: unknown choice '{name}'. Choices: {', '.join(choices)}.{close}"
    known = direction_of(node.objective)
    if node.direction not in (None, "maximize", "minimize"):
        yield f"search.direction: must be maximize or minimize, got '{node.direction}'."
    elif node.direction is not None and known is not None and node.direction != known:
        yield f"search.direction: {node.direction} {node.objective} would look for the worst. Leave it out, or {known}."
    if {"median", "hyperband"} <= set(node.pruners):
        yield "search.pruners: median and hyperband both decide by Optuna's rules. Give one of them."
    if node.objective.startswith(("test/", "summary/test")):
        yield (
            f"search.objective: '{node.objective}': the test set must not choose. Take a value of the validation, "
            "such as summary/best_val_acc; the test of each trial is recorded all the same."
        )
    for name in ("n_trials", "hours", "epochs"):
        value = getattr(node, name)
        if value is not None and not (math.isfinite(value) and value > 0):
            yield f"search.{name}: must be above 0, or null, got {value}."
    if node.sampler != "grid" and node.n_trials is None and node.hours is None and node.epochs is None:
        yield f"search.n_trials: null: {node.name} would never end. Give one of n_trials, hours, epochs."
    for name, least in (("workers", 0), ("retries", 0), ("failures", 1)):
        if getattr(node, name) < least:
            yield f"search.{name}: must be {least} or more, got {getattr(node, name)}."
    if not 0 <= node.patience < 1:
        yield f"search.patience: must lie in [0, 1), a share of a run, got {node.patience}."
    if len(set(node.seeds)) < len(node.seeds) or not all(0 <= seed < 2**32 for seed in node.seeds):
        yield f"search.seeds: must be different numbers in 0..4294967295, got {list(node.seeds)}."
    if node.sweep is not None and not re.fullmatch(r"\w[\w.@-]{0,199}", node.sweep):
        yield f"sweep: must be a name of letters, digits, '_', '-', '.', '@', got '{node.sweep}'."
    if node.storage is not None and "://" not in node.storage:
        yield (
            f"storage: '{node.storage}' is no address of a database. Give postgresql://user@host/database or "
            "sqlite:////absolute/file.db, or leave it out."
        )
    elif node.storage is not None and node.storage.startswith("sqlite") and not node.storage.startswith("sqlite:///"):
        yield f"storage: '{node.storage}' has no file. Give sqlite:////absolute/file.db, or leave it out."


def direction_of(objective: str) -> str | None:
    """Return which direction of an objective is better, or None if its name does not tell."""
    words = set(re.split(r"[/_]", objective))
    lower = bool(words & {"seconds", "steps", "price", "memory", "joules", "spikes"})
    higher = False if lower else is_higher_better(objective)
    return None if higher is None else "maximize" if higher else "minimize"


def _base_value(key: str, cfg: DictConfig, choices: Mapping[str, str], searched: Container[str]) -> Value:
    if key in choices:
        return choices[key]
    marker = object()
    value = OmegaConf.select(cfg, key, default=marker)
    if value is marker:
        raise ConfigError(f"search.space: a condition names '{key}', but there is no such key or group.")
    if key.split(".")[0] in searched:
        group = key.split(".")[0]
        raise ConfigError(f"search.space: a condition names '{key}', but {group} is searched. Name {group} itself.")
    return value  # type: ignore[no-any-return]


def _refuse(search: Search) -> None:
    """Refuse settings that make no sense in a search."""
    config, keys = search.config, search.space.keys
    if config.study is not None:
        raise ConfigError("experiment: a study is a sweep already. Leave it out, or use scripts/train.py.")
    if config.resume is not None:
        raise ConfigError("resume: the trials of a search are new runs. Give sweep=NAME to resume a search.")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("torchrun: start the search once; it starts the processes of each trial itself.")
    for key in keys:
        if key == "seed" or key.split(".")[0] in ("tracking", "search", "output_root", "resume", "study", "test"):
            raise ConfigError(
                f"search.space.{key}: cannot be searched. For several seeds in each trial give search.seeds=[0,1,2]."
            )
    if keys.keys() & {"optimizer.lr", "schedule.max_lr"} and config.keys_set_by_finder():
        raise ConfigError(
            f"finder: {config.finder.name} would replace the learning rate that a trial is given. Leave it out; "
            "'search.start=[{optimizer.lr: finder}]' starts the search at its suggestion."
        )
    if search.node.workers == 0 and world_size(config.trainer) > 1:
        raise ConfigError("workers: 0 trains in this process, but a trial takes several. Give workers=1.")


def _check_start(search: Search) -> None:
    for number, point in enumerate(search.node.start):
        where = f"search.start[{number}]"
        if not isinstance(point, Mapping):
            raise ConfigError(f"{where}: needs keys and values, such as {{optimizer.lr: 0.1}}, got {point!r}.")
        if search.node.sampler == "grid" and not set(search.space.keys) - set(search.space.conditions) <= set(point):
            raise ConfigError(f"{where}: on a grid it needs a value of every key: {', '.join(search.space.keys)}.")
        for key, value in point.items():
            if value != FINDER:
                search.space.check_point({str(key): value}, where)
            elif key not in ("optimizer.lr", "schedule.max_lr") or key not in search.space.keys:
                raise ConfigError(
                    f"{where}.{key}: the finder finds optimizer.lr, if that is searched, and nothing else. "
                    f"Keys: {', '.join(search.space.keys)}."
                )


def check_space(space: Space, base: Mapping[str, Value], composer: Composer) -> None:
    """Compose configs with both ends of every range and with every choice, to find keys and types that do not fit.

    Raises:
        ConfigError: A key or a value does not fit the config.
    """
    groups = composer.groups
    chosen = [key for key in space.keys if key in groups]
    for key in chosen:
        domain = space.keys[key]
        if not isinstance(domain, Choice):
            raise ConfigError(f"search.space.{key}: is a config group: give a list of {', '.join(groups[key])}.")
        for value in domain.values:
            if value not in groups[key]:
                raise ConfigError(
                    f"search.space.{key}: unknown choice '{value}'. Choices: {', '.join(groups[key])}."
                    f"{did_you_mean(str(value), groups[key])}"
                )
    _check_conditions(space, groups)
    products = itertools.product(*(space.keys[key].grid() for key in chosen))
    for values in itertools.islice(products, _MOST_CHECKED):
        point: dict[str, Value] = {}
        for key, value in zip(chosen, values, strict=True):
            if space.active(key, point, base):
                point[key] = value
        rest = [key for key in space.keys if key not in chosen]
        for example in range(max((len(space.keys[key].examples) for key in rest), default=1)):
            trial = dict(point)
            for key in rest:
                if space.active(key, trial, base):
                    examples = space.keys[key].examples
                    trial[key] = examples[min(example, len(examples) - 1)]
                    composer.check_key(key, trial)
            composer.config(trial)


def _check_conditions(space: Space, groups: Mapping[str, Sequence[str]]) -> None:
    """Refuse a condition with a value that its key never has: what depends on it would never be searched."""
    for key, conditions in space.conditions.items():
        for other, values in conditions.items():
            domain = space.keys.get(other)
            allowed = domain.values if isinstance(domain, Choice) else groups.get(other)
            for value in values:
                if domain is not None and not isinstance(domain, Choice):
                    raise ConfigError(
                        f"search.space.{key}.when.{other}: is searched as a range; a condition needs a list of values."
                    )
                if allowed is not None and str(value) not in map(str, allowed):
                    close = did_you_mean(str(value), map(str, allowed))
                    raise ConfigError(f"search.space.{key}.when.{other}: '{value}' is never one of its values.{close}")


def check_store(config: Config) -> None:
    """Ask an MLflow server once, since one that refuses would fail every trial.

    A server that does not answer is no error: the trials keep their rows.

    Raises:
        ConfigError: The server refuses.
    """
    from lr_lightning.errors import StoreUnavailable, TrackingError
    from lr_lightning.tracking import open_store

    if config.tracking.name != "mlflow" or config.tracking.uri is None:
        return
    try:
        with suppress(StoreUnavailable):
            open_store(Path(config.tracking.root), config.tracking.uri).call(
                "get_experiment_by_name", config.tracking.experiment
            )
    except TrackingError as e:
        raise ConfigError(f"tracking: {e}") from e
