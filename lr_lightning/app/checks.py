"""Check a composed config: its keys, its values, and what the groups require of each other.

Nothing heavy is imported here, so that a mistyped command line is answered at once.
"""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import cast

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lr_lightning.app.config import Config
from lr_lightning.app.error_messages import did_you_mean, explain
from lr_lightning.app.schemas.model import ModelConfig
from lr_lightning.app.schemas.optimizer import OptimizerConfig
from lr_lightning.app.schemas.problems import Problem
from lr_lightning.app.schemas.schedule import CyclicalConfig, OneCycleConfig, PlateauConfig, ScheduleConfig
from lr_lightning.app.schemas.trainer import CallbacksConfig
from lr_lightning.errors import ConfigError

__all__ = ["validate"]

_MOST_PROBLEMS = 5


def validate(cfg: DictConfig) -> Config:
    """Return the composed config as plain dataclasses, with ``optimizer.lr`` as the peak learning rate.

    Raises:
        ConfigError: A key or a value is bad. The first few problems are shown, a line each: key, value and remedy.
    """
    _raise_for(str(problem) for problem in _bad_keys(cfg))
    try:
        config = cast(Config, OmegaConf.to_object(cfg))
    except OmegaConfBaseException as e:
        raise ConfigError(explain(e, getattr(e, "full_key", None))) from e
    _raise_for(str(problem) for problem in (*config.problems(), *_conflicts(config)))
    if (peak_lr := _max_lr(config.schedule)) is not None:
        config.optimizer.lr = float(peak_lr)
    return config


def _raise_for(problems: Iterator[str]) -> None:
    if lines := list(problems):
        raise ConfigError("\n".join(lines[:_MOST_PROBLEMS]))


def _bad_keys(cfg: DictConfig) -> Iterator[Problem]:
    yield from _unknown_or_deleted(cfg)
    for key in sorted(OmegaConf.missing_keys(cfg)):
        yield Problem(key, f"needs a value; give {key}=...")


def _unknown_or_deleted(node: DictConfig, prefix: str = "") -> Iterator[Problem]:
    """Find keys that the schema lacks (``+sede=3`` passes Hydra), and keys of the schema that are gone (``~seed``)."""
    schema = OmegaConf.get_type(node)
    known = [f.name for f in fields(schema)] if is_dataclass(schema) else None
    for key in map(str, node):
        name = f"{prefix}{key}"
        if known is not None and key not in known:
            yield Problem(name, f"there is no such key.{did_you_mean(key, known)} `--cfg job` shows every key.")
        elif not OmegaConf.is_missing(node, key) and not OmegaConf.is_interpolation(node, key):
            child = node[key]
            if isinstance(child, DictConfig) and not child._is_none():
                yield from _unknown_or_deleted(child, f"{name}.")
    present = set(map(str, node))
    for key in known or ():
        if key not in present:
            yield Problem(f"{prefix}{key}", f"was deleted, but is needed; leave ~{prefix}{key} out.")


def _conflicts(config: Config) -> Iterator[Problem]:
    """Find what one group requires of another and does not get."""
    yield from _peak_lr_conflicts(config.model, config.optimizer, config.schedule)
    yield from _momentum_conflicts(config.optimizer, config.schedule)
    yield from _monitor_conflicts(config.callbacks, config.schedule)
    yield from _finder_conflicts(config)
    if config.study is not None:
        yield from _study_conflicts(config.callbacks, config.schedule)
    if config.resume and config.ckpt:
        yield Problem("ckpt", "cannot be given with resume, which brings its own checkpoint. Leave one of the two out.")


def _max_lr(schedule: ScheduleConfig) -> float | None:
    return schedule.max_lr if isinstance(schedule, CyclicalConfig) else None


def _peak_lr_conflicts(model: ModelConfig, optimizer: OptimizerConfig, schedule: ScheduleConfig) -> Iterator[Problem]:
    """Find two different peaks, and a lower bound above the peak."""
    if not isinstance(schedule, CyclicalConfig):
        return
    peak_lr = optimizer.lr if schedule.max_lr is None else schedule.max_lr
    if peak_lr != optimizer.lr and _is_lr_given(model, optimizer):
        yield Problem(
            "schedule.max_lr",
            f"{peak_lr:g}, but optimizer.lr: {optimizer.lr:g}. They are two names of the peak learning rate: give one "
            "of them.",
        )
    elif schedule.base_lr is not None and schedule.base_lr > peak_lr:
        yield Problem(
            "schedule.base_lr",
            f"must be at most the peak (optimizer.lr or schedule.max_lr), {peak_lr:g}, got {schedule.base_lr}.",
        )


def _is_lr_given(model: ModelConfig, optimizer: OptimizerConfig) -> bool:
    """Tell whether optimizer.lr was asked for: it is not its default, or it stands on the command line."""
    default = getattr(type(optimizer), "lr", None)
    if optimizer.lr != (model.lr if default == "${model.lr}" else default):
        return True
    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    return any(override.lstrip("+").startswith("optimizer.lr=") for override in overrides)


def _momentum_conflicts(optimizer: OptimizerConfig, schedule: ScheduleConfig) -> Iterator[Problem]:
    """Find a schedule of a momentum that the optimizer lacks or relies on."""
    if not isinstance(schedule, OneCycleConfig) or schedule.base_momentum is schedule.max_momentum is None:
        return
    remedy = "Leave schedule.base_momentum and schedule.max_momentum out"
    keys = {f.name for f in fields(optimizer)} | set(optimizer.kwargs)
    if not keys & {"momentum", "betas"}:
        yield Problem(
            "schedule.max_momentum",
            f"{optimizer.name} has neither momentum nor betas to move. {remedy}, or take another optimizer.",
        )
    elif optimizer.averages_weights:
        yield Problem(
            "schedule.max_momentum",
            f"{optimizer.name} averages the weights with its momentum, which must stay constant. {remedy}.",
        )


def _monitor_conflicts(callbacks: CallbacksConfig, schedule: ScheduleConfig) -> Iterator[Problem]:
    """Find a plateau whose metric is not logged, and one that early stopping forestalls."""
    if not isinstance(schedule, PlateauConfig):
        return
    yield from callbacks.bad_monitor("schedule.monitor", schedule.monitor)
    stopping, patience = callbacks.stopping, schedule.patience
    if stopping is not None and stopping.criterion == "patience" and 1 <= stopping.patience <= patience:
        key = "callbacks.early_stopping.patience"
        yield Problem(
            key,
            f"{stopping.patience} validations end the run before schedule.patience, {patience}, lowers the learning "
            f"rate for the first time. Give {key}={patience + 1} or more, or a smaller schedule.patience.",
        )


def _finder_conflicts(config: Config) -> Iterator[Problem]:
    """Find what leaves a search for a learning rate nothing to search, and what it leaves nothing to scale."""
    finder, optimizer, schedule = config.finder, config.optimizer, config.schedule
    has_finder = finder._target_ is not None
    if optimizer.lr_rule != "none" and (has_finder or config.study is not None):
        what = "the study trains given learning rates"
        what = what if config.study is not None else "the finder's learning rate is for this batch"
        yield Problem("optimizer.lr_rule", f"{what}, so there is none to scale. Give optimizer.lr_rule=none.")
    if not has_finder:
        return
    if getattr(finder, "metric", None) in ("val_loss", "accuracy") and config.trainer.limit_val_batches == 0:
        yield Problem(
            "finder.metric", "needs validation batches, and trainer.limit_val_batches is 0. Give finder.metric=loss."
        )
    base_lr = schedule.base_lr if isinstance(schedule, CyclicalConfig) else None
    if getattr(finder, "apply", False) and base_lr is not None:
        yield Problem(
            "schedule.base_lr",
            f"finder={finder.name} sets both bounds of a cyclical schedule. Leave schedule.base_lr out, or give "
            "finder.apply=false.",
        )
    if config.study is not None:
        yield Problem("finder", "the study trains given learning rates, so there is none to find. Give finder=none.")
    if optimizer.estimates_lr:
        yield Problem(
            "finder",
            f"{optimizer.name} estimates its learning rate, so there is none to find. Give finder=none or another "
            "optimizer.",
        )


def _study_conflicts(callbacks: CallbacksConfig, schedule: ScheduleConfig) -> Iterator[Problem]:
    """Find what a study needs and does not get."""
    if callbacks.overfitting is None:
        yield Problem("study", "needs callbacks.overfitting, which is off.")
    if callbacks.cost is None or callbacks.cost.target is None:
        yield Problem(
            "study", "needs a target to measure the speed by; give 'callbacks.cost.target=\"val/acc>=0.95\"'."
        )
    if isinstance(schedule, CyclicalConfig) and (schedule.max_lr is not None or schedule.base_lr is not None):
        yield Problem("study", "sets the learning rates itself; leave schedule.max_lr and schedule.base_lr out.")
