"""The config of a run: its groups, what they require of each other, and the registration of their schemas with Hydra.

Nothing heavy is imported here, so that `--help`, `--cfg job` and a mistyped command line are answered at once.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from functools import cache, cached_property
from types import UnionType
from typing import Annotated, Any, cast, get_args, get_origin

from hydra.core.config_store import ConfigNode, ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import MISSING, DictConfig, OmegaConf

from lr_lightning.app.schemas import SEED, Problem, Schema, existing
from lr_lightning.app.schemas.data import DataConfig
from lr_lightning.app.schemas.model import ModelConfig, ModuleConfig, OptimizerConfig
from lr_lightning.app.schemas.schedule import STAYS_HIGH, CyclicalConfig, OneCycleConfig, PlateauConfig, ScheduleConfig
from lr_lightning.app.schemas.search import FinderConfig, LREffectsConfig, SearchConfig
from lr_lightning.app.schemas.trainer import CallbacksConfig, TrackingConfig, TrainerConfig

_CHECKPOINT = existing("file", "Give the path of a checkpoint (*.ckpt).")


@dataclass
class Config(Schema):
    """The config of a run."""

    seed: Annotated[int, SEED] = 0  # of the initial weights, the order of the images and their augmentation
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    module: ModuleConfig = field(default_factory=ModuleConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    callbacks: CallbacksConfig = field(default_factory=CallbacksConfig)
    finder: FinderConfig = field(default_factory=FinderConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    lr_effects: LREffectsConfig | None = None  # many runs in place of one, by learning rate: experiment=lr_effects
    search: SearchConfig | None = None  # many runs in place of one, for scripts/search.py
    test: bool = True  # evaluate the best checkpoint on the test set, once, at the end
    output_root: str = "${checkout:}/outputs"  # every run gets its own folder below it
    ckpt: Annotated[str | None, _CHECKPOINT] = None  # start from this checkpoint's weights
    resume: str | None = None  # resume this run: its output folder or its MLflow run id
    # a new run from a state of another one: RUN@60%, RUN@step=500, RUN@epoch=5, RUN@best, RUN@last
    fork: str | None = None
    trust: list[str] = field(default_factory=list)  # targets of yours that the stored config of a resumed run may name

    def keys_set_by_finder(self) -> frozenset[str]:
        """Return the keys whose learning rates the finder replaces, so that the run trains with others."""
        if not getattr(self.finder, "apply", False):
            return frozenset()
        bounds = {f"schedule.{name}" for name in ("max_lr", "base_lr") if hasattr(self.schedule, name)}
        return frozenset({"optimizer.lr"} | bounds)

    def _conflicts(self) -> Iterator[Problem]:
        """Find groups of keys that do not fit each other."""
        schedule = self.schedule
        if isinstance(schedule, CyclicalConfig):
            yield from self._peak_lr_conflicts(schedule)
        if isinstance(schedule, OneCycleConfig) and not schedule.base_momentum is schedule.max_momentum is None:
            yield from self._momentum_conflicts()
        if isinstance(schedule, PlateauConfig):
            yield from self._plateau_conflicts(schedule)
        if self.optimizer.lr_rule != "none" and (self.finder._target_ is not None or self.lr_effects is not None):
            what = (
                "experiment=lr_effects trains given learning rates"
                if self.lr_effects
                else "the finder's learning rate is for this batch"
            )
            yield Problem("optimizer.lr_rule", f"{what}, so there is none to scale. Give optimizer.lr_rule=none.")
        if self.callbacks.ema is not None and self.optimizer.averages_weights:
            text = f"{self.optimizer.name} averages the weights itself. Leave it out, or take another optimizer."
            yield Problem("callbacks.ema", text)
        if self.finder._target_ is not None:
            yield from self._finder_conflicts()
        if self.lr_effects is not None:
            yield from self._lr_effects_conflicts()
        for key, other in (("resume", "ckpt"), ("fork", "ckpt"), ("resume", "fork")):
            if getattr(self, key) and getattr(self, other):
                text = f"cannot be given with {key}, which brings its own checkpoint. Leave one of them out."
                yield Problem(other, text)
        if self.fork and self.lr_effects is not None:
            yield Problem("fork", "experiment=lr_effects trains from the start. Leave one of them out.")

    def _peak_lr_conflicts(self, schedule: CyclicalConfig) -> Iterator[Problem]:
        """Find two different peaks, and a lower bound above the peak."""
        lr, base_lr = self.optimizer.lr, schedule.base_lr
        peak_lr = lr if schedule.max_lr is None else schedule.max_lr
        if peak_lr != lr and self._is_lr_given():
            text = f"{peak_lr:g}, but optimizer.lr: {lr:g}. They are two names of the peak learning rate: give one."
            yield Problem("schedule.max_lr", text)
        elif base_lr is not None and base_lr > peak_lr:
            text = f"must be at most the peak (optimizer.lr or schedule.max_lr), {peak_lr:g}, got {base_lr}."
            yield Problem("schedule.base_lr", text)

    def _is_lr_given(self) -> bool:
        """Tell whether optimizer.lr was asked for: it is not its default, or it stands on the command line."""
        default = getattr(type(self.optimizer), "lr", None)
        if self.optimizer.lr != (self.model.lr if default == "${model.lr}" else default):
            return True
        overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
        return any(override.lstrip("+").startswith("optimizer.lr=") for override in overrides)

    def _momentum_conflicts(self) -> Iterator[Problem]:
        """Find a schedule of a momentum that the optimizer lacks or relies on."""
        key, optimizer = "schedule.max_momentum", self.optimizer
        remedy = "Leave schedule.base_momentum and schedule.max_momentum out"
        if not {"momentum", "betas"} & ({f.name for f in fields(optimizer)} | set(optimizer.kwargs)):
            text = f"{optimizer.name} has neither momentum nor betas to move. {remedy}, or take another optimizer."
            yield Problem(key, text)
        elif optimizer.averages_weights:
            text = f"{optimizer.name} averages the weights with its momentum, which must stay constant. {remedy}."
            yield Problem(key, text)

    def _plateau_conflicts(self, schedule: PlateauConfig) -> Iterator[Problem]:
        """Find a plateau whose metric is not logged, and one that early stopping forestalls."""
        yield from self.callbacks.bad_monitor("schedule.monitor", schedule.monitor)
        stopping, patience = self.callbacks.stopping, schedule.patience
        if stopping is not None and stopping.criterion == "patience" and 1 <= stopping.patience <= patience:
            key = "callbacks.early_stopping.patience"
            yield Problem(
                key,
                f"{stopping.patience} validations end the run before schedule.patience, {patience}, lowers the "
                f"learning rate for the first time. Give {key}={patience + 1} or more, or a smaller schedule.patience.",
            )

    def _finder_conflicts(self) -> Iterator[Problem]:
        """Find what makes a search for a learning rate impossible or pointless."""
        finder, name = self.finder, self.optimizer.name
        if getattr(finder, "metric", None) in ("val_loss", "accuracy") and self.trainer.limit_val_batches == 0:
            text = "needs validation batches, and trainer.limit_val_batches is 0. Give finder.metric=loss."
            yield Problem("finder.metric", text)
        if getattr(finder, "keep", False):
            yield from self._keep_conflicts()
        if getattr(finder, "apply", False) and getattr(self.schedule, "base_lr", None) is not None:
            text = f"finder={finder.name} sets both bounds of a cycle. Leave it out, or give finder.apply=false."
            yield Problem("schedule.base_lr", text)
        if self.lr_effects is not None:
            text = "experiment=lr_effects trains given learning rates, so there is none to find. Give finder=none."
            yield Problem("finder", text)
        if self.optimizer.estimates_lr:
            text = (
                f"{name} estimates its learning rate, so there is none to find. Give finder=none or another optimizer."
            )
            yield Problem("finder", text)

    def _keep_conflicts(self) -> Iterator[Problem]:
        """Find callbacks that need the weights of the steps that a race has trained already."""
        callbacks, preview = self.callbacks, self.callbacks.cooldown_preview
        off = {
            "callbacks.cost=null": callbacks.cost is not None,
            "callbacks.cooldown_preview=false": preview or (preview is None and isinstance(self.schedule, STAYS_HIGH)),
            "callbacks.ema=null": callbacks.ema is not None,
            "callbacks.checkpoint.every=null": callbacks.checkpoint is not None and callbacks.checkpoint.every,
        }
        if not getattr(self.finder, "apply", True):
            yield Problem("finder.keep", "goes on from the race, and finder.apply is false. Leave one of them out.")
        if seeing := [key for key, given in off.items() if given]:
            text = "skips the training of the first steps, and these callbacks need their weights."
            yield Problem("finder.keep", f"{text} Give {' '.join(seeing)}.")
        if self.optimizer.averages_weights:
            text = f"{self.optimizer.name} averages the weights at each step. Take another optimizer, or leave it out."
            yield Problem("finder.keep", text)

    def _lr_effects_conflicts(self) -> Iterator[Problem]:
        """Find what a grid of learning rates needs and does not get."""
        if self.callbacks.overfitting is None:
            yield Problem("lr_effects", "needs callbacks.overfitting, which is off.")
        if self.callbacks.cost is None or self.callbacks.cost.target is None:
            text = "needs a target to measure the speed by; give 'callbacks.cost.target=\"val/acc>=0.95\"'."
            yield Problem("lr_effects", text)
        if isinstance(self.schedule, CyclicalConfig) and (self.schedule.max_lr or self.schedule.base_lr):
            yield Problem(
                "lr_effects", "sets the learning rates itself; leave schedule.max_lr and schedule.base_lr out."
            )


PLACES_OF_DATA = ("root", "train", "val", "test", "path", "cache_dir")
"""Keys of `data` that say where the images lie. They may change in a resume: the fingerprint tells other images."""

GROUP_BASES: dict[str, type[Any]] = {
    f.name: f.type for f in fields(Config) if isinstance(f.type, type) and issubclass(f.type, Schema)
}
"""The schema of each group, whose keys every choice has; keys that a choice adds are arguments of its `_target_`."""


def _choices(base: type) -> dict[str, type]:
    """Return the schemas of a group's choices: the subclasses of ``base`` in its module, by their default ``name``."""
    schemas = [s for s in vars(sys.modules[base.__module__]).values() if isinstance(s, type) and issubclass(s, base)]
    return {name: s for s in schemas if (name := getattr(s, "name", MISSING)) != MISSING}


SCHEMAS = {group: {**_choices(base), "base": base} for group, base in {**GROUP_BASES, "search": SearchConfig}.items()}
"""The schema of each choice, by group: `/schema/<group>/<choice>@_here_` in conf/<group>/*.yaml."""


@cache
def _text_keys() -> frozenset[str]:
    """Return the dotted keys that take text, in any choice; ``tracking.tags.`` stands for every key of that mapping."""
    found: set[str] = set()
    schemas = [("", Config), *((f"{group}.", schema) for group in SCHEMAS for schema in SCHEMAS[group].values())]
    for prefix, schema in schemas:  # grows by the nested ones
        for f in fields(schema):
            hint = get_args(f.type)[0] if get_origin(f.type) is Annotated else f.type
            kinds = set(get_args(hint)) if get_origin(hint) is UnionType else {hint}
            if str in kinds and not kinds & {int, float}:
                found.add(f"{prefix}{f.name}")
            if dict[str, str] in kinds:
                found.add(f"{prefix}{f.name}.")
            nested = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Schema)]
            schemas += [(f"{prefix}{f.name}.", kind) for kind in nested]
    return frozenset(found)


def takes_text(key: str) -> bool:
    """Tell whether the values of a dotted key are text, such as a path."""
    names = key, f"search.{key}", f"{key.rpartition('.')[0]}."
    return not _text_keys().isdisjoint(names)


class _StoredSchema(ConfigNode):
    """A schema that OmegaConf reads only when Hydra asks for it: reading all is a quarter of ``--cfg job``."""

    def __init__(self, name: str, group: str, schema: type) -> None:
        self.name, self.group, self.package, self.provider, self._schema = name, group, None, None, schema

    @cached_property
    def node(self) -> DictConfig:  # type: ignore[override]
        return cast(DictConfig, OmegaConf.structured(self._schema))


def register() -> None:
    """Register the schemas with Hydra. Calling this again changes nothing."""
    top: dict[str, Any] = ConfigStore.instance().repo.setdefault("schema", {})
    every: dict[str, dict[str, type]] = {"": {"config": Config}, **SCHEMAS}
    for group, choices in every.items():
        folder = top.setdefault(group, {}) if group else top
        for name, schema in choices.items():
            folder.setdefault(f"{name}.yaml", _StoredSchema(f"{name}.yaml", f"schema/{group}".rstrip("/"), schema))
