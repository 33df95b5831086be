"""The config of a run: its groups, the schema of each choice, and their registration with Hydra.

Nothing heavy is imported here, so that `--help` and `--cfg job` answer at once.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import ModuleType
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf

from lr_lightning.app.schemas import data, model, optimizer, schedule, search
from lr_lightning.app.schemas.data import DataConfig
from lr_lightning.app.schemas.model import ModelConfig, ModuleConfig
from lr_lightning.app.schemas.optimizer import OptimizerConfig
from lr_lightning.app.schemas.problems import SEED, Rule, Schema, existing_file
from lr_lightning.app.schemas.schedule import ScheduleConfig
from lr_lightning.app.schemas.search import FinderConfig, SearchConfig, StudyConfig
from lr_lightning.app.schemas.trainer import CallbacksConfig, TrackingConfig, TrainerConfig


@dataclass
class Config(Schema):
    """The config of a run."""

    seed: int = 0  # of the initial weights, the order of the images and their augmentation
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    module: ModuleConfig = field(default_factory=ModuleConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    callbacks: CallbacksConfig = field(default_factory=CallbacksConfig)
    finder: FinderConfig = field(default_factory=FinderConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    study: StudyConfig | None = None  # many runs in place of one, by learning rate: experiment=lr_effects
    search: SearchConfig | None = None  # many runs in place of one, for scripts/search.py
    test: bool = True  # evaluate the best checkpoint on the test set, once, at the end
    output_root: str = "${checkout:}/outputs"  # every run gets its own folder below it
    ckpt: str | None = None  # start from this checkpoint's weights
    resume: str | None = None  # resume this run: its output folder or its MLflow run id
    trust: list[str] = field(default_factory=list)  # targets of yours that the stored config of a resumed run may name

    def _rules(self) -> Mapping[str, Rule]:
        return {"seed": SEED, "ckpt": existing_file("Give the path of a checkpoint (*.ckpt).")}

    def keys_set_by_finder(self) -> frozenset[str]:
        """Return the keys whose learning rates the finder replaces, so that the run trains with others."""
        if not getattr(self.finder, "apply", False):
            return frozenset()
        bounds = {f"schedule.{name}" for name in ("max_lr", "base_lr") if hasattr(self.schedule, name)}
        return frozenset({"optimizer.lr"} | bounds)


def _by_name(module: ModuleType, base: type) -> dict[str, type]:
    """Return the schemas in a module that are the choices of a group, by the default of their key ``name``."""
    schemas = [schema for schema in vars(module).values() if isinstance(schema, type) and issubclass(schema, base)]
    names = [getattr(schema, "name", MISSING) for schema in schemas]
    return {name: schema for name, schema in zip(names, schemas, strict=True) if name != MISSING}


SCHEMAS: dict[str, dict[str, type]] = {
    "data": _by_name(data, DataConfig),
    "model": {"base": ModelConfig},
    "module": _by_name(model, ModuleConfig) | {"base": ModuleConfig},
    "optimizer": _by_name(optimizer, OptimizerConfig),
    "schedule": _by_name(schedule, ScheduleConfig),
    "finder": _by_name(search, FinderConfig),
    "trainer": {"base": TrainerConfig},
    "callbacks": {"base": CallbacksConfig},
    "tracking": {"base": TrackingConfig},
    "search": {"base": SearchConfig},
}
"""The schema of each choice, by group: `/schema/<group>/<choice>@_here_` in conf/<group>/*.yaml."""

GROUP_BASES: dict[str, type] = {
    f.name: f.type for f in fields(Config) if isinstance(f.type, type) and issubclass(f.type, Schema)
}
"""The schema that every choice of a group has; the keys that a choice adds are arguments of its `_target_`."""


def register() -> None:
    """Register the schemas with Hydra. Calling this again changes nothing."""
    store = ConfigStore.instance()
    store.store(name="config", node=Config, group="schema")
    for group, choices in SCHEMAS.items():
        for name, node in choices.items():
            store.store(name=name, node=node, group=f"schema/{group}")


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten a nested config to one level of dotted keys; lists and empty mappings stay values."""
    if isinstance(node, DictConfig | ListConfig):
        node = OmegaConf.to_container(node, resolve=True)
    if not isinstance(node, dict) or not node:
        return {prefix: node}
    flat: dict[str, Any] = {}
    for key, value in node.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat
