"""A search as its command line describes it, checked before anything is trained."""

import itertools
import math
import os
import re
import secrets
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lr_lightning._commands import override
from lr_lightning.app.composition import choices_of, compose_config, validate
from lr_lightning.app.config import Config
from lr_lightning.app.error_messages import did_you_mean, explain
from lr_lightning.app.schemas import AT_LEAST_1, NOT_NEGATIVE, SEED, must, one_of
from lr_lightning.app.schemas.search import SearchConfig
from lr_lightning.app.schemas.trainer import TrackingConfig
from lr_lightning.app.world import world_size
from lr_lightning.errors import ConfigError
from lr_lightning.reports.run_metrics import is_higher_better
from lr_lightning.search.methods import PRUNERS, SAMPLERS
from lr_lightning.search.space import KINDS, Arguments, Choice, Space, Value, parse_arguments, range_hint

FINDER = "finder"
"""In search.start: stands for the learning rate that the LR finder suggests."""
LR_KEYS = ("optimizer.lr", "schedule.max_lr")

_MOST_POINTS = 10_000
_MOST_CHECKED = 60
_NO_IDENTITY = ("tracking.", "output_root=", "trainer.progress=", "trust=")  # where and how, not what
_PRUNER = one_of(*PRUNERS)
_LIMIT = must("be above 0, or null", lambda v: 0 < v < math.inf)
_PREVIEWED = ("val/loss", "val/acc", "summary/best_val_loss", "summary/best_val_acc")  # objectives
_RULES = {
    "sampler": one_of(*SAMPLERS),
    "pruners": lambda names: next(filter(None, map(_PRUNER, names)), None),
    "direction": must("be maximize or minimize", lambda v: v in ("maximize", "minimize")),
    "n_trials": _LIMIT,
    "hours": _LIMIT,
    "epochs": _LIMIT,
    "workers": NOT_NEGATIVE,
    "retries": NOT_NEGATIVE,
    "failures": AT_LEAST_1,
    "patience": must("lie in [0, 1), a share of a run", lambda v: 0 <= v < 1),
    "seeds": must("be different numbers in 0..4294967295", lambda v: len(set(v)) == len(v) and not any(map(SEED, v))),
    "sweep": must(
        "be a name of letters, digits, '_', '-', '.', '@'", lambda v: bool(re.fullmatch(r"\w[\w.@-]{0,199}", v))
    ),
}


@dataclass
class Composer:
    """Composes the config of a trial; Hydra, which takes a fifth of a second, runs once for each choice of groups."""

    checkout: Path
    training: tuple[str, ...]
    _cache: dict[tuple[str, ...], DictConfig] = field(default_factory=dict, repr=False)

    def overrides(self, point: Mapping[str, Value]) -> list[str]:
        """Return the overrides of a trial. The searched values come last, and so they win."""
        return [*self.training, *(override(key, value) for key, value in point.items())]

    def config(self, point: Mapping[str, Value]) -> Config:
        """Return the checked config of a trial."""
        cfg = self._of_groups(point)
        for key, value in point.items():
            if key not in self.groups:
                self._set(cfg, key, value)
        try:
            return validate(cfg)
        except ConfigError as e:
            where = ", ".join(override(key, value) for key, value in point.items())
            raise ConfigError(f"search.space: a trial with {where} cannot be run.\n{e}") from e

    @cached_property
    def groups(self) -> dict[str, list[str]]:
        """Return the config groups and their choices."""
        return choices_of(self.checkout)

    def _of_groups(self, point: Mapping[str, Value]) -> DictConfig:
        words = tuple(override(key, value) for key, value in point.items() if key in self.groups)
        if words not in self._cache:
            self._cache[words] = compose_config(self.checkout, [*self.training, *words])[0]
        return deepcopy(self._cache[words])

    def _set(self, cfg: DictConfig, key: str, value: Value) -> None:
        missing = object()
        parent, _, name = key.rpartition(".")
        try:
            node = OmegaConf.select(cfg, parent) if parent else cfg
            has_no_value = OmegaConf.select(cfg, key, default=missing) is missing
            if has_no_value and not (isinstance(node, DictConfig) and name in node):
                raise ConfigError(f"search.space.{key}: there is no such key{self._under(cfg)}.{_remedy(key, node)}")
            OmegaConf.update(cfg, key, value)
        except (OmegaConfBaseException, AttributeError, TypeError) as e:
            text = explain(e, key)
            raise ConfigError(f"search.space.{text if text.startswith(key) else f'{key}: {text}'}") from e

    def _under(self, cfg: DictConfig) -> str:
        names = {group: OmegaConf.select(cfg, f"{group}.name") for group in ("optimizer", "schedule", "model", "data")}
        return " with " + ", ".join(f"{group}={name}" for group, name in names.items() if name)


def _remedy(key: str, node: Any) -> str:
    parent, _, name = key.rpartition(".")
    if parent and isinstance(node, int | float | str):
        return f" The values of {parent} are given as a list or by one of {', '.join(sorted(KINDS))}, not by '{name}'."
    group = key.split(".")[0]
    return (
        f" If only some choices of {group} have it, add when: {{{group}: ...}}; a new one of kwargs needs +{key}=... "
        "first. `scripts/train.py --cfg job` shows every key."
    )


@dataclass(frozen=True)
class Search:
    """A checked search."""

    checkout: Path
    node: SearchConfig  # the config's `search`, without the space
    space: Space
    training: tuple[str, ...]  # overrides for every trial
    config: Config  # of a trial without the searched values
    base: dict[str, Value]  # values of keys that conditions name but that are not searched
    name: str  # of the sweep, and of Optuna's study
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
    def compared(self) -> str:
        """Return the metric that pruners read at each validation: the monitored one, or its preview of a cooldown."""
        return f"{self.monitor}_if_cooled" if "cooled" in self.node.pruners else self.monitor

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


def read_search(checkout: Path, words: Sequence[str]) -> Search:
    """Read a search from the arguments of its command, and check it."""
    if not any(word.startswith("search=") for word in words):
        words = ["search=bayes", *words]
    arguments = parse_arguments(words)
    training = tuple(str(given.input_line) for given in arguments.training)
    try:
        cfg, choices = compose_config(checkout, [*training, *arguments.search])
        if cfg.search is None:
            raise ConfigError("search: none. Give search=grid, random, bayes or hyperband.")
        if "cooled" in (cfg.search.pruners or ()):
            training = (*training, *_preview_words(cfg))
            cfg.callbacks.cooldown_preview = True
        config = validate(cfg)
    except ConfigError as e:
        hints = [range_hint(word) for word in training if word.split("=")[0].lstrip("+") in str(e)]
        raise ConfigError(f"{e}{''.join(hints)}") from e
    node, config.search = cast(SearchConfig, config.search), None
    if problems := list(_bad_settings(node)):
        raise ConfigError("\n".join(problems[:5]))
    space = _space_of(node, arguments)
    base = {key: _base_value(key, cfg, choices, space.keys) for key in space.condition_keys}
    name = node.sweep or f"{node.name}-{config.data.name}-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    composer = Composer(checkout, training)
    search = Search(checkout, replace(node, space={}), space, training, config, base, name, composer)
    _refuse(search)
    _check_start(search)
    _check_space(search)
    return search


def _preview_words(cfg: DictConfig) -> list[str]:
    """Return the overrides with which every trial logs what a cooldown would reach."""
    if cfg.callbacks.cooldown_preview is False:
        raise ConfigError("search.pruners: cooled needs callbacks.cooldown_preview, which is off. Give true.")
    return [] if cfg.callbacks.cooldown_preview else ["callbacks.cooldown_preview=true"]


def _space_of(node: SearchConfig, arguments: Arguments) -> Space:
    fixed = {given.key_or_group for given in arguments.training if not given.is_delete()}
    space = Space.of({key: entry for key, entry in node.space.items() if key not in fixed} | arguments.space)
    if node.sampler == "grid" and space.size() > _MOST_POINTS:
        raise ConfigError(
            f"search.space: a grid of up to {space.size():,} points. Give fewer values or points, or search=random."
        )
    return space


def _bad_settings(node: SearchConfig) -> Iterator[str]:
    for key, rule in _RULES.items():
        value = getattr(node, key)
        if value is not None and (text := rule(value)) is not None:
            yield f"search.{key}: {text}"
    known = direction_of(node.objective)
    if {node.direction, known} == {"maximize", "minimize"}:
        yield f"search.direction: {node.direction} {node.objective} would look for the worst. Leave it out, or {known}."
    if {"median", "hyperband"} <= set(node.pruners):
        yield "search.pruners: median and hyperband both decide by Optuna's rules. Give one of them."
    if "cooled" in node.pruners and (other := {"median", "hyperband"} & set(node.pruners)):
        yield f"search.pruners: cooled reads previews, {other.pop()} the objective itself. Give one of them."
    if node.objective.startswith(("test/", "summary/test")):
        yield (
            f"search.objective: '{node.objective}': the test set must not choose. Give a value of the validation, such "
            "as summary/best_val_acc; the test of each trial is recorded all the same."
        )
    if node.sampler != "grid" and node.n_trials is node.hours is node.epochs is None:
        yield f"search.n_trials: null: {node.name} would never end. Give one of n_trials, hours, epochs."
    sqlite = (node.storage or "").startswith("sqlite")
    if node.storage is not None and not re.match("sqlite:///." if sqlite else ".*://", node.storage):
        what = "has no file" if sqlite and "://" in node.storage else "is no address of a database"
        yield (
            f"storage: '{node.storage}' {what}. Give postgresql://user@host/database or sqlite:////absolute/file.db, "
            "or leave it out."
        )


def direction_of(objective: str) -> str | None:
    """Return which direction of an objective is better, or None if its name does not tell."""
    if set(re.split(r"[/_]", objective)) & {"seconds", "steps", "price", "memory", "joules", "spikes"}:
        return "minimize"
    higher = is_higher_better(objective)
    return None if higher is None else "maximize" if higher else "minimize"


def _base_value(key: str, cfg: DictConfig, choices: Mapping[str, str], searched: Container[str]) -> Value:
    if key in choices:
        return choices[key]
    value = OmegaConf.select(cfg, key, default=(missing := object()))
    if value is missing:
        raise ConfigError(f"search.space: a condition names '{key}', but there is no such key or group.")
    if (group := key.split(".")[0]) in searched:
        raise ConfigError(f"search.space: a condition names '{key}', but {group} is searched. Name {group} itself.")
    return value  # type: ignore[no-any-return]


def _refuse(search: Search) -> None:
    """Refuse settings that make no sense in a search."""
    config = search.config
    if config.lr_effects is not None:
        raise ConfigError("experiment: lr_effects is a sweep already. Leave it out, or use scripts/train.py.")
    if config.resume is not None:
        raise ConfigError("resume: the trials of a search are new runs. Give sweep=NAME to resume a search.")
    if "cooled" in search.node.pruners and search.node.objective not in _PREVIEWED:
        raise ConfigError(
            f"search.pruners: cooled cannot foretell the objective '{search.node.objective}', only "
            f"{', '.join(_PREVIEWED)}. Give search.pruners=[verdict], or one of these objectives."
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("torchrun: start the search once; it starts the processes of each trial itself.")
    for key in search.space.keys:
        if key == "seed" or key.split(".")[0] in ("tracking", "search", "output_root", "resume", "lr_effects", "test"):
            raise ConfigError(
                f"search.space.{key}: cannot be searched. Several seeds a trial are search.seeds=[0,1,2]."
            )
    if search.space.keys.keys() & set(LR_KEYS) and config.keys_set_by_finder():
        raise ConfigError(
            f"finder: {config.finder.name} would replace the learning rate that a trial is given. Leave it out; "
            "'search.start=[{optimizer.lr: finder}]' starts the search at what the finder finds."
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
                search.space.check_value(str(key), value, where)
            elif key not in LR_KEYS or key not in search.space.keys:
                keys = ", ".join(search.space.keys)
                raise ConfigError(
                    f"{where}.{key}: the finder gives {' or '.join(LR_KEYS)} alone, and only if it is searched. "
                    f"Give a number for {key}. Searched keys: {keys}."
                )


def _check_space(search: Search) -> None:
    """Compose configs with both ends of every range and with every choice, to find keys and types that do not fit."""
    space, base, composer = search.space, search.base, search.composer
    chosen = [key for key in space.keys if key in composer.groups]
    for key in chosen:
        domain, choices = space.keys[key], composer.groups[key]
        if not isinstance(domain, Choice):
            raise ConfigError(f"search.space.{key}: is a config group: give a list of {', '.join(choices)}.")
        for value in domain.values:
            if (text := one_of(*choices)(str(value))) is not None:
                raise ConfigError(f"search.space.{key}: {text}")
    _check_conditions(space, composer.groups)
    examples = {key: domain.examples for key, domain in space.keys.items() if key not in chosen}
    products = itertools.product(*(space.keys[key].grid() for key in chosen))
    for values in itertools.islice(products, _MOST_CHECKED):
        groups = dict(zip(chosen, values, strict=True))
        for number in range(max(map(len, examples.values()), default=1)):
            rest = {key: found[min(number, len(found) - 1)] for key, found in examples.items()}
            composer.config(space.point(groups | rest, base))


def _check_conditions(space: Space, groups: Mapping[str, Sequence[str]]) -> None:
    """Refuse a condition with a value that its key never has: what depends on it would never be searched."""
    for key, conditions in space.conditions.items():
        for other, values in conditions.items():
            domain, where = space.keys.get(other), f"search.space.{key}.when.{other}"
            if domain is not None and not isinstance(domain, Choice):
                raise ConfigError(f"{where}: is searched as a range; a condition needs a list of values.")
            allowed = groups.get(other) if domain is None else domain.values
            for value in values:
                if allowed is not None and str(value) not in map(str, allowed):
                    close = did_you_mean(str(value), map(str, allowed))
                    raise ConfigError(f"{where}: '{value}' is never one of its values.{close}")


def check_store(node: TrackingConfig) -> None:
    """Ask an MLflow server once: one that refuses access would fail every trial, one that is down would not."""
    from lr_lightning.errors import StoreUnavailable, TrackingError
    from lr_lightning.tracking import open_store

    if node.name != "mlflow" or node.uri is None:
        return
    try:
        with suppress(StoreUnavailable):
            store = open_store(Path(node.root), node.uri)
            store.call("get_experiment_by_name", node.experiment_name)
    except TrackingError as e:
        raise ConfigError(f"tracking: {e}") from e
