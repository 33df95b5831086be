"""The configs of trials. A composition takes Hydra a fifth of a second, so there is one for each choice of groups."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lr_lightning.app.compose import choices_of, composed
from lr_lightning.app.config import Config
from lr_lightning.app.errors import ConfigError, explain
from lr_lightning.app.validate import validated
from lr_lightning.search.domains import KINDS, Value, override

__all__ = ["Composer"]


@dataclass
class Composer:
    """Makes the config of a point of the space.

    Attributes:
        root: The checkout.
        training: Overrides that every trial is started with.
    """

    root: Path
    training: tuple[str, ...]
    _cache: dict[tuple[str, ...], DictConfig] = field(default_factory=dict, repr=False)

    def overrides(self, point: Mapping[str, Value]) -> list[str]:
        """The command line of a trial; what is searched stands last, and so wins."""
        return [*self.training, *(override(key, value) for key, value in point.items())]

    def config(self, point: Mapping[str, Value]) -> Config:
        """The checked config of a trial.

        Raises:
            ConfigError: A key or a value is bad, or two of them do not go together.
        """
        cfg = self._of_groups(point)
        for key, value in point.items():
            if key not in self.groups:
                self._set(cfg, key, value)
        try:
            return validated(cfg)
        except ConfigError as e:
            where = ", ".join(override(key, value) for key, value in point.items())
            raise ConfigError(f"search.space: a trial with {where} cannot be run.\n{e}") from e

    def check_key(self, key: str, point: Mapping[str, Value]) -> None:
        """Find out whether a key is there, given the groups' choices, and takes its value.

        Raises:
            ConfigError: If not.
        """
        self._set(self._of_groups(point), key, point[key])

    @cached_property
    def groups(self) -> dict[str, list[str]]:
        """The config groups, and their choices."""
        return choices_of(self.root)

    def _of_groups(self, point: Mapping[str, Value]) -> DictConfig:
        words = tuple(override(key, value) for key, value in point.items() if key in self.groups)
        if words not in self._cache:
            self._cache[words] = composed(self.root, [*self.training, *words])[0]
        return deepcopy(self._cache[words])

    def _set(self, cfg: DictConfig, key: str, value: Value) -> None:
        there = object()
        try:
            if OmegaConf.select(cfg, key, default=there) is there and not OmegaConf.is_missing(*_place(cfg, key)):
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
