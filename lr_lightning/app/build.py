"""From config to objects: the only module that instantiates what a config names."""

import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.trainer.states import TrainerFn
from omegaconf import OmegaConf
from torch import nn
from torch.optim import Optimizer

from lr_lightning._lightning import callbacks_of
from lr_lightning._threads import core_share
from lr_lightning.app.config import GROUP_BASES, Config
from lr_lightning.app.error_messages import causes, config_error
from lr_lightning.app.run.checkpoints import MonitorCheck
from lr_lightning.app.schemas import schedule as schemas
from lr_lightning.app.schemas.data import DataConfig
from lr_lightning.app.schemas.model import OPTIMIZER_PACKAGES, ModelConfig, ModuleConfig, OptimizerConfig
from lr_lightning.app.schemas.search import FinderConfig
from lr_lightning.app.schemas.trainer import TrainerConfig
from lr_lightning.app.world import devices_and_nodes, local_processes, process_batch_size
from lr_lightning.callbacks.base_finder import BaseLRFinder
from lr_lightning.callbacks.batch_size import BatchSizeSchedule
from lr_lightning.callbacks.cooldown_preview import CooldownPreview
from lr_lightning.callbacks.early_stopping import ScheduleAwareStopping
from lr_lightning.callbacks.lr_race import LRRace
from lr_lightning.callbacks.lr_schedule import LRSchedule
from lr_lightning.callbacks.overfitting import OverfittingMonitor
from lr_lightning.callbacks.per_example import can_measure
from lr_lightning.callbacks.random_state import RandomState
from lr_lightning.callbacks.run_cost import RunCost
from lr_lightning.callbacks.schedule_free import ScheduleFreeMode
from lr_lightning.callbacks.step_recorder import StepRecorder
from lr_lightning.errors import ConfigError, DataError
from lr_lightning.schedules import Cosine, Join, Linear, Plateau, Schedule, Warmup, parse_duration
from lr_lightning.schedules.compose import Shifted
from lr_lightning.training.datamodule import ImageDataModule
from lr_lightning.training.optimizers import OptimizerFactory
from lr_lightning.training.progress import RunProgress

logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)  # it logs every error that it also raises


@dataclass(frozen=True)
class Schedules:
    """All schedules of a run, without a Trainer."""

    lr: Schedule  # the factor of the peak learning rate, with its warmup
    momentum: Schedule | None = None  # the momentum itself; None leaves the optimizer's alone
    plateau: Plateau | None = None
    start_step: int = 0  # the update at which they start

    @property
    def planned(self) -> Schedule:
        """The schedule of the lr from the run's first step on, as LRSchedule(start=...) follows it."""
        return Shifted(self.start_step, self.lr) if self.start_step else self.lr


class DataShape(Protocol):
    """The properties of the data that a network is fitted to."""

    @property
    def in_channels(self) -> int:
        """Channels of an image."""

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width, in pixels."""

    @property
    def num_classes(self) -> int:
        """Number of classes."""


def build_schedules(node: schemas.ScheduleConfig, peak_lr: float) -> Schedules:
    """Build the schedules of a run: cheap, and possible before anything else is built."""
    with _naming_keys("schedule", _keys_of_arguments("schedule", node)):
        takes_warmup = "warmup" in inspect.signature(_import_target("schedule", node._target_)).parameters
        arguments = _schedule_arguments(node, takes_warmup=takes_warmup)
        schedule = _with_base_lr(node, _build_target("schedule", node, Schedule, arguments), peak_lr)
        if not takes_warmup and parse_duration(node.warmup, "warmup").amount > 0:
            schedule = Warmup(node.warmup, then=schedule, shape=cast(Any, node.warmup_shape))
        plateau = None
        if isinstance(node, schemas.PlateauConfig):
            plateau = Plateau(**{f.name: getattr(node, f.name) for f in fields(Plateau)})
        return Schedules(schedule, _momentum(node), plateau, node.start_step or 0)


def _schedule_arguments(node: schemas.ScheduleConfig, *, takes_warmup: bool) -> dict[str, Any]:
    """Return the arguments of a schedule's ``_target_``: the keys that only this choice has, and ``kwargs``.

    The keys of these bases modify the schedule that the target returns, or act beside it.
    """
    bases = (schemas.ScheduleConfig, schemas.CyclicalConfig, schemas.PlateauConfig, schemas.BatchGrowthConfig)
    others = {f.name for base in bases if isinstance(node, base) for f in fields(base)}
    others |= {"base_momentum", "max_momentum"}
    arguments = {f.name: getattr(node, f.name) for f in fields(node) if f.name not in others}
    if isinstance(node, schemas.CooldownConfig):
        del arguments["length"]
        arguments["start"] = 1.0 if node.start is None else node.start
    if takes_warmup:
        if node.warmup_shape != "linear":
            why = f"but the warmup that is part of {node._target_} has no shape to choose. Leave it out."
            raise ConfigError(f"schedule.warmup_shape: '{node.warmup_shape}', {why}")
        arguments["warmup"] = node.warmup
    return arguments | dict(node.kwargs)


def _with_base_lr(node: schemas.ScheduleConfig, schedule: Schedule, peak_lr: float) -> Schedule:
    if not isinstance(node, schemas.CyclicalConfig) or node.base_lr is None:
        return schedule
    bounded = schedule.with_base(node.base_lr / peak_lr)
    if bounded is schedule:
        raise ConfigError(f"schedule.base_lr: {node.base_lr:g}, but {node._target_} has no lower bound. Leave it out.")
    return bounded


def _momentum(node: schemas.ScheduleConfig) -> Schedule | None:
    """Return the momentum of a single cycle: down to its base while the learning rate rises, and back up.

    Source: Smith 2018, "A disciplined approach to neural network hyper-parameters" (arXiv 1803.09820).
    """
    if not isinstance(node, schemas.OneCycleConfig) or node.base_momentum is None or node.max_momentum is None:
        return None
    shape = Linear if node.shape == "linear" else Cosine
    low, high = node.base_momentum, node.max_momentum
    return Join((shape(high, low), node.warmup), (shape(low, high), None))


def build_data(config: Config) -> ImageDataModule:
    """Build the data module, which has not loaded anything yet."""
    node = config.data
    arguments, options = _target_arguments("data", node), {f.name: getattr(node, f.name) for f in fields(DataConfig)}
    for name in ("name", "_target_", "kwargs", "batch_size_is"):  # all others are arguments of the data module
        del options[name]
    if node.num_workers is None:  # on a CPU the training itself needs the other half of the cores
        share, on_gpu = (
            core_share(local_processes(config.trainer)),
            config.trainer.accelerator != "cpu" and torch.cuda.is_available(),
        )
        options["num_workers"] = max(1, share - 1 if on_gpu else share // 2)
    return ImageDataModule(
        lambda: _build_target("data", node, object, arguments),
        **options | {"batch_size": process_batch_size(node, config.trainer)},
        seed=config.seed,
        normalize=cast(Any, config.model.inputs),
        channels_last=config.trainer.channels_last,
        needs_test=config.test,
    )


def build_net(node: ModelConfig, data: DataShape) -> nn.Module:
    """Build the network for the data's channels, image size and classes."""
    offers = {"in_channels": data.in_channels, "num_classes": data.num_classes, "image_size": data.image_size}
    given = _offers_accepted_by(_import_target("model", node._target_), offers)
    given |= {theirs: offers[ours] for ours, theirs in node.data_arguments.items()}
    given = {name: value for name, value in given.items() if name not in node.kwargs}
    return cast(nn.Module, _build_target("model", node, nn.Module, node.kwargs, **given))


def build_optimizer(node: OptimizerConfig) -> Callable[[nn.Module], Optimizer]:
    """Return a function from a module to its optimizer, with the param groups that the config asks for."""
    return OptimizerFactory(
        _import_target("optimizer", node._target_),
        lr=node.lr,
        weight_decay=node.weight_decay,
        kwargs=_target_arguments("optimizer", node),
        decay_bias_and_norm=node.decay_bias_and_norm,
        multipliers=node.multipliers,
    )


def optimizer_copies(node: OptimizerConfig) -> float:
    """Return how many numbers an optimizer keeps for each parameter, such as 1 for SGD's momentum."""
    module = nn.Module()
    module.weight = nn.Parameter(torch.ones(8, 8))
    optimizer = build_optimizer(replace(node, multipliers={}))(module)
    if (switch := getattr(optimizer, "train", None)) is not None:  # schedule-free
        switch()
    module.weight.grad = torch.ones(8, 8)
    optimizer.step()
    kept = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)]
    return sum(value.numel() for value in kept if value.ndim) / module.weight.numel()


def build_module(node: ModuleConfig, optimizer: OptimizerConfig, net: nn.Module, data: DataShape) -> LightningModule:
    """Build the LightningModule: the app's classifier or the user's own."""
    offers = {"net": net, "optimizer": build_optimizer(optimizer), "num_classes": data.num_classes}
    offers["class_sizes"] = getattr(data, "class_sizes", {}).get("train")  # unknown in a prediction
    arguments = _target_arguments("module", node)
    given = _offers_accepted_by(_import_target("module", node._target_), offers)
    given = {name: value for name, value in given.items() if name not in arguments}
    return cast(LightningModule, _build_target("module", node, LightningModule, arguments, **given))


def build_callbacks(
    config: Config,
    schedules: Schedules,
    module: LightningModule,
    *,
    progress: str | None = None,
    new_peak: bool = False,
) -> list[Callback]:
    """Build the callbacks of the run, except those for checkpoints, which need the output folder.

    With ``new_peak`` the peak learning rate is the config's, though a checkpoint has another one. ``progress`` replaces
    ``trainer.progress``.
    """
    callbacks: list[Callback] = []
    node, schedule, plateau = config.callbacks, config.schedule, schedules.plateau
    if isinstance(schedule, schemas.BatchGrowthConfig) and schedule.growth is not None:
        callbacks.append(_batch_growth(schedule.growth, process_batch_size(config.data, config.trainer)))
    if plateau is not None:
        callbacks.append(MonitorCheck(plateau.monitor, "schedule.monitor"))
    callbacks += [
        LRSchedule(
            schedules.lr,
            momentum=schedules.momentum,
            plateau=plateau,
            total_steps=schedule.total_steps,
            start=schedules.start_step,
            peak_on_resume="module" if new_peak else "checkpoint",
        ),
        ScheduleFreeMode(),  # does nothing for other optimizers
        StepRecorder(),
        RunProgress(progress or config.trainer.progress),
    ]
    if node.overfitting is not None and can_measure(module):
        callbacks.append(OverfittingMonitor(**asdict(node.overfitting), seed=config.data.split_seed))
    if can_measure(module) and _wants_preview(config):
        callbacks.append(CooldownPreview(seed=config.data.split_seed))
    if node.cost is not None:
        cost = RunCost(**asdict(node.cost))
        callbacks += [] if cost.target is None else [MonitorCheck(cost.target.metric, "callbacks.cost.target")]
        callbacks.append(cost)
    if (stopping := node.stopping) is not None:
        callbacks.append(MonitorCheck(stopping.monitor, "callbacks.early_stopping.monitor"))
        callbacks.append(ScheduleAwareStopping(**asdict(stopping)))
    averaging = [] if node.ema is None else [AveragedWeights(decay=node.ema)]  # after what measures a validation
    return [*callbacks, *averaging, *_extra_callbacks(node.extra), RandomState()]


class AveragedWeights(EMAWeightAveraging):
    """A running average of the weights, which is validated, saved and tested in their place; see ``callbacks.ema``."""

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restore the weights that are trained, in a resume; a test keeps the average, which Lightning replaces too."""
        if trainer.state.fn == TrainerFn.FITTING:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)


def _wants_preview(config: Config) -> bool:
    """Return whether to preview a cooldown: as the key says, else if the schedule keeps the learning rate high."""
    wanted = config.callbacks.cooldown_preview
    if wanted is not None:
        return wanted
    averages = config.optimizer.averages_weights or config.callbacks.ema is not None
    return isinstance(config.schedule, schemas.STAYS_HIGH) and not averages


def _batch_growth(growth: schemas.GrowthConfig, batch_size: int) -> BatchSizeSchedule:
    if growth.max_batch_size is not None and growth.max_batch_size < batch_size:
        wrong = f"{growth.max_batch_size} is below data.batch_size, {batch_size}"
        raise ConfigError(f"schedule.growth.max_batch_size: {wrong}. Give {batch_size} or more, or null for no limit.")
    with _naming_keys("schedule.growth", {f.name: f"schedule.growth.{f.name}" for f in fields(growth)}):
        return BatchSizeSchedule(
            growth.milestones,
            growth.factor,
            max_batch_size=growth.max_batch_size,
            lr=growth.lr,  # type: ignore[arg-type]  # checked by the schema
        )


def _extra_callbacks(extra: Mapping[str, Any]) -> Iterator[Callback]:
    """Build the user's own callbacks; a name that is set to null is left out."""
    for name, node in extra.items():
        if node is None:
            continue
        key, arguments = f"callbacks.extra.{name}", dict(node)
        target = arguments.pop("_target_", None)
        if target is None:
            raise ConfigError(f"{key}: needs a _target_, the callback's class.")
        yield _call_target(key, target, arguments, {name: f"{key}.{name}" for name in arguments})


def build_finder(
    node: FinderConfig, module: LightningModule, progress: str, output_root: str | None = None
) -> BaseLRFinder[Any] | None:
    """Build the search for a learning rate that precedes training; None without one.

    A race that is not over is kept in ``output_root``, because the next start of its run has another folder.
    """
    if node._target_ is None:
        return None
    if not module.automatic_optimization:
        by_hand = f"{type(module).__name__} optimizes by hand (automatic_optimization=False)"
        raise ConfigError(f"finder: {by_hand}, so a finder cannot control its learning rate. Give finder=none.")
    finder: BaseLRFinder[Any] = _build_target("finder", node, BaseLRFinder, _target_arguments("finder", node))
    finder.progress = progress in ("auto", "bar")
    if isinstance(finder, LRRace):
        finder.folder = finder.folder or output_root
    finder.say = partial(print, flush=True) if progress in ("auto", "lines") else None
    return finder


# -- calling the _target_ of a config group ----------------------------------------------------------------------------


_APP_KEYS = frozenset({"name", "channels_last", "compile", "threads", "deterministic", "progress", "kwargs"})


def build_trainer(
    node: TrainerConfig,
    folder: Path | None,
    callbacks: list[Callback],
    checkpoint_io: CheckpointIO,
    *,
    enable_checkpointing: bool,
    **settings: Any,
) -> Trainer:
    """Build Lightning's Trainer; ``settings`` replace ``trainer.kwargs``."""
    passed = {f.name: getattr(node, f.name) for f in fields(node) if f.name not in _APP_KEYS}
    passed["devices"], passed["num_nodes"] = devices_and_nodes(node)
    if node.gradient_clip_val is None:
        passed["gradient_clip_algorithm"] = None
    try:
        trainer = Trainer(
            **passed,
            deterministic="warn" if node.deterministic else None,
            logger=False,
            callbacks=callbacks,
            default_root_dir=folder,
            enable_model_summary=False,
            enable_checkpointing=enable_checkpointing,
            plugins=[checkpoint_io],
            **{"profiler": NoProfiler(), **node.kwargs, **settings},
        )
    except (TypeError, ValueError, RuntimeError, AttributeError, KeyError, MisconfigurationException) as e:
        given = f".kwargs ({', '.join(node.kwargs)})" if node.kwargs else ""
        raise ConfigError(f"trainer{given}: {e}") from e
    skip_empty_hooks(callbacks_of(trainer, Callback))
    return trainer


class NoProfiler(PassThroughProfiler):
    """Lightning's profiler that measures nothing, without a generator for each of a step's fifty sections."""

    _section = nullcontext()

    def profile(self, action_name: str) -> "nullcontext[None]":  # type: ignore[override]  # a context manager as well
        """Measure nothing."""
        return self._section


STEP_HOOKS = (
    *("on_train_batch_start", "on_before_zero_grad", "on_before_backward", "on_after_backward"),
    *("on_before_optimizer_step", "on_train_batch_end"),
)


def skip_empty_hooks(callbacks: Iterable[Callback]) -> None:
    """Keep Lightning from calling the hooks of a step that a callback does not implement, or names ``idle_hooks``.

    Lightning enters a profiler for each call: six hooks times fifteen callbacks, most of them empty. It skips a hook
    that is not callable. The callbacks' classes are not changed, so ``super()`` finds every hook.
    """
    for callback in callbacks:
        idle = getattr(callback, "idle_hooks", ())
        for hook in STEP_HOOKS:
            inherited = getattr(type(callback), hook) is getattr(Callback, hook)
            if hook in idle or (inherited and hook not in vars(callback)):  # LambdaCallback has its own in the instance
                setattr(callback, hook, None)


def _build_target(group: str, node: Any, kind: type[Any], arguments: Mapping[str, Any], /, **objects: Any) -> Any:
    """Call the ``_target_`` of a config group, which must return an object of this kind."""
    built = _call_target(group, node._target_, arguments, _keys_of_arguments(group, node), **objects)
    if not isinstance(built, kind):
        expected = {Schedule: "lr_lightning.schedules.Schedule", nn.Module: "torch.nn.Module"}.get(kind, kind.__name__)
        raise ConfigError(f"{group}._target_: '{node._target_}' gave a {type(built).__name__}, not a {expected}.")
    return built


def _call_target(
    key: str, target: str, arguments: Mapping[str, Any], keys: Mapping[str, str], /, **objects: Any
) -> Any:
    """Call a ``_target_`` with plain values from the config, each of which has its key, and with objects.

    A nested ``_target_`` in the plain values is called first.
    """
    callee = _import_target(key, target)
    try:
        plain = instantiate(OmegaConf.create(dict(arguments)), _convert_="all")  # would make configs of the objects
    except InstantiationException as e:
        raise ConfigError(f"{key}: {str(e).splitlines()[0]} {causes(e)[-1]}") from e
    try:
        inspect.signature(callee).bind(**plain, **objects)
    except TypeError as e:
        names = ", ".join(p for p in inspect.signature(callee).parameters if p not in objects)
        raise ConfigError(f"{key}: {target} does not take these arguments ({e}). It takes: {names}.") from e
    except ValueError:
        pass  # a callable without a signature: calling it will tell
    with _naming_keys(key, keys):
        return callee(**plain, **objects)


def _import_target(key: str, target: str) -> Any:
    """Import the object that a ``_target_`` names."""
    try:
        return get_object(target)
    except (ImportError, ValueError, AttributeError) as e:
        package = target.split(".")[0]
        if package in OPTIMIZER_PACKAGES and find_spec(package) is None:
            raise ConfigError(f"{key}._target_: needs `pip install {package}`, for '{target}'.") from e
        reason = str(e.__cause__ or e).splitlines()[0]
        raise ConfigError(f"{key}._target_: cannot import '{target}' ({reason}). Check the name, or install it.") from e


def _target_arguments(group: str, node: Any) -> dict[str, Any]:
    """Return the arguments of a ``_target_``: the keys that a choice adds to its group's base, and ``kwargs``."""
    base = {f.name for f in fields(GROUP_BASES[group])}
    return {f.name: getattr(node, f.name) for f in fields(node) if f.name not in base} | dict(node.kwargs)


def _keys_of_arguments(group: str, node: Any) -> dict[str, str]:
    """Return the config key of each argument that a group may give to its ``_target_``."""
    return {f.name: f"{group}.{f.name}" for f in fields(node)} | {
        name: f"{group}.kwargs.{name}" for name in node.kwargs
    }


def _offers_accepted_by(callee: Callable[..., Any], offers: Mapping[str, Any]) -> dict[str, Any]:
    """Keep the arguments that a callable's signature names."""
    names = inspect.signature(callee).parameters
    return {name: value for name, value in offers.items() if name in names}


@contextmanager
def _naming_keys(key: str, keys: Mapping[str, str]) -> Iterator[None]:
    """Turn the errors of constructors into ones that name config keys; errors that do so already pass unchanged."""
    try:
        yield
    except (ConfigError, DataError):
        raise
    except (ValueError, TypeError) as e:
        raise config_error(e, key, keys) from e
