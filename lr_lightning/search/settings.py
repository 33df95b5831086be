"""A search, read from its command line and checked before anything is trained."""

import math
import os
import re
import secrets
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from lr_lightning.app.compose import composed
from lr_lightning.app.config import Config, stale_keys
from lr_lightning.app.errors import ConfigError, did_you_mean
from lr_lightning.app.processes import world_size
from lr_lightning.app.schemas.search import SearchConfig
from lr_lightning.app.validate import validated
from lr_lightning.reports.names import direction
from lr_lightning.search.checks import check_space
from lr_lightning.search.compose import Composer
from lr_lightning.search.domains import SpaceError, Value
from lr_lightning.search.space import Space
from lr_lightning.search.words import Words, parse

__all__ = ["SAMPLERS", "Search", "direction_of", "read"]

SAMPLERS = ("grid", "random", "qmc", "tpe", "gp")
PRUNERS = ("median", "hyperband", "verdict")
FINDER = "finder"
"""In a trial to start from, in place of the rate that the LR finder suggests."""

_MOST_POINTS = 10_000
_PASSED_OVER = ("tracking.", "output_root=", "trainer.progress=", "trust=")  # where and how, not what


@dataclass(frozen=True)
class Search:
    """A checked search.

    Attributes:
        root: The checkout.
        node: Its settings.
        space: What it searches.
        training: Overrides that every trial is started with.
        config: The config of a trial, but for what is searched.
        base: Values of the keys that conditions name and that are not searched.
        name: Of the sweep, and of Optuna's study.
        composer: Makes the configs of trials.
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
        """What makes two searches the same, as plain values."""
        return {
            "space": self.space.described(),
            "sampler": self.node.sampler,
            "objective": self.node.objective,
            "direction": self.direction,
            "start": [{str(k): v for k, v in point.items()} for point in self.node.start],
            "seeds": list(self.node.seeds),
            "pruners": sorted(self.node.pruners),
            "overrides": sorted(w for w in self.training if not w.lstrip("+~").startswith(_PASSED_OVER)),
        }

    @property
    def higher(self) -> bool:
        """Whether a higher objective is better."""
        return self.direction == "maximize"

    @property
    def direction(self) -> str:
        """``maximize`` or ``minimize``."""
        return self.node.direction or direction_of(self.node.objective) or "maximize"

    @property
    def folder(self) -> Path:
        """Where the trials' output folders go."""
        return Path(self.config.output_root).expanduser().absolute() / self.name

    @property
    def storage(self) -> str:
        """Optuna's storage, as an address of SQLAlchemy's."""
        return self.node.storage or f"sqlite:///{Path(self.config.tracking.root).expanduser().absolute() / 'search.db'}"

    @property
    def monitor(self) -> str:
        """The metric of the validations by which trials are compared while they run."""
        name = self.node.objective
        if not name.startswith("summary/"):
            return name
        known = {"val_loss": "val/loss", "probe_loss": "probe/loss", "gap_loss": "overfit/gap_loss"}
        return next((metric for part, metric in known.items() if part in name), "val/acc")

    @property
    def monitor_higher(self) -> bool:
        """Whether a higher value of that metric is better."""
        return self.higher if self.monitor == self.node.objective else self.monitor.endswith("acc")

    @property
    def validations(self) -> int | None:
        """Validations in a run, where the epochs say it."""
        node = self.config.trainer
        if node.max_epochs < 1 or node.max_steps > 0:
            return None
        return max(1, -(-node.max_epochs // node.check_val_every_n_epoch))


def read(root: Path, words: Sequence[str]) -> Search:
    """Read and check a search.

    Args:
        root: The checkout.
        words: The command line.

    Raises:
        ConfigError: Something is bad: the key, the value and the remedy.
    """
    if not any(word.startswith("search=") for word in words):
        words = ["search=bayes", *words]
    sorted_words = parse(words)
    try:
        return _checked(root, sorted_words)
    except SpaceError as e:
        raise ConfigError(str(e)) from e


def _checked(root: Path, words: Words) -> Search:
    cfg, choices = composed(root, [*words.training, *words.search])
    node = _node(cfg)
    if problems := list(_bad_settings(node)):
        raise ConfigError("\n".join(problems[:5]))
    written = {str(key): entry for key, entry in node.space.items() if str(key) not in words.fixed}
    space = Space.of(written | words.space)
    node = replace(node, space={})
    cfg.search = None
    config = validated(cfg)
    composer = Composer(root, tuple(words.training))
    base = {key: _base_value(key, cfg, choices, space.keys) for key in space.other_keys}
    name = node.sweep or f"{node.name}-{config.data.name}-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    search = Search(root, node, space, tuple(words.training), config, base, name, composer)
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
        yield "search.pruners: median and hyperband are two answers to one question. Give one of them."
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
    """Which direction of an objective is better, as far as its name tells."""
    words = set(re.split(r"[/_]", objective))
    lower = bool(words & {"seconds", "steps", "price", "memory", "joules", "spikes"})
    higher = False if lower else direction(objective)
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
    """What cannot be searched like this."""
    config, keys = search.config, search.space.keys
    if config.study is not None:
        raise ConfigError("experiment: a study is a sweep of its own. Leave it out, or use scripts/train.py.")
    if config.resume is not None:
        raise ConfigError("resume: the trials of a search are new runs. Give sweep=NAME to go on with a search.")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("torchrun: start the search once; it starts the processes of each trial itself.")
    for key in keys:
        if key == "seed" or key.split(".")[0] in ("tracking", "search", "output_root", "resume", "study", "test"):
            raise ConfigError(f"search.space.{key}: is nothing to search. Several seeds a trial: search.seeds=[0,1,2].")
    if keys.keys() & {"optimizer.lr", "schedule.max_lr"} and stale_keys(config):
        raise ConfigError(
            f"finder: {config.finder.name} would set another rate than the one a trial is given. Leave it out; "
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
