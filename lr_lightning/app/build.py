"""From config to objects: the only place that instantiates what a config names."""

import inspect
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, fields
from functools import partial
from importlib.util import find_spec
from typing import Any, Protocol, cast

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import OmegaConf
from torch import nn
from torch.optim import Optimizer

from lr_lightning.app.config import GROUP_BASES, Config
from lr_lightning.app.lr_scaling import process_batch_size
from lr_lightning.app.monitor_checks import MonitorCheck
from lr_lightning.app.schemas.model import OPTIMIZER_PACKAGES
from lr_lightning.app.schemas.schedule import CyclicalConfig, ScheduleConfig
from lr_lightning.callbacks.base_finder import BaseLRFinder
from lr_lightning.callbacks.batch_size import BatchSizeSchedule
from lr_lightning.callbacks.early_stopping import ScheduleAwareStopping
from lr_lightning.callbacks.lr_schedule import LRSchedule
from lr_lightning.callbacks.overfitting import OverfittingMonitor, can_measure
from lr_lightning.callbacks.random_state import RandomState
from lr_lightning.callbacks.run_cost import RunCost
from lr_lightning.callbacks.schedule_free import ScheduleFreeMode
from lr_lightning.callbacks.step_recorder import StepRecorder
from lr_lightning.callbacks.trainer_clock import trainer_clock
from lr_lightning.errors import ConfigError, DataError
from lr_lightning.schedules import Cosine, Join, Linear, Plateau, Schedule, Warmup, parse_duration
from lr_lightning.training.datamodule import ImageDataModule
from lr_lightning.training.optimizers import OptimizerFactory
from lr_lightning.training.progress import RunProgress

# --- What the keys of a schedule mean beyond its `_target_`'s arguments: warm-up, bounds, momentum, plateau.

_BASE = frozenset(f.name for f in fields(ScheduleConfig))
_BOUNDS = frozenset(f.name for f in fields(CyclicalConfig)) - _BASE
_MOMENTUM = frozenset({"base_momentum", "max_momentum"})
_PLATEAU = tuple(f.name for f in fields(Plateau))


def target_arguments(node: ScheduleConfig, *, own_warmup: bool) -> dict[str, Any]:
    """What a schedule's `_target_` is called with: the choice's own keys and its free ``kwargs``.

    Args:
        node: The config's schedule.
        own_warmup: Whether the target takes the warm-up itself, as WSD does, rather than getting one in front of it.

    Raises:
        ConfigError: If the target takes the warm-up itself and a shape of it is asked for.
    """
    ours = _BASE | _BOUNDS | _MOMENTUM | {"growth"} | (frozenset(_PLATEAU) if hasattr(node, "monitor") else frozenset())
    own = {f.name: getattr(node, f.name) for f in fields(node) if f.name not in ours}
    if own_warmup:
        if node.warmup_shape != "linear":
            raise ConfigError(
                f"schedule.warmup_shape: '{node.warmup_shape}', but {node._target_} has a warm-up of its own, which "
                "takes no shape. Leave it out."
            )
        own["warmup"] = node.warmup
    return own | dict(node.kwargs)


def completed(config: Config, piece: Any, *, own_warmup: bool) -> Schedule:
    """The schedule of the run: what the `_target_` gave, between the bounds that are asked for, after the warm-up.

    Raises:
        ConfigError: If it is no schedule, or has no lower bound where one is given.
        ValueError: If the warm-up is no duration.
    """
    node = config.schedule
    if not isinstance(piece, Schedule):
        raise ConfigError(
            f"schedule._target_: '{node._target_}' gave a {type(piece).__name__}, "
            "not a lr_lightning.schedules.Schedule."
        )
    base_lr = getattr(node, "base_lr", None)
    if base_lr is not None:
        bounded = piece.with_base(base_lr / config.optimizer.lr)
        if bounded is piece:
            raise ConfigError(f"schedule.base_lr: {base_lr:g}, but {node._target_} has no lower bound. Leave it out.")
        piece = bounded
    if own_warmup or parse_duration(node.warmup, "warmup").amount == 0:
        return cast(Schedule, piece)
    return Warmup(node.warmup, then=piece, shape=cast(Any, node.warmup_shape))


def momentum_of(node: ScheduleConfig) -> Schedule | None:
    """The momentum that moves against a single cycle: from its maximum to its base at the peak rate, and back.

    Source: Smith 2018, "A disciplined approach to neural network hyper-parameters" (arXiv 1803.09820).

    Returns:
        A schedule of the momentum itself, or None where none is asked for.
    """
    low, high = getattr(node, "base_momentum", None), getattr(node, "max_momentum", None)
    if low is None or high is None:
        return None
    shape = Linear if getattr(node, "shape", None) == "linear" else Cosine
    return Join((shape(high, low), node.warmup), (shape(low, high), None))


def plateau_of(node: ScheduleConfig) -> Plateau | None:
    """The plateau that multiplies the schedule, or None where the choice has none.

    Raises:
        ValueError: If one of its keys is out of range.
    """
    return Plateau(**{name: getattr(node, name) for name in _PLATEAU}) if hasattr(node, "monitor") else None


def named(error: ValueError, node: ScheduleConfig) -> ConfigError:
    """A schedule's error with the whole key in front, where it begins with the name of one of its arguments."""
    text = str(error).removeprefix("schedule.kwargs: ")
    if text.startswith(("schedule:", "schedule.")):
        return ConfigError(text)
    found = re.match(r"(\w+):? (.*)", text, flags=re.DOTALL)
    if found and found[1] in node.kwargs:
        return ConfigError(f"schedule.kwargs.{found[1]}: {found[2]}")
    if found and hasattr(node, found[1]):
        return ConfigError(f"schedule.{found[1]}: {found[2]}")
    return ConfigError(f"schedule: {text}")


class ScheduleCheck(Callback):
    """Find out before the first step what would stop the run in the middle: durations that do not fit.

    Args:
        schedules: All schedules of the run.
        total_steps: The number of updates, where the config gives it.
    """

    def __init__(self, schedules: Iterable[Schedule], total_steps: int | None) -> None:
        self.schedules, self.total_steps = tuple(schedules), total_steps

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lay the schedules out over the run, now that its length is known."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]  # set outside the class; LRSchedule stretches such a run
            return
        sharing = 1 if pl_module.automatic_optimization else max(1, len(trainer.optimizers))
        clock = trainer_clock(trainer, optimizers=sharing, total_steps=self.total_steps)
        for schedule in self.schedules:
            if clock.total is None and schedule.needs_total:
                raise ConfigError(
                    f"schedule.total_steps: {type(schedule).__name__} needs the number of steps, and nothing says it "
                    "here. Give schedule.total_steps=..., trainer.max_epochs=... or trainer.max_steps=..."
                )
            try:
                schedule.check(clock)
            except ValueError as e:
                raise ConfigError(f"schedule: {e}") from e


logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)  # it prints what is raised here as an error anyway


class DataShape(Protocol):
    """What a network is fitted to."""

    @property
    def in_channels(self) -> int:
        """Channels of an image."""
        ...

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width, in pixels."""
        ...

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        ...


def own_arguments(group: str, node: Any) -> dict[str, Any]:
    """The arguments a choice adds to its group's base keys, and its free ``kwargs``."""
    base = {f.name for f in fields(GROUP_BASES[group])}
    return {f.name: getattr(node, f.name) for f in fields(node) if f.name not in base} | dict(node.kwargs)


def located(target: str, key: str) -> Any:
    """The object a ``_target_`` names.

    Raises:
        ConfigError: If it cannot be imported.
    """
    try:
        return get_object(target)
    except (ImportError, ValueError, AttributeError) as e:
        package = target.split(".")[0]
        if package in OPTIMIZER_PACKAGES and find_spec(package) is None:
            raise ConfigError(f"{key}._target_: needs `pip install {package}`, for '{target}'.") from e
        reason = str(e.__cause__ or e).splitlines()[0]
        raise ConfigError(f"{key}._target_: cannot import '{target}' ({reason}). Check the name, or install it.") from e


def call(group: str, target: str, arguments: Mapping[str, Any], **objects: Any) -> Any:
    """Call a ``_target_`` with plain ``arguments`` (nested ``_target_`` are built) and ready ``objects``.

    Raises:
        ConfigError: If the target cannot be imported, or refuses its arguments.
    """
    callee = located(target, group)
    try:
        plain = instantiate(OmegaConf.create(dict(arguments)), _convert_="all")  # objects would become configs in there
    except InstantiationException as e:
        raise ConfigError(f"{group}: {str(e).splitlines()[0]}") from e
    try:
        inspect.signature(callee).bind(**plain, **objects)
    except TypeError as e:
        names = ", ".join(p for p in inspect.signature(callee).parameters if p not in objects)
        raise ConfigError(f"{group}: {target} does not take these arguments ({e}). It takes: {names}.") from e
    except ValueError:
        pass  # a callable without a signature: the call itself will tell
    try:
        return callee(**plain, **objects)
    except DataError:
        raise  # it names its key already
    except (ValueError, TypeError) as e:
        raise ConfigError(f"{group}.kwargs: {e}") from e


def accepted(callee: Callable[..., Any], offers: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the offered arguments that a callable names."""
    names = inspect.signature(callee).parameters
    return {name: value for name, value in offers.items() if name in names}


def build_schedule(config: Config) -> Schedule:
    """The schedule over the whole run, with its warm-up. Pure arithmetic: cheap and early.

    Raises:
        ConfigError: If one of the schedule's keys is bad, those of its momentum and plateau included.
    """
    node = config.schedule
    target = located(node._target_, "schedule")
    try:
        own_warmup = "warmup" in inspect.signature(target).parameters
        piece = call("schedule", node._target_, target_arguments(node, own_warmup=own_warmup))
        momentum_of(node)
        plateau_of(node)  # both are made again with the callback; here, what is wrong with them is found early
        return completed(config, piece, own_warmup=own_warmup)
    except ValueError as e:
        raise named(e, node) from e


def build_data(config: Config) -> ImageDataModule:
    """The data module, not yet loaded."""
    node = config.data
    arguments = own_arguments("data", node)
    return ImageDataModule(
        lambda: call("data", node._target_, arguments),
        batch_size=process_batch_size(config),
        eval_batch_size=node.eval_batch_size,
        val_fraction=node.val_fraction,
        split_seed=node.split_seed,
        seed=config.seed,
        crop_padding=node.crop_padding,
        crop_fill=cast(Any, node.crop_fill),
        flip=node.flip,
        normalize=cast(Any, config.model.inputs),
        image_size=node.image_size,
        in_memory_limit=node.in_memory_limit,
        num_workers=node.num_workers,
        channels_last=config.trainer.channels_last,
        drop_last=node.drop_last,
        train_size=node.train_size,
        flip_labels=node.flip_labels,
    )


def build_net(config: Config, data: DataShape) -> nn.Module:
    """The network, fitted to the data's channels, image size and classes."""
    node = config.model
    offers = {"in_channels": data.in_channels, "num_classes": data.num_classes, "image_size": data.image_size}
    own = accepted(located(node._target_, "model"), offers)
    own |= {theirs: offers[ours] for ours, theirs in node.data_arguments.items()}
    net = call("model", node._target_, dict(node.kwargs), **{k: v for k, v in own.items() if k not in node.kwargs})
    if not isinstance(net, nn.Module):
        raise ConfigError(f"model._target_: '{node._target_}' gave a {type(net).__name__}, not a torch.nn.Module.")
    return net


def build_optimizer(config: Config) -> Callable[[nn.Module], Optimizer]:
    """From a module to its optimizer, with the param groups the config asks for."""
    node = config.optimizer
    return OptimizerFactory(
        located(node._target_, "optimizer"),
        lr=node.lr,
        weight_decay=node.weight_decay,
        kwargs=own_arguments("optimizer", node),
        decay_bias_and_norm=node.decay_bias_and_norm,
        multipliers=node.multipliers,
    )


def build_module(config: Config, net: nn.Module, data: DataShape) -> LightningModule:
    """The LightningModule: the app's classifier or the user's own."""
    node = config.module
    offers = {"net": net, "optimizer": build_optimizer(config), "num_classes": data.num_classes}
    objects = accepted(located(node._target_, "module"), offers)
    module = call("module", node._target_, dict(node.kwargs), **objects)
    if not isinstance(module, LightningModule):
        raise ConfigError(f"module._target_: '{node._target_}' gave a {type(module).__name__}, not a LightningModule.")
    return module


def build_callbacks(config: Config, schedule: Schedule, module: LightningModule) -> list[Callback]:
    """What watches and drives the run; the checkpoints, which need the output folder, come in ``train``."""
    callbacks: list[Callback] = [
        *_growth_callbacks(config),
        *_schedule_callbacks(config, schedule),
        ScheduleFreeMode(),  # does nothing for other optimizers
        StepRecorder(),
        RunProgress(config.trainer.progress),
    ]
    if config.callbacks.overfitting is not None and can_measure(module):
        callbacks.append(OverfittingMonitor(**asdict(config.callbacks.overfitting), seed=config.data.split_seed))
    callbacks += [*_cost_callbacks(config), *_stopping_callbacks(config)]
    for name, extra in config.callbacks.extra.items():
        if extra is None:
            continue
        arguments = dict(extra)
        target = arguments.pop("_target_", None)
        if target is None:
            raise ConfigError(f"callbacks.extra.{name}: needs a _target_, the callback's class.")
        callbacks.append(call(f"callbacks.extra.{name}", target, arguments))
    return [*callbacks, RandomState()]


def build_finder(config: Config, module: LightningModule) -> BaseLRFinder[Any] | None:
    """The search for a rate before training, or None.

    Raises:
        ConfigError: If it is none, or the module cannot be searched for.
    """
    node = config.finder
    if node._target_ is None:
        return None
    if not module.automatic_optimization:
        raise ConfigError(
            f"finder: {type(module).__name__} optimizes by hand (automatic_optimization=False), so its rate cannot be "
            "moved from outside. Give finder=none."
        )
    finder = call("finder", node._target_, own_arguments("finder", node))
    if not isinstance(finder, BaseLRFinder):
        raise ConfigError(f"finder._target_: '{node._target_}' gave a {type(finder).__name__}, not a BaseLRFinder.")
    finder.progress = config.trainer.progress in ("auto", "bar")
    finder.say = partial(print, flush=True) if config.trainer.progress in ("auto", "lines") else None
    return finder


def _schedule_callbacks(config: Config, schedule: Schedule) -> list[Callback]:
    node = config.schedule
    momentum, plateau = momentum_of(node), plateau_of(node)
    checks: list[Callback] = [] if plateau is None else [MonitorCheck(plateau.monitor, "schedule.monitor")]
    checks.append(ScheduleCheck([schedule] if momentum is None else [schedule, momentum], node.total_steps))
    return [*checks, LRSchedule(schedule, momentum=momentum, plateau=plateau, total_steps=node.total_steps)]


def _cost_callbacks(config: Config) -> list[Callback]:
    node = config.callbacks.cost
    if node is None:
        return []
    cost = RunCost(**asdict(node))
    return [cost] if cost.target is None else [MonitorCheck(cost.target.metric, "callbacks.cost.target"), cost]


def _stopping_callbacks(config: Config) -> list[Callback]:
    node = config.callbacks.early_stopping
    if node is None or node.criterion is None:
        return []
    return [MonitorCheck(node.monitor, "callbacks.early_stopping.monitor"), ScheduleAwareStopping(**asdict(node))]


def _growth_callbacks(config: Config) -> list[Callback]:
    node = getattr(config.schedule, "growth", None)
    if node is None:
        return []
    size = process_batch_size(config)
    if node.max_batch_size is not None and node.max_batch_size < size:
        raise ConfigError(
            f"schedule.growth.max_batch_size: {node.max_batch_size} is below data.batch_size, {size}. "
            f"Give that or more, or null for no limit."
        )
    try:
        return [BatchSizeSchedule(node.milestones, node.factor, max_batch_size=node.max_batch_size)]
    except ValueError as e:
        raise ConfigError(f"schedule.growth.{e}") from e
